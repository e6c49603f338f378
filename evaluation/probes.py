"""Tell classes by frozen features, without further training: nearest neighbors and a linear probe.

    python -m evaluation.probes train.npz test.npz [k=20] [temperature=0.07] [l2=1e-4]

Both files are written by `eval.features_path` (see `evaluation.features`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import Features
from utils.cli import parse_args, run_command


def nearest_neighbors(
    train: Features, test: Features, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Return the votes (n, classes) of the k nearest neighbors by cosine similarity.

    Each vote is weighted by exp(similarity / temperature) (DINO, appendix E).
    """
    train_x, test_x = (F.normalize(part.features, dim=1) for part in (train, test))
    votes = []
    for rows in test_x.split(1024):
        nearest = (rows @ train_x.T).topk(min(k, len(train_x)), dim=1)
        weights = F.softmax(nearest.values / temperature, dim=1)
        votes.append(torch.zeros(len(rows), num_classes).scatter_add_(1, train.label[nearest.indices], weights))
    return torch.cat(votes)


def linear_probe(train: Features, test: Features, num_classes: int, l2: float = 1e-4) -> Tensor:
    """Return the logits (n, classes) of a logistic regression on standardized features, solved by L-BFGS."""
    mean, std = train.features.mean(0), train.features.std(0).clamp_min(1e-6)
    train_x, test_x = ((part.features - mean) / std for part in (train, test))
    weight = torch.zeros(num_classes, train_x.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def loss() -> Tensor:
        solver.zero_grad()
        logits = F.linear(train_x, weight[:, 1:], weight[:, 0])
        value = F.cross_entropy(logits, train.label) + l2 * weight[:, 1:].square().sum()
        value.backward()
        return value

    solver.step(loss)
    with torch.no_grad():
        return F.linear(test_x, weight[:, 1:], weight[:, 0])


@dataclass(frozen=True)
class Settings:
    """The key=value arguments of the command."""

    k: int = 20
    temperature: float = 0.07
    l2: float = 1e-4

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0 or self.l2 < 0:
            raise ValueError("expected k of 1 or more, temperature above 0, l2 of 0 or more")


def load_pair(paths: Sequence[str]) -> tuple[Features, Features]:
    """Load the features of a training and a test list. Raises ValueError if they do not fit each other."""
    train, test = (Features.load(Path(path)) for path in paths)
    for path, part in zip(paths, (train, test), strict=True):
        if part.features.ndim != 2:
            raise ValueError(f"{path}: has tokens; expected one vector per video (eval.feature_pool=mean or cls)")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(f"{paths[1]}: {test.features.shape[1]} features, {paths[0]} has {train.features.shape[1]}")
    return train, test


def probe(argv: Sequence[str]) -> int:
    """Print the accuracy of both classifiers."""
    paths, s = parse_args(Settings, argv, ["TRAIN", "TEST"])
    train, test = load_pair(paths)
    num_classes = int(max(train.label.max(), test.label.max())) + 1
    for name, scores in (
        (f"{s.k} nearest neighbors", nearest_neighbors(train, test, num_classes, s.k, s.temperature)),
        ("linear probe", linear_probe(train, test, num_classes, s.l2)),
    ):
        correct = scores.topk(min(5, num_classes)).indices == test.label[:, None]
        top1, top5 = (100 * correct[:, :n].any(1).float().mean() for n in (1, 5))
        print(f"{name:24} top-1 {top1:.2f} %  top-5 {top5:.2f} %")
    print(f"{len(train.label)} training videos, {len(test.label)} test videos, {train.features.shape[1]} features")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    return run_command("evaluation.probes", __doc__ or "", probe, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
