"""Frames, stride, size, normalization and test of a checkpoint are taken where the user says nothing, and printed."""

from __future__ import annotations

import dataclasses

import pytest

from configs import loading
from networks import weights
from networks.weights.formats import FORMATS
from networks.weights.input_spec import InputSpec, foreign_input_spec
from networks.weights.source_config import parse_source_config
from tests.helpers.foreign_checkpoints import ENTRIES, write_checkpoint
from tests.helpers.runs import evaluate, metrics, train
from training.checkpoint_input import apply_input_spec
from training.setup import model_card

SPEC = InputSpec(num_frames=16, frame_stride=4, image_size=256, mean=(0.5,) * 3, std=(0.25,) * 3, preset="videomae")


def parse(*overrides):
    return loading.load_config(None, overrides)


def test_all_is_taken_where_the_user_says_nothing():
    cfg, lines = apply_input_spec(parse("model.name=vivit_b"), SPEC)
    assert (cfg.data.num_frames, cfg.data.frame_stride, cfg.data.image_size) == (16, 4, 256)
    assert (cfg.data.mean, cfg.data.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (cfg.eval.preset, cfg.eval.num_clips, cfg.eval.num_crops) == ("videomae", 5, 3)
    assert lines == [
        "taken from the checkpoint: data.num_frames=16, data.frame_stride=4, data.image_size=256, "
        "data.mean=[0.5,0.5,0.5], data.std=[0.25,0.25,0.25], eval.preset=videomae"
    ]


def test_what_the_user_says_stays_and_a_difference_is_said():
    cfg, lines = apply_input_spec(parse("data.num_frames=8", "data.mean=[0.5,0.5,0.5]", "eval.num_clips=2"), SPEC)
    assert cfg.data.num_frames == 8 and cfg.eval.num_clips == 2 and cfg.eval.preset == ""
    assert "data.num_frames=8 is set; the checkpoint was trained with 16" in lines
    assert not any("data.mean" in line or "eval.preset" in line for line in lines)


def test_what_was_published_is_told_apart_from_what_the_file_says():
    spec = InputSpec(**{**vars(SPEC), "published": frozenset({"frame_stride", "preset"})})
    _, lines = apply_input_spec(parse("data.mean=[0.5,0.5,0.5]", "data.std=[0.25,0.25,0.25]"), spec)
    assert lines == [
        "taken from the checkpoint: data.num_frames=16, data.image_size=256",
        "taken as published for the checkpoint: data.frame_stride=4, eval.preset=videomae",
    ]
    _, lines = apply_input_spec(parse("data.frame_stride=2"), spec)
    assert "data.frame_stride=2 is set; the checkpoint was published with 4" in lines


def test_stride_is_not_taken_with_one_frame_per_segment():
    cfg, lines = apply_input_spec(parse("data.sampling=tsn"), SPEC)
    assert cfg.data.frame_stride == parse().data.frame_stride and "frame_stride" not in lines[0]


def test_contradiction_with_what_the_user_says_is_an_error():
    with pytest.raises(
        ValueError, match=r"data.short_side_range=\(240.0, 250.0\): expected data.image_size=256 <= low"
    ):
        apply_input_spec(parse("data.crop=scale_jitter", "data.short_side_range=240,250"), SPEC)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timesformer_divided", InputSpec(num_frames=4, image_size=32)),
        ("videomae_ft", InputSpec(num_frames=16, image_size=224)),
        ("videomae_pt", InputSpec(num_frames=16, frame_stride=4, image_size=224, preset="videomae")),
        ("vjepa2", InputSpec(num_frames=16, frame_stride=4, image_size=256, preset="vjepa2")),
        ("vjepa2_1", InputSpec(num_frames=16, frame_stride=4, image_size=384, preset="vjepa2")),
        ("hiera_ft", InputSpec(num_frames=4, image_size=64)),
        ("timm_vit_npz", InputSpec()),
    ],
)
def test_input_spec_of_foreign_checkpoints(name, expected, tmp_path):
    spec = weights.input_spec(weights.read_checkpoint(write_checkpoint(name, tmp_path)))
    kept = {key: getattr(spec, key) for key in ("mean", "std", "published", "assumed")}
    assert spec == InputSpec(**{**vars(expected), **kept})
    no_shape_tells_it = name in ("videomae_ft", "videomae_pt", "vjepa2", "vjepa2_1")
    assert ("image_size" in spec.assumed) == no_shape_tells_it
    assert ("num_frames" in spec.published) == name.startswith("vjepa2"), "its probes are published with 16 frames"
    assert spec.mean and spec.std and ENTRIES[name]


def test_what_was_published_on_kinetics_is_for_encoders_and_heads_of_kinetics():
    formats = {file_format.name: file_format for file_format in FORMATS}
    clips = {"num_frames": 8, "image_size": 224}
    for num_classes, published in {
        400: (32, 30, "timesformer"),
        None: (32, 30, "timesformer"),
        174: (None, None, ""),
    }.items():
        spec = foreign_input_spec(formats["TimeSformer"], {}, clips, num_classes=num_classes)
        assert (spec.frame_stride, spec.fps, spec.preset) == published
    clips = {"num_frames": 64, "image_size": 256}
    encoder = foreign_input_spec(formats["transformers V-JEPA 2"], {}, clips)
    assert (encoder.num_frames, encoder.frame_stride) == (16, 4), "64 are the frames of the last pre-training phase"
    classifier = foreign_input_spec(formats["transformers V-JEPA 2 classifier"], {}, clips, num_classes=174)
    assert (classifier.num_frames, classifier.frame_stride) == (64, None)


@pytest.mark.parametrize("name", ["videomae_pt", "vjepa2", "hiera_ft"])
def test_converted_folder_tells_the_same_clips(name, tmp_path):
    path = write_checkpoint(name, tmp_path)
    original = weights.input_spec(weights.read_checkpoint(path))
    network, config, _ = weights.convert(path)
    weights.save_network(tmp_path / "folder", network, config["name"], config["extra"])
    converted = weights.input_spec(weights.read_checkpoint(tmp_path / "folder"))
    assert converted == dataclasses.replace(original, published=frozenset(), assumed=frozenset())


def test_frame_rate_is_taken_with_the_stride_that_refers_to_it():
    spec = InputSpec(num_frames=8, frame_stride=32, fps=30)
    for overrides, expected in {(): (32, 30), ("data.frame_stride=4",): (4, 0), ("data.sampling=tsn",): (8, 0)}.items():
        cfg, _ = apply_input_spec(parse(*overrides), spec)
        assert (cfg.data.frame_stride, cfg.data.fps) == expected
    for overrides, expected in {("data.sampling=tsn",): None, ("data.fps=30",): 8}.items():
        assert model_card(parse(*overrides), ["a"])["input"].get("frame_stride") == expected


def test_assumed_size_is_called_so():
    _, lines = apply_input_spec(parse(), InputSpec(image_size=256, assumed=frozenset({"image_size"})))
    assert lines == ["assumed for the checkpoint: data.image_size=256"]
    _, lines = apply_input_spec(
        parse("data.image_size=384"), InputSpec(image_size=256, assumed=frozenset({"image_size"}))
    )
    assert lines == ["data.image_size=384 is set; the checkpoint is assumed to want 256"]


@pytest.mark.parametrize(
    "own_input",
    [{"num_frames": "4"}, {"num_frames": 0}, {"image_size": [32, "x"]}, {"frame_stride": -1}, {"fps": "x"}],
)
def test_damaged_own_input_is_refused_or_unknown(own_input):
    config = parse_source_config({"name": "vivit_tiny", "kwargs": {}, "input": own_input}, {})
    checkpoint = weights.Checkpoint("x", {}, config)
    if "image_size" in own_input:
        assert weights.input_spec(checkpoint).image_size is None
    else:
        with pytest.raises(ValueError, match="config.json: input"):
            weights.input_spec(checkpoint)


def test_run_trains_tests_and_resumes_with_the_clips_of_its_checkpoint(arguments):
    """A run with its own statistics and preset starts another one, whose command says nothing of clips and test."""
    said = ["data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]", "data.frame_stride=2", "eval.preset=timesformer"]
    first = train(arguments, "first", "optim.epochs=1", *said)
    unsaid = [argument for argument in arguments if not argument.startswith(("data.num_frames", "data.image_size"))]
    unsaid = [argument for argument in unsaid if not argument.startswith(("data.frame_stride", "eval."))]
    assert len(unsaid) < len(arguments)
    start = [f"model.pretrained={first}", "optim.epochs=1"]
    second = train(unsaid, "second", *start)
    log = (second / "log.txt").read_text()
    assert "taken from the checkpoint: data.num_frames=4" in log and "eval.preset=timesformer" in log
    cfg = loading.load_config(second / "config.yaml")
    assert cfg.data.num_frames == 4 and cfg.data.mean == (0.4, 0.4, 0.4) and cfg.eval.num_crops == 3
    train(unsaid, "second", "optim.epochs=2")  # without repeating model.pretrained
    assert "changed since: data" not in (second / "log.txt").read_text()
    assert [row["epoch"] for row in metrics(second, "val")] == [1, 2]
    evaluate(second)
    assert (second / "eval" / "timesformer" / "summary.json").is_file()
