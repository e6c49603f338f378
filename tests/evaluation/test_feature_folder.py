"""Folders of features: shards that resume, on any number of processes, and probes that are trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import eval as eval_command
from configs.schema import Data
from evaluation import features as features_module
from evaluation.features import Features
from pipelines.data import feature_shards
from pipelines.data.feature_shards import FeatureShards, LabeledVideo, ShardWriter
from pipelines.feature_loader import FeatureLoader
from tests.helpers.runs import has_same_weights, losses, metrics, run, torchrun_command, train

ENCODER = ["model.name=vjepa2_tiny", "model.args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}"]
PROBE = [*ENCODER, "task.name=probe", "data.num_clips=2", "probe.kinds=attentive,linear", "probe.lr=1e-2,1e-3"]


@pytest.fixture
def recipe(arguments, tmp_path) -> Path:
    """Return a recipe of probes on a trained encoder; video 1 of its list is missing."""
    train(arguments, "encoder", *ENCODER, "optim.epochs=1", "optim.warmup_epochs=0")
    (tmp_path / "data" / "1.mp4").unlink()
    values: dict[str, dict[str, str]] = {}
    for argument in [*arguments, *PROBE, f"model.pretrained={tmp_path}/encoder", "data.max_unreadable=0.2"]:
        key, _, value = argument.partition("=")
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = f"[{value}]" if section == "probe" else value
    path = tmp_path / "recipe.yaml"
    lines = (f"{section}: {{{', '.join(f'{k}: {v}' for k, v in keys.items())}}}\n" for section, keys in values.items())
    path.write_text("".join(lines))
    return path


def extract(recipe: Path, folder: Path, *overrides: str, status: int = 0) -> Path:
    """Write the tokens of a recipe's validation list to a folder."""
    assert (
        eval_command.main([str(recipe), f"eval.features_path={folder}", "eval.feature_pool=tokens", *overrides])
        == status
    )
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folder_has_the_features_of_a_file_in_half_precision(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_shards, "SHARD_BYTES", 3 * 2 * 32 * 32 * 2)  # three videos of 2 x 32 tokens
    folder = extract(recipe, tmp_path / "tokens")
    assert [name for name in content(folder) if name != "features.json"] == [f"0000{n}.safetensors" for n in range(5)]
    extract(recipe, tmp_path / "tokens.safetensors")
    expected, actual = Features.load(tmp_path / "tokens.safetensors"), Features.load(folder)
    assert actual.video == expected.video and torch.equal(actual.label, expected.label)
    assert torch.equal(actual.features, expected.features.half().float()) and actual.features.shape == (12, 64, 32)
    shards = FeatureShards(folder)
    assert len(shards.labels) == 13 and shards.line.tolist() == [0, *range(2, 13)] and len(shards.classes) == 6
    assert np.array_equal(shards.rows([11, 0]), expected.features[[11, 0]].numpy().astype(np.float16))


def test_interrupted_folder_continues_and_is_the_same(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feature_shards, "SHARD_BYTES", 3 * 2 * 32 * 32 * 2)
    whole = content(extract(recipe, tmp_path / "whole"))
    write, written = ShardWriter._write_shard, []

    def interrupt(self, shape):
        write(self, shape)
        written.append(self.start)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_write_shard", interrupt)
        extract(recipe, tmp_path / "part", status=130)
    with pytest.raises(ValueError, match="part: 2 of 5 shards are there: run the command that writes them again"):
        Features.load(tmp_path / "part")
    capsys.readouterr()
    extracted = []
    extract_batches = features_module.extract
    monkeypatch.setattr(
        features_module, "extract", lambda *a, **k: (extracted.append(b) or b for b in extract_batches(*a, **k))
    )
    assert content(extract(recipe, tmp_path / "part", "eval.batch_size=4")) == whole
    assert "12 of 13 videos, 6 of them before, 64x32 features" in capsys.readouterr().out
    assert sum(len(index) for index, _ in extracted) == 12, "batches from line 4 on, padded to 16"
    extract(recipe, tmp_path / "part")
    assert content(tmp_path / "part") == whole, "what is complete stays"


@pytest.mark.slow
def test_folder_of_two_processes_equals_that_of_one(recipe, tmp_path):
    expected = content(extract(recipe, tmp_path / "one"))
    folder = tmp_path / "two"
    run(torchrun_command([str(recipe), f"eval.features_path={folder}", "eval.feature_pool=tokens"], "eval.py"))
    assert content(folder) == expected


def test_other_features_are_not_mixed(recipe, tmp_path, capsys):
    extract(recipe, tmp_path / "tokens")
    for override, message in (
        ("data.frame_stride=3", "has features made with data.frame_stride=2, now it is 3; choose another folder"),
        ("eval.feature_pool=mean", "has features made with eval.feature_pool=tokens, now it is mean"),
        ("data.eval_max_per_class=1", "has features of another list of videos"),
        ("model.pretrained=", "a recipe has no weights: give model.pretrained=CHECKPOINT"),
        ("eval.features_path=x.txt", "expected a folder, or a name that ends in .npz or .safetensors"),
    ):
        extract(recipe, tmp_path / "tokens", override, status=2)
        assert message in capsys.readouterr().err


def test_value_too_large_for_half_precision_is_refused(tmp_path):
    writer = ShardWriter(tmp_path / "x", {}, [LabeledVideo("a.mp4", 0)], ["a"])
    with pytest.raises(ValueError, match="x: a feature does not fit half precision"):
        writer.add(np.array([0]), np.array([[1e5]], np.float32), 1)


def test_folder_of_another_list_of_the_same_length_or_of_other_weights_is_refused(recipe, tmp_path, capsys):
    folder, video_list = extract(recipe, tmp_path / "tokens"), tmp_path / "data" / "list.txt"
    (tmp_path / "data" / "reversed.txt").write_text("\n".join(video_list.read_text().splitlines()[::-1]) + "\n")
    extract(recipe, folder, f"data.test={tmp_path}/data/reversed.txt", status=2)
    assert "has features of another list of videos; choose another folder" in capsys.readouterr().err
    weights_file = tmp_path / "encoder" / "best" / "model.safetensors"
    content_before = weights_file.read_bytes()
    weights_file.write_bytes(content_before[:-1] + bytes([content_before[-1] ^ 1]))
    extract(recipe, folder, status=2)
    assert "has features made with weights=" in capsys.readouterr().err
    extract(recipe, folder, "eval.feature_layer=blocks.0", status=2)
    assert "eval.feature_layer=blocks.0: expected probe.layers" in capsys.readouterr().err
    extract(recipe, tmp_path / "cls", "eval.feature_pool=cls", status=2)
    assert "eval.feature_pool=cls: expected eval.feature_layer" in capsys.readouterr().err


def test_videos_that_cannot_be_read_may_come_first(recipe, tmp_path):
    for index in (0, 2, 3):
        (tmp_path / "data" / f"{index}.mp4").unlink()
    folder = extract(recipe, tmp_path / "tokens", "eval.batch_size=1")
    assert FeatureShards(folder).line.tolist() == list(range(4, 13))


def test_manifest_without_its_keys_is_refused(tmp_path):
    (tmp_path / "features.json").write_text('{"classes": []}')
    with pytest.raises(ValueError, match=r"features\.json: it lacks description, labels, list, per_shard, shape"):
        FeatureShards(tmp_path)


# --- probes from features ---------------------------------------------------------------------------------------------


def test_probes_learn_from_features_what_they_learn_from_clips(recipe, tmp_path):
    """Without augmentation: of still videos every clip has the same frames, and the crop is the whole frame."""
    still = ["data.frame_stride=0", "data.fps=1", "data.crop_scale=1,1", "data.snap_to_keyframes=yes"]
    folder = extract(recipe, tmp_path / "tokens", *still)
    from_features = [str(recipe), *still, f"data.train={folder}", f"data.val={folder}"]
    actual = train([*from_features, f"run.output_dir={tmp_path}"], "features")
    assert all(row["loss"] > 0 for row in metrics(actual, "train")) and len(losses(actual)) == 8
    results = metrics(actual, "probes")[-1]
    assert sum(key.startswith("top1/") for key in results) == 4
    frozen = ["optim.lr=1e-9", "optim.min_lr=0", "probe.lr=1e-9,1e-8"]
    # Validation on the features equals that on the videos, as both see the same center clips.
    from_videos = train([str(recipe), *still, f"run.output_dir={tmp_path}"], "videos", *frozen)
    slow = train([*from_features, f"run.output_dir={tmp_path}"], "slow", *frozen)
    for row, expected in zip(metrics(slow, "probes"), metrics(from_videos, "probes"), strict=True):
        assert row == pytest.approx(expected, abs=2e-3)
    assert metrics(slow, "val")[0]["top1"] <= 12 / 13, "the video that cannot be read counts as wrong"


def test_first_videos_of_each_class_are_those_of_the_list(recipe, tmp_path):
    """Video 1, the first of its class, cannot be read: it counts as wrong, and no other takes its place."""
    loader = FeatureLoader(
        str(extract(recipe, tmp_path / "tokens")),
        Data(batch_size=4, eval_max_per_class=1),
        train=False,
        device=torch.device("cpu"),
    )
    batches = [(batch.sample_index.tolist(), batch.label.tolist()) for batch in loader]
    assert batches[0] == ([0, -1, 2, 3], [0, 0, 2, 3]) and batches[1][0] == [4, 5, -1, -1]
    assert len(loader.videos) == 6 and loader.videos[1].label == -1


def test_features_resume_bit_for_bit(recipe, tmp_path):
    folder = extract(recipe, tmp_path / "tokens")
    arguments = [str(recipe), f"data.train={folder}", f"data.val={folder}", f"run.output_dir={tmp_path}"]
    whole = train(arguments, "whole", "optim.schedule=constant", "optim.epochs=4")
    train(arguments, "part", "optim.schedule=constant", "optim.epochs=2")
    part = train(arguments, "part", "optim.schedule=constant", "optim.epochs=4")
    assert losses(part) == losses(whole) and has_same_weights(part, whole)
    few = train(
        arguments, "few", "data.max_per_class=1", "data.few_shot_seed=3", "optim.epochs=1", "optim.warmup_epochs=0"
    )
    assert len(losses(few)) == 2, "six videos, three per step"


def test_features_that_do_not_fit_are_refused(recipe, tmp_path, capsys):
    folder, mean = extract(recipe, tmp_path / "tokens"), extract(recipe, tmp_path / "mean", "eval.feature_pool=mean")
    fitting = [str(recipe), f"data.train={folder}", f"data.val={folder}", f"run.output_dir={tmp_path}"]
    means = [f"data.train={mean}", f"data.val={mean}"]
    train(fitting, "linear", *means, "probe.kinds=linear,linear_bn", "optim.epochs=1", "optim.warmup_epochs=0")
    for overrides, message in (
        (["data.num_clips=1"], "its features are those of data.num_clips=2, not 1"),
        (means, "probe.kinds=attentive,linear needs eval.feature_pool=tokens"),
        ([f"model.pretrained={tmp_path}/encoder/best"], "its features are those of model.pretrained="),
        ([f"data.val={tmp_path}/data/list.txt"], "expected a folder of features, as data.train="),
        (["task.name=classify", "data.num_clips=1"], "features are for task.name=probe"),
        (["data.batch_size=13"], "12 videos do not fill one step of 13"),
    ):
        train(fitting, "x", *overrides, status=2)
        assert message in capsys.readouterr().err
