"""Autoencoders and JEPA by the commands: pre-train, test, fine-tune, continue; resumed, repeated, on two processes."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.image import imread

import networks
from configs.schema import Data
from networks import weights
from pipelines import index as index_command
from pipelines import preview
from pipelines.data.dataset import read_list
from pipelines.sample_source import SampleSource
from pipelines.tuning.tune import read_training_list
from tests.helpers.runs import (
    ONE_EPOCH,
    assert_resumed_run_is_bit_identical,
    assert_two_processes_equal_one,
    evaluate,
    last_checkpoint,
    losses,
    metrics,
    train,
)
from training.pretraining_tasks import MAETask

VIDEOMAE = [
    "task.name=mae",
    "model.name=pretrain_videomae_tiny",
    "model.args={backbone_args: {embed_dim: 32, depth: 2, num_heads: 2}, decoder_embed_dim: 16, decoder_num_heads: 2}",
    "task.mask_ratio=0.75",
]
HIERA = [
    "task.name=mae",
    "model.name=mae_hiera_tiny",
    "model.args={backbone_args: {embed_dim: 8}}",
    "data.image_size=64",
]
JEPA_ARGS = "backbone_args: {embed_dim: 32, depth: 2, num_heads: 2}, predictor_embed_dim: 24, predictor_num_heads: 2"
JEPA = ["task.name=jepa", "model.name=pretrain_vjepa2_tiny", f"model.args={{{JEPA_ARGS}}}", "data.image_size=64"]
CLASSIFY_JEPA = ["model.name=vjepa2_tiny", "model.args={embed_dim: 32, depth: 2, num_heads: 2}", "data.image_size=64"]
CLASSIFY = ["model.args={embed_dim: 32, depth: 2, num_heads: 2}", "model.name=videomae_tiny"]
CLASSIFY_HIERA = ["model.name=hiera_tiny", "model.args={embed_dim: 8}", "data.image_size=64"]


@pytest.mark.figures
@pytest.mark.parametrize(
    ("pretrain", "classify", "kind"),
    [(VIDEOMAE, CLASSIFY, "ViViT"), (HIERA, CLASSIFY_HIERA, "Hiera"), (JEPA, CLASSIFY_JEPA, "VJEPA2")],
)
def test_pretrained_network_is_evaluated_fine_tuned_and_continued(arguments, pretrain, classify, kind):
    pretrained = train(arguments, "pre", *pretrain, "task.figure_epochs=1")
    assert all(0 < row["loss"] and row["baseline"] > 0 and "top1" not in row for row in metrics(pretrained, "train"))
    evaluate(pretrained)
    test_dir = pretrained / "eval" / "pretraining"
    summary = json.loads((test_dir / "summary.json").read_text())
    losses_seen = [row["loss"] for row in metrics(pretrained, "val")]  # of a JEPA the last network is kept
    assert summary["videos"] == 13 and summary["loss"] == (losses_seen[-1] if kind == "VJEPA2" else min(losses_seen))
    hidden = {"ViViT": "tube masks hide 75 %", "Hiera": "random masks hide", "VJEPA2": "masks of small blocks"}[kind]
    assert summary["masks"].startswith(hidden) and f"\n{summary['masks']}\n" in (pretrained / "log.txt").read_text()
    for path in (test_dir / "predictions.png", pretrained / "clips.png"):
        image = imread(path)
        assert image.shape[0] > 100 and image[..., :3].std() > 0.1

    start, _ = weights.load_network(pretrained / "best")
    options = ["optim.lr=0", "optim.min_lr=0", *ONE_EPOCH]
    fine_tuned = train(arguments, "tune", *classify, *options, f"model.pretrained={pretrained}")
    log = (fine_tuned / "log.txt").read_text()
    assert f"-> {kind}" in log and "mask token, decoder, predictor or HOG head of the pre-training" in log
    tuned = last_checkpoint(fine_tuned)["network"]
    backbone = getattr(start, "teacher", start.backbone).state_dict()
    changed = {name for name, value in backbone.items() if not torch.equal(value, tuned[name])}
    assert changed <= {"norm.weight", "norm.bias"}, "fine-tuning starts with a fresh norm"

    continued = train(arguments, "more", *pretrain, *options, f"model.pretrained={pretrained}")
    again = last_checkpoint(continued)["network"]
    state = {name: value for name, value in start.state_dict().items() if not name.startswith("teacher.")}
    assert all(torch.equal(value, again[name]) for name, value in state.items()), "a teacher moves at any lr"


def test_weights_of_other_arguments_are_refused_with_their_names(tmp_path):
    network = networks.build("pretrain_videomae_tiny", decoder_embed_dim=96)
    weights.save_network(tmp_path, network, "pretrain_videomae_tiny")
    with pytest.raises(ValueError, match=r"arguments that differ \(model.args\): decoder_embed_dim=96 .*, 48 in the"):
        weights.load_pretrained(networks.build("pretrain_videomae_tiny"), tmp_path)


@pytest.mark.parametrize("form", ["list", "folder"])
def test_pretraining_needs_no_labels(arguments, tmp_path, capsys, form):
    videos = [video.path for video in read_list(arguments[0].removeprefix("data.train="))]
    source = tmp_path / "unlabeled"
    if form == "list":
        source.write_text("".join(f"{path}\n" for path in videos))
    else:
        source.mkdir()
        for number, path in enumerate(videos):
            (source / f"{number:02}.mp4").symlink_to(path)
    lists = [f"data.train={source}", f"data.val={source}", "data.class_names="]
    pretrained = train(arguments, "pre", *VIDEOMAE, *ONE_EPOCH, *lists)
    evaluate(pretrained)
    assert weights.load_network(pretrained / "best")[1]["id2label"] == {}
    labeled = train(arguments, "labeled", *VIDEOMAE, *ONE_EPOCH)
    assert losses(pretrained) == losses(labeled)
    assert index_command.main([str(source)]) == 0
    keys = [argument for argument in arguments if argument.startswith("data.") and "train=" not in argument]
    assert preview.main([str(source), *keys, f"out={tmp_path / 'preview.png'}"]) == 0
    assert read_training_list(Data(train=str(source))).classes == []
    capsys.readouterr()
    train(arguments, "x", *CLASSIFY, *lists, status=2)
    assert "no label: expected 'path label'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.name=vivit_tiny"],
            "model.name=vivit_tiny is not for task.name=mae but for classify: expected one of pretrain_",
        ),
        (["model.name=maskfeat_tiny"], "model.name=maskfeat_tiny is not for task.name=mae"),
        (["task.name=classify"], "model.name=pretrain_videomae_tiny is not for task.name=classify"),
        (["task.mask=frame_runs"], "task.mask=frame_runs: expected cube, tube or random"),
        (
            ["task.mask_ratio=0.99"],
            "task.mask_ratio=0.99: task.mask=tube hides all of 2x4x4 cells; expected a smaller one",
        ),
        (["task.decoder_mask_ratio=0.6"], "decoder_mask_ratio=0.6: expected 0.25, 0.5 or 0.75"),
        (["optim.layer_decay=0.75"], "optim.layer_decay=0.75: expected 1 with task.name=mae"),
        (
            [*JEPA, "task.mask_ratio=auto", "task.norm_pix_loss=no"],
            "norm_pix_loss=no: expected yes with task.name=jepa",
        ),
        (["data.mixup=0.8"], "data.mixup=0.8: expected 0 with task.name=mae"),
        ([*JEPA, "task.mask=tube", "task.mask_ratio=auto"], "task.mask=tube: expected auto with task.name=jepa"),
        (JEPA, "task.mask_ratio=0.75: expected auto with task.name=jepa"),
        (["task.label_smoothing=0.1"], "task.label_smoothing=0.1: expected 0 with task.name=mae"),
        (["task.hog_window=16"], "task.hog_window=16: expected 0 with task.name=mae"),
        ([*JEPA, "task.mask_ratio=auto", "data.image_size=8"], "frames of 2x1x1 patches are too small"),
        (["model.freeze=backbone"], "model.freeze=backbone: the network has no head"),
    ],
)
def test_error_is_one_line(arguments, capsys, overrides, message):
    train(arguments, "x", *VIDEOMAE, *overrides, status=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ") and message in error


@pytest.mark.parametrize(
    "overrides",
    [
        [*VIDEOMAE, "data.aug_repeats=3", "task.decoder_mask_ratio=0.5"],
        [*JEPA, "optim.ema_decay=0.9"],
        pytest.param(HIERA, marks=pytest.mark.slow),
        pytest.param(VIDEOMAE, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_run_is_bit_identical(arguments, overrides, monkeypatch):
    assert_resumed_run_is_bit_identical(arguments, *overrides, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("pretrain", [VIDEOMAE, HIERA, JEPA], ids=["videomae", "hiera", "jepa"])
def test_two_processes_equal_one_with_the_same_clips(arguments, pretrain, parallel):
    assert_two_processes_equal_one(arguments, *pretrain, parallel=parallel)


def test_repeated_augmentation_decodes_each_video_once_and_masks_its_views_differently(arguments, monkeypatch):
    load, sample_positions = SampleSource._load, MAETask.sample_positions
    loaded, drawn = [], []

    def count_loads(self, index, *values):
        loaded.append(index)
        return load(self, index, *values)

    def note_masks(self, batch):
        parts = sample_positions(self, batch)
        drawn.append((batch.sample_index.tolist(), batch.video, *parts))
        return parts

    monkeypatch.setattr(SampleSource, "_load", count_loads)
    monkeypatch.setattr(MAETask, "sample_positions", note_masks)
    options = ["data.batch_size=6", "data.aug_repeats=3", "data.val=", "data.prefetch=1", *ONE_EPOCH]
    train(arguments, "x", *VIDEOMAE, *options)
    assert len(drawn) == 6, "batches of two of 13 videos"
    for index, video, mask, *_ in drawn:
        assert [index[0]] * 3 + [index[3]] * 3 == index
        views = mask.reshape(2, 3, -1)
        assert all(len({view.tobytes() for view in clip}) == 3 for clip in views), "three masks of each video"
        assert not torch.equal(video[0], video[1]), "three crops of each video"
    seen = [index for row, *_ in drawn for index in row[::3]]
    assert len(seen) == len(set(seen)) == 12
    assert loaded[:12] == seen, "each video is read and decoded once for its three views"
