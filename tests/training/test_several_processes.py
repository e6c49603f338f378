"""Runs of several processes: equal to one process with the same clips, stopped together, resumed on other numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT
from tests.helpers.runs import (
    NO_DROPOUT,
    has_same_weights,
    last_checkpoint,
    losses,
    metrics,
    python_command,
    run,
    start,
    torchrun_command,
    train,
    wait_for_line,
)

# A script that runs train.py with a replacement of Classify.__call__.
SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, os.getcwd())
import train
from training.tasks import Classify
call = Classify.__call__
def spy(self, network, batch):
    {body}
    return call(self, network, batch)
Classify.__call__ = spy
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_the_same_clips(arguments, tmp_path, parallel):
    """21 steps of two batches each: losses to 1e-5; sharded (FSDP2) too, which also resumes."""
    plain = [*arguments, *NO_DROPOUT, "optim.global_batch_size=4", "optim.epochs=7", "optim.name=adamw"]
    expected = train(plain, "one", "data.batch_size=4")
    two = [*plain, "data.batch_size=1", f"run.parallel={parallel}"]
    run(torchrun_command([*two, "run.name=two", "optim.epochs=4", "optim.warmup_epochs=0.5"]))
    assert "resumed from" in run(torchrun_command([*two, "run.name=two"]))
    out = run(torchrun_command([*two, "run.name=three"]))
    assert "3 steps per epoch, each of 4 clips (2 processes x 2 batches)" in out
    actual = tmp_path / "three"
    validations, expected_validations = (
        [(row["step"], row["loss"]) for row in metrics(run_dir, "val")] for run_dir in (actual, expected)
    )
    assert expected_validations == [pytest.approx(row, abs=1e-5) for row in validations]
    assert len(losses(actual)) == 21
    for (_, loss, norm), (_, expected_loss, expected_norm) in zip(losses(actual), losses(expected), strict=True):
        assert loss == pytest.approx(expected_loss, abs=1e-5), "a training loss is the mean over the processes"
        assert norm == pytest.approx(expected_norm, abs=1e-4)
    weights, expected_weights = (last_checkpoint(run_dir)["network"] for run_dir in (actual, expected))
    assert weights.keys() == expected_weights.keys()
    assert all(torch.allclose(weights[name], expected_weights[name], atol=2e-4) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_all_processes_with_a_checkpoint(arguments, tmp_path, number):
    overrides = ["optim.epochs=300", "optim.ema_decay=0.9", "optim.global_batch_size=6", "data.mixup=0.8"]
    command = torchrun_command([*arguments, *NO_DROPOUT, *overrides, "data.num_workers=1", "run.name=a"])
    process = start(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for_line(process, "step 2/", "epoch 2 ")
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "stopped by" in out
    step = last_checkpoint(tmp_path / "a")["step"]
    assert f"at step {step}" in out and 2 <= step < 600


@pytest.mark.slow
def test_processes_stop_long_before_torchrun_kills_them(arguments, tmp_path):
    """torchrun sends SIGKILL after 30 s; log lines are much further apart here."""
    script, list_path = tmp_path / "spy.py", Path(arguments[0].partition("=")[2])
    list_path.write_text(10 * list_path.read_text())
    script.write_text(SCRIPT.format(body="time.sleep(0.7)"))
    overrides = ["data.val=", "data.batch_size=1", "run.name=a", "run.log_interval=1000"]
    command = torchrun_command([*arguments, *NO_DROPOUT, *overrides], str(script))
    process = start(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for_line(process, "steps per epoch")
    time.sleep(4)
    os.killpg(process.pid, signal.SIGTERM)
    signaled_at = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - signaled_at < 20 and "stopped by SIGTERM" in out
    assert 1 <= last_checkpoint(tmp_path / "a")["step"] < 60


@pytest.mark.slow
def test_resume_on_another_world_size_skips_seen_samples(arguments, tmp_path):
    seen, script = tmp_path / "seen.txt", tmp_path / "spy.py"
    note = f"open({str(seen)!r}, 'a').write(' '.join(map(str, batch.sample_index.tolist())) + '\\n')"
    stop = "if os.environ.get('STOP'): os.kill(os.getpid(), signal.SIGTERM)"
    script.write_text(SCRIPT.format(body=f"{note}\n    {stop}"))
    overrides = ["data.val=", "optim.epochs=1", "optim.warmup_epochs=0", "run.name=a"]
    plain = [*arguments, *NO_DROPOUT, *overrides, "data.batch_size=2", "optim.global_batch_size=4"]
    command = python_command(plain, str(script))
    stopped = subprocess.run(command, cwd=ROOT, env=os.environ | {"STOP": "1"}, capture_output=True, timeout=100)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert len(seen.read_text().split()) == 4
    run(torchrun_command(plain, str(script)))
    samples = seen.read_text().split()
    assert len(samples) == len(set(samples)) == 12, "12 of 13 samples, none twice"
    assert last_checkpoint(tmp_path / "a")["step"] == 3


@pytest.mark.slow
def test_killed_rank_is_restarted_by_torchrun_and_the_run_ends_bit_identical(arguments, tmp_path):
    """With torchrun --max-restarts."""
    plain = [*arguments, *NO_DROPOUT, "optim.epochs=6", "data.batch_size=2"]
    run(torchrun_command([*plain, "run.name=whole"]))
    command = torchrun_command([*plain, "run.name=a", "run.resume=no"], options=["--max-restarts=2"])
    process = start(command, stderr=subprocess.DEVNULL)
    assert process.stdout
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "epoch 3 " in line and not any("resumed" in earlier for earlier in lines):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ranks = [pid for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(int(ranks[-1]), signal.SIGKILL)
    assert process.wait(timeout=120) == 0, lines[-5:]
    assert any("resumed from" in line for line in lines)
    assert has_same_weights(tmp_path / "a", tmp_path / "whole")
