"""Errors of train.py: one clear line and exit status 2."""

from __future__ import annotations

import pytest
import torch

import networks
from tests.helpers.runs import train


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("optim.lr=fast", "optim.lr=fast: expected a number"),
        ("data.train=nowhere.txt", "nowhere.txt: no such list or folder"),
        ("model.name=vivit_tny", "did you mean 'vivit_tiny'?"),
        ("model.args.depht=3", "depht"),
        ("data.image_size=30", "patch_size=8 does not divide image_size=30x30"),
        ("run.resume=nowhere.pt", "run.resume=nowhere.pt: no such checkpoint"),
        ("data.class_names=missing.txt", "missing.txt: no such list or folder"),
        ("run.output_dir=/proc/clipline", "run folder /proc/clipline/x: cannot be written"),
        ("model.pretrained=nowhere.pth", "nowhere.pth: No such file or directory"),
        (
            "optim.global_batch_size=7",
            "optim.global_batch_size=7: expected a multiple of data.batch_size=3 on 1 processes, that is 3",
        ),
        (
            "optim.global_batch_size=30",
            "13 videos do not fill one step of data.batch_size=3 on 1 process(es), 10 times",
        ),
        ("optim.lr_base_batch=all", "optim.lr_base_batch=all: expected a whole number, 0 or more"),
        ("optim.milestones=3", "optim.milestones=[3.0]: expected none unless optim.schedule=step"),
        ("optim.ema_decay=1", "optim.ema_decay=1: expected a number, 0 to below 1"),
        ("optim.schedule=linear", "optim.schedule=linear: expected one of cosine, step, constant"),
        ("model.freeze=block.0", "model.freeze: the network has no block.0; did you mean blocks.0?"),
        ("model.freeze=blocks.1-2", "model.freeze: the network has no blocks.2"),
        ("model.freeze=backbone,head", "model.freeze: the network has no backbone"),
        ("run.checkpoint_minutes=-1", "run.checkpoint_minutes=-1: expected a number, 0 or more"),
        ("run.parallel=some", "run.parallel=some: expected one of ddp, fsdp"),
        ("eval.num_crops=2", "eval.num_crops=2: expected 1 or 3"),
        ("task.mask=square", "task.mask=square: expected one of auto"),
        ("run.precision=fp8", "run.precision=fp8: expected one of auto, bf16, fp16, fp32"),
    ],
)
def test_error_in_a_key_is_one_line_that_names_it(arguments, capsys, override, message):
    train(arguments, "x", override, status=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ") and message in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.args.depht=3", "depht"),
        ("model.freeze=block.0", "the network has no block.0"),
        ("adapter.target_modules=quary", "quary"),
        ("adapter.name=st_adapter", "st_adapter"),
        ("task.loss_args.gama=2", "task.loss_args.gama: expected the arguments of loss=cross_entropy"),
        ("task.teacher=nowhere", "nowhere: No such file or directory"),
    ],
)
def test_wrong_network_adapter_loss_and_teacher_are_told_before_a_list_is_read(
    arguments, tmp_path, capsys, override, message
):
    keys = ["data.train=missing.txt", "data.tune=yes", override]
    if override.startswith("adapter."):
        networks.weights.save_network(tmp_path / "w", networks.build("videomae_tiny", num_classes=6), "videomae_tiny")
        keys = [
            "model.name=videomae_tiny",
            "model.args={}",
            f"model.pretrained={tmp_path / 'w'}",
            "adapter.name=lora",
            *keys,
        ]
    train(arguments, "x", *keys, status=2)
    error = capsys.readouterr().err
    assert message in error and "missing.txt" not in error


def test_weights_of_another_architecture_are_refused(arguments, tmp_path, capsys):
    networks.weights.save_network(tmp_path / "mvit", networks.build("mvit_v2_tiny", num_classes=6), "mvit_v2_tiny")
    pretrained = f"model.pretrained={tmp_path}/mvit"
    for overrides, message in (
        ([pretrained], "cannot fill a ViViT: it is of another architecture"),
        ([pretrained, "model.pretrained_args={inflate: central}"], "inflate"),
    ):
        train(arguments, "x", *overrides, status=2)
        error = capsys.readouterr().err.strip()
        assert error.startswith("train.py: ") and message in error


def test_label_that_is_no_class_is_named_with_its_line(arguments, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    train(arguments, "x", f"data.class_names={tmp_path}/names.txt", status=2)
    assert "list.txt:4: label '3' is none of the 3 classes" in capsys.readouterr().err


def test_checkpoint_of_another_network_or_of_no_run_is_refused(arguments, tmp_path, capsys):
    train(arguments, "a", "optim.epochs=1")
    train(arguments, "a", "model.args.depth=3", status=2)
    assert "missing" in capsys.readouterr().err
    torch.save({"model": 1}, tmp_path / "other.pt")
    train(arguments, "b", f"run.resume={tmp_path}/other.pt", status=2)
    assert "other.pt: not the checkpoint of a training run: it lacks" in capsys.readouterr().err


def test_damaged_checkpoint_without_a_previous_one_is_refused(arguments, capsys):
    run_dir = train(arguments, "a", "optim.epochs=1")
    content = (run_dir / "last.pt").read_bytes()
    (run_dir / "previous.pt").unlink(missing_ok=True)
    for damaged in (b"", b"half a file", content[: len(content) // 2], content[:-10], b"\0" * 5000):
        (run_dir / "last.pt").write_bytes(damaged)
        train(arguments, "a", status=2)
        assert "last.pt: not a readable checkpoint" in capsys.readouterr().err
