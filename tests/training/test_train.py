"""train.py as a user runs it: what a run writes, stopping and resuming to the bit, steps that are skipped."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from matplotlib.image import imread

from configs import loading
from tests.helpers.runs import (
    MASKFEAT,
    NO_DROPOUT,
    has_same_weights,
    last_checkpoint,
    losses,
    metrics,
    python_command,
    read_csv,
    run,
    start,
    torchrun_command,
    train,
    wait_for_line,
)
from training import session
from training.history import read_metrics
from training.metrics import StepMetrics
from training.tasks import Classify

AUGMENT = [
    "data.rand_augment=m7-n1",
    "data.grayscale=0.2",
    "data.mixup=0.8",
    "data.cutmix=1",
    "data.random_erasing=0.5",
    "data.aug_repeats=3",
    "data.sampling=tsn",
]
EVERYTHING = [
    "optim.ema_decay=0.9",
    "optim.global_batch_size=6",
    "data.mixup=0.8",
    "data.cutmix=1",
    "optim.schedule=step",
    "optim.milestones=1",
    "optim.weight_decay_end=0.5",
    "optim.clip_mode=per_param",
    "optim.epochs=3",
]


# --- what a run writes --------------------------------------------------------------------------------------------


@pytest.mark.figures
def test_run_writes_its_folder_and_does_nothing_once_finished(arguments):
    run_dir = train(arguments, "a")
    for name in (
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "log.txt",
        "last.pt",
        "best/model.safetensors",
        "best/config.json",
        "bad_videos.csv",
        "tb",
    ):
        assert (run_dir / name).exists(), name
    for name in ("curves.png", "clips.png", "attention.png"):
        assert 0.05 < imread(run_dir / name)[..., :3].std(), name
    assert [row["step"] for row in metrics(run_dir, "train")] == list(range(1, 9))
    assert [row["step"] for row in metrics(run_dir, "val")] == [4, 8]
    for row in read_metrics(run_dir)[:3]:
        assert abs(row["data_time_frac"] + row["compute_frac"] + row["other_frac"] - 1) < 0.02
        assert row["clips_per_s"] > 0
    packages = json.loads((run_dir / "env.json").read_text())["packages"]
    assert packages["torch"] == torch.__version__.split("+")[0]
    assert loading.load_config(run_dir / "config.yaml") == loading.load_config(None, [*arguments, "run.name=a"])

    content = (run_dir / "metrics.jsonl").read_text()
    train(arguments, "a")
    assert (run_dir / "metrics.jsonl").read_text() == content, "a finished run has nothing to do"


def test_pretrained_weights_of_another_run_are_adapted_once(arguments, tmp_path, monkeypatch):
    """The new run has other classes and frames; the report is in the log, and resuming does not start over."""
    pretrained = train(arguments, "a")
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"{number}\n" for number in range(7)))
    overrides = [f"data.class_names={names}", f"model.pretrained={pretrained}", "data.num_frames=8"]
    load_pretrained, calls = session.init_from_pretrained, []

    def noted(*values):
        calls.append(1)
        return load_pretrained(*values)

    monkeypatch.setattr(session, "init_from_pretrained", noted)
    run_dir = train(arguments, "b", *overrides, "optim.epochs=1")
    log = (run_dir / "log.txt").read_text()
    assert "vivit_tiny -> ViViT: " in log and "head of 6 classes, the network has 7" in log
    assert "2x4x4 -> 4x4x4, linear over frames: pos_embed" in log and "normalized with mean [0.45" in log
    train(arguments, "b", *overrides, "optim.epochs=2")
    assert len(calls) == 1


def test_training_starts_at_the_pretrained_weights(arguments):
    pretrained = train(arguments, "a", "optim.epochs=1", "data.val=")
    frozen = ["data.val=", "optim.epochs=1", "optim.lr=0", "optim.min_lr=0"]
    assert has_same_weights(train(arguments, "b", *frozen, f"model.pretrained={pretrained}"), pretrained)


def test_bad_videos_are_listed_and_remembered(arguments, tmp_path):
    (tmp_path / "data" / "1.mp4").unlink()
    train(arguments, "a", "optim.epochs=1")
    run_dir = train(arguments, "a")
    rows = [(row["path"].rpartition("/")[2], row["reason"]) for row in read_csv(run_dir / "bad_videos.csv")]
    assert rows == [("1.mp4", "no such file")]
    assert "1 failed" in (run_dir / "log.txt").read_text()


# --- stopping and resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop_after", "overrides"),
    [
        (1, []),
        (4, []),
        (3, EVERYTHING),
        (4, MASKFEAT),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(3, []), (6, []), (1, MASKFEAT), (6, MASKFEAT), (3, AUGMENT)]
        ),
    ],
)
def test_stopped_and_resumed_run_is_bit_identical(arguments, stop_after, overrides, monkeypatch):
    expected = train(arguments, "whole", *overrides)
    update, batches = StepMetrics.update, []

    def update_and_stop(self, *values):
        update(self, *values)
        batches.append(1)
        if len(batches) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StepMetrics, "update", update_and_stop)
    actual = train(arguments, "parts", *overrides, status=128 + signal.SIGTERM)
    assert len(losses(actual)) == (2 if overrides is EVERYTHING else stop_after), "EVERYTHING: two batches per step"
    train(arguments, "parts", *overrides, "data.num_workers=2")
    assert losses(actual) == losses(expected)
    assert has_same_weights(actual, expected)
    assert has_same_weights(actual, expected, "ema")
    assert metrics(actual, "val") == metrics(expected, "val")


def test_run_stopped_between_epoch_and_validation_validates_when_resumed(arguments, monkeypatch):
    """last.pt is written before the validation."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "evaluation.validate.evaluate", lambda *a, **k: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5)
        )
        train(arguments, "a", status=128 + signal.SIGINT)
    run_dir = train(arguments, "a")
    assert [row["step"] for row in metrics(run_dir, "val")] == [4, 8]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_the_run(arguments, tmp_path):
    """A terminal sends Ctrl-C to every process of the group, decode workers too."""
    command = python_command([*arguments, "optim.epochs=500", "data.num_workers=2", "run.name=a"])
    process = start(command, start_new_session=True)
    wait_for_line(process, "step 3/")
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in out, out
    assert "stopped by SIGINT" in out and (tmp_path / "a" / "last.pt").exists()


# --- steps --------------------------------------------------------------------------------------------------------


def test_steps_with_a_nonfinite_loss_are_skipped_and_too_many_stop_the_run(arguments, monkeypatch, capsys):
    call, weights = Classify.__call__, []

    def spoil_third_and_fourth(self, network, batch):
        out = call(self, network, batch)
        weights.append({name: value.clone() for name, value in network.state_dict().items()})
        if len(weights) in (3, 4):
            out["loss"] = out["loss"] * float("nan")
        return out

    monkeypatch.setattr(Classify, "__call__", spoil_third_and_fourth)
    run_dir = train(arguments, "a")
    assert [row["skipped_steps"] for row in metrics(run_dir, "train")] == [0, 0, 1, 1, 0, 0, 0, 0]
    for name, value in weights[2].items():
        assert torch.equal(value, weights[3][name]) and torch.equal(value, weights[4][name]), "skipped"
    assert any(not torch.equal(value, weights[5][name]) for name, value in weights[2].items())

    weights.clear()
    train(arguments, "b", "run.max_nonfinite_steps=1", status=2)
    assert "the loss was not finite for 2 consecutive steps (run.max_nonfinite_steps=1)" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_in_half_precision_are_finite(arguments, precision):
    run_dir = train(arguments, "a", f"run.precision={precision}", "optim.epochs=1")
    assert all(loss == loss for _, loss, _ in losses(run_dir))


@pytest.mark.slow
def test_compiled_run_has_the_losses_of_an_eager_one(arguments):
    no_dropout = ["model.args.drop_path=0", "model.args.dropout=0"]
    eager = train(arguments, "eager", *no_dropout)
    compiled = train(arguments, "compiled", *no_dropout, "run.compile=yes")
    for (_, expected, _), (_, actual, _) in zip(losses(eager), losses(compiled), strict=True):
        assert actual == pytest.approx(expected, abs=1e-4)
    assert not any("_orig_mod" in key for key in last_checkpoint(compiled)["network"])


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(arguments, tmp_path):
    overrides = [*NO_DROPOUT, "run.log_interval=50"]
    one = train(arguments, "one", *overrides, "data.batch_size=4")
    run(torchrun_command([*arguments, *overrides, "run.name=two", "data.batch_size=2"]))
    expected, actual = (last_checkpoint(run_dir)["network"] for run_dir in (one, tmp_path / "two"))
    for name in expected:
        assert torch.allclose(actual[name], expected[name], atol=1e-5), name
    expected, actual = ([row["loss"] for row in metrics(run_dir, "val")] for run_dir in (one, tmp_path / "two"))
    assert actual == pytest.approx(expected, abs=1e-5), "every video is scored once on any number of ranks"


# --- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_losses_on_a_gpu_are_finite_in_every_precision(gpu_arguments):
    for precision in ("bf16", "fp16", "fp32"):
        for compiled in ("no", "yes"):
            overrides = [f"run.precision={precision}", f"run.compile={compiled}"]
            run_dir = train(gpu_arguments, f"{precision}_{compiled}", *overrides)
            assert all(loss == loss for _, loss, _ in losses(run_dir))


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["dali", "both"])
@pytest.mark.parametrize(
    "overrides", [[], AUGMENT, EVERYTHING, MASKFEAT], ids=["plain", "augment", "everything", "maskfeat"]
)
def test_training_step_never_waits_for_the_gpu(gpu_arguments, overrides, decoder, monkeypatch):
    """From the third batch on torch raises where the host waits for the GPU, except where metrics are read."""
    update, compute, batches = StepMetrics.update, StepMetrics.compute_and_reset, []

    def update_and_forbid_syncs(self, *values):
        update(self, *values)
        batches.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(batches) > 2 else "default")

    def allow_syncs_and_compute(self, *values):
        torch.cuda.set_sync_debug_mode("default")
        return compute(self, *values)

    monkeypatch.setattr(StepMetrics, "update", update_and_forbid_syncs)
    monkeypatch.setattr(StepMetrics, "compute_and_reset", allow_syncs_and_compute)
    on_gpu = ["run.log_interval=1000", "data.val=", f"data.decoder={decoder}"]
    try:
        train(gpu_arguments, "a", *on_gpu, *overrides, "optim.epochs=3")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(batches) > 3
