"""Tiny runs of train.py and eval.py for tests, in this process or under torchrun, and how runs are compared."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ROOT
from training.history import read_metrics
from training.metrics import StepMetrics

TINY_RUN = [
    "data.num_frames=4",
    "data.frame_stride=2",
    "data.image_size=32",
    "data.batch_size=3",
    "data.num_workers=0",
    "data.dali_threads=1",
    "data.hflip=0",
    "model.name=vivit_tiny",
    "model.args={embed_dim: 32, depth: 2, num_heads: 2, drop_path: 0.2, dropout: 0.1}",
    "optim.epochs=2",
    "optim.warmup_epochs=0.5",
    "eval.num_clips=2",
    "eval.batch_size=2",
    "run.log_interval=1",
    "run.device=cpu",
    "run.cpu_threads=1",
]
# Dropout is drawn for a batch as a whole, so runs with other batches or ranks only compare without it.
NO_DROPOUT = ["model.args={embed_dim: 32, depth: 2, num_heads: 2}"]
MASKFEAT = ["task.name=maskfeat", "model.name=maskfeat_tiny", "model.args={}"]
ONE_EPOCH = ["optim.epochs=1", "optim.warmup_epochs=0"]


def train(arguments: Sequence[str], name: str, *overrides: str, status: int = 0) -> Path:
    """Run train.py in this process, check its exit status and return the run folder."""
    import train as train_command  # here, because most tests need no command

    assert train_command.main([*arguments, f"run.name={name}", *overrides]) == status
    output_dir = next(a for a in arguments if a.startswith("run.output_dir=")).partition("=")[2]
    return Path(output_dir) / name


def evaluate(run_dir: Path, *overrides: str, status: int = 0) -> Path:
    """Run eval.py in this process, check its exit status and return the folder of a test with the tiny run's views."""
    import eval as eval_command  # here, because most tests need no command

    assert eval_command.main([str(run_dir), *overrides]) == status
    return run_dir / "eval" / "2x3"


def python_command(arguments: Sequence[str], script: str = "train.py") -> list[str]:
    """Return the command line that runs a script."""
    return [sys.executable, script, *arguments]


def torchrun_command(
    arguments: Sequence[str], script: str = "train.py", *, num_processes: int = 2, options: Sequence[str] = ()
) -> list[str]:
    """Return the command line that runs a script in several processes; `options` are torchrun's."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return [*launcher, *options, script, *arguments]


def run(command: Sequence[str], cwd: Path = ROOT) -> str:
    """Run a command line in a folder, check that it succeeds and return its output."""
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a command line in the repository; its output is piped."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options,
    )


def wait_for_line(process: subprocess.Popen[str], *texts: str) -> None:
    """Read the output of a process up to a line that contains one of the texts."""
    assert process.stdout
    for line in process.stdout:
        if any(text in line for text in texts):
            return


def assert_resumed_run_is_bit_identical(
    arguments: Sequence[str], *overrides: str, monkeypatch: pytest.MonkeyPatch, batches: int = 3
) -> Path:
    """Compare a run that a signal stops, and that goes on with workers, with one that is not; return its folder."""
    expected = train(arguments, "whole", *overrides)
    update, done = StepMetrics.update, []

    def update_and_stop(self: StepMetrics, *values: Any) -> None:
        update(self, *values)
        done.append(1)
        if len(done) == batches:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StepMetrics, "update", update_and_stop)
        train(arguments, "parts", *overrides, status=128 + signal.SIGTERM)
    actual = train(arguments, "parts", *overrides, "data.num_workers=2")
    assert losses(actual) == losses(expected)
    assert has_same_weights(actual, expected)
    assert metrics(actual, "val") == metrics(expected, "val")
    return actual


def assert_two_processes_equal_one(arguments: Sequence[str], *overrides: str, parallel: str) -> None:
    """Compare a run of two processes with one of a process, with the same clips in each step of four."""
    plain = [*arguments, *overrides, "optim.global_batch_size=4", "optim.epochs=3"]
    expected = train(plain, "one", "data.batch_size=4")
    run(torchrun_command([*plain, "run.name=two", "data.batch_size=2", f"run.parallel={parallel}"]))
    actual = expected.parent / "two"
    for (_, loss, norm), (_, expected_loss, expected_norm) in zip(losses(actual), losses(expected), strict=True):
        assert loss == pytest.approx(expected_loss, abs=1e-5) and norm == pytest.approx(expected_norm, abs=1e-4)
    weights, expected_weights = (last_checkpoint(run_dir)["network"] for run_dir in (actual, expected))
    assert weights.keys() == expected_weights.keys()
    assert all(torch.allclose(weights[name], expected_weights[name], atol=2e-4) for name in weights)


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    """Return step, loss and gradient norm of every training row."""
    return [(row["step"], row["loss"], row["grad_norm"]) for row in metrics(run_dir, "train")]


def metrics(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl of a kind, train or val."""
    return [row for row in read_metrics(run_dir) if row["kind"] == kind]


def last_checkpoint(run_dir: Path) -> dict[str, Any]:
    """Load last.pt."""
    return torch.load(run_dir / "last.pt", weights_only=True)


def has_same_weights(run_dir: Path, other_run_dir: Path, key: str = "network") -> bool:
    """Compare the weights of two last.pt bit for bit; `key` ema compares their averages."""
    weights, other = last_checkpoint(run_dir)[key], last_checkpoint(other_run_dir)[key]
    return len(weights) == len(other) and all(torch.equal(weights[name], other[name]) for name in weights)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
