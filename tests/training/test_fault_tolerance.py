"""Runs lose nothing: real processes that are killed, stopped, or run out of disk, and what they resume from."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from configs import loading
from tests.helpers.runs import (
    NO_DROPOUT,
    has_same_weights,
    last_checkpoint,
    losses,
    metrics,
    python_command,
    run,
    start,
    train,
    wait_for_line,
)
from training.run_dir import RunDir, find_checkpoint

LONG = ["optim.epochs=12", "optim.ema_decay=0.9", "optim.global_batch_size=6", "data.mixup=0.8", "data.num_workers=1"]


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_bit_identical(arguments, tmp_path):
    """kill -9 comes in steps, while saving and in validation."""
    arguments = [*arguments, *LONG, "run.checkpoint_minutes=0.005"]
    run(python_command([*arguments, "run.name=whole"]))
    rng, kills = random.Random(0), 0
    while kills < 6:
        process = start(python_command([*arguments, "run.name=parts"]))
        wait_for_line(process, "steps per epoch")
        time.sleep(rng.uniform(0, 1.2))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    run(python_command([*arguments, "run.name=parts"]))
    assert kills >= 2, "the run is too short for this test"
    expected, actual = tmp_path / "whole", tmp_path / "parts"
    assert has_same_weights(actual, expected)
    assert has_same_weights(actual, expected, "ema")
    assert losses(actual) == losses(expected)
    assert metrics(actual, "val") == metrics(expected, "val")
    assert not list(actual.glob(".*.tmp")), "leftovers of a kill are removed"


def test_full_disk_costs_checkpoints_but_not_the_run(arguments, monkeypatch, capsys):
    save, paths = torch.save, []

    def fail_second_and_third(state, path):
        paths.append(path)
        if len(paths) in (2, 3):
            Path(path).write_bytes(b"half")
            message = "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"
            raise RuntimeError(message) from OSError(28, "x")
        save(state, path)

    monkeypatch.setattr(torch, "save", fail_second_and_third)
    run_dir = train(arguments, "a", "optim.epochs=4", "data.val=")
    out = capsys.readouterr().out
    assert out.count("last.pt: cannot be written") == 1 and "training continues" in out
    assert last_checkpoint(run_dir)["step"] == 16 and not list(run_dir.glob(".*.tmp"))

    def fail(*values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    train(arguments, "a", "optim.epochs=5", "data.val=", status=1)
    out = capsys.readouterr().out
    assert "last.pt: cannot be written: No space left on device" in out
    assert "not everything could be written: last.pt" in out
    assert last_checkpoint(run_dir)["step"] == 16, "the checkpoint before is kept"


@pytest.mark.slow
def test_disk_without_room_for_checkpoints_is_reported_at_the_end(arguments, tmp_path):
    """Every file is limited to a size that neither a checkpoint nor the network fits into."""
    limit = 60_000
    process = start(
        python_command([*arguments, "run.name=a", "optim.epochs=3"]),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in out, out
    assert "step 12/12" in out and "last.pt: cannot be written" in out and "best: cannot be written" in out
    run_dir = tmp_path / "a"
    assert not list(run_dir.glob("**/.*.tmp")) and not (run_dir / "last.pt").exists()
    assert len(losses(run_dir)) == 12


def test_unreadable_checkpoint_falls_back_to_the_previous_one(arguments, capsys):
    expected = train(arguments, "whole")
    run_dir = train(arguments, "a", "optim.epochs=2")
    content = (run_dir / "last.pt").read_bytes()
    (run_dir / "last.pt").write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    train(arguments, "a")
    out = capsys.readouterr().out
    assert "last.pt: not a readable checkpoint" in out and "resuming from previous.pt instead" in out
    assert f"resumed from {run_dir}/previous.pt: 1 epochs done, step 4" in out
    assert has_same_weights(run_dir, expected) and losses(run_dir) == losses(expected)


def test_missing_checkpoint_falls_back_to_the_previous_one(arguments):
    run_dir = train(arguments, "a")
    (run_dir / "last.pt").unlink()  # as if it was killed between two renames
    checkpoint = find_checkpoint(loading.load_config(None, [*arguments, "run.name=a"]).run)
    assert checkpoint and checkpoint[0].name == "previous.pt"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard writes in a thread
def test_deleted_run_folder_is_reported_once_per_file(arguments, capsys):
    run_dir = RunDir(loading.load_config(None, [*arguments, "run.name=a"]).run)
    run_dir.record("train", 1, loss=1.0)
    shutil.rmtree(run_dir.path)
    for step in (2, 3):
        run_dir.record("train", step, loss=1.0)
        run_dir.save_last({})
        run_dir.draw_curves()
    out = capsys.readouterr().out
    for name in ("metrics.jsonl", "last.pt", "curves.png"):
        assert out.count(f"{name}: cannot be written") == 1
    run_dir.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_a_process_with_a_checkpoint(arguments, tmp_path, number):
    process = start(
        python_command([*arguments, *NO_DROPOUT, *LONG, "optim.epochs=300", "run.name=a"]), start_new_session=True
    )
    wait_for_line(process, "step 2/", "epoch 2 ")
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "stopped by" in out
    step = last_checkpoint(tmp_path / "a")["step"]
    assert f"at step {step}" in out and 2 <= step < 600
