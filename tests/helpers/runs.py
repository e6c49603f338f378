"""What tests of the commands share: a small run, and how two runs are compared."""

from __future__ import annotations

from pathlib import Path

import torch

from training.history import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.frames=4", "data.stride=2", "data.size=32", "data.batch=3", "data.workers=0", "data.threads=1", "data.flip=0",
    "model.name=vivit_tiny", "model.args={width: 32, depth: 2, heads: 2, drop_path: 0.2, dropout: 0.1}",
    "optim.epochs=2", "optim.warmup_epochs=0.5", "eval.clips=2", "eval.batch=2", "run.log_every=1", "run.device=cpu",
    "run.threads=1",
]  # fmt: skip
STEADY = ["model.args={width: 32, depth: 2, heads: 2}"]  # nothing that is drawn for a batch as a whole


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(folder) if r["kind"] == "train"]


def last(folder: Path) -> dict:
    return torch.load(folder / "last.pt", weights_only=True)


def same_weights(a: Path, b: Path, key: str = "network") -> bool:
    x, y = last(a)[key], last(b)[key]
    return len(x) == len(y) and all(torch.equal(x[k], y[k]) for k in x)
