"""Tell classes by frozen features, without further training: nearest neighbors and a linear probe.

    python -m evaluation.probes train.npz test.npz [k=20] [temperature=0.07] [l2=1e-4]

Both files are written by `eval.features` (see `evaluation.features`).
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
from utils.cli import parse


def nearest_neighbours(train: Features, test: Features, classes: int, k: int = 20, temperature: float = 0.07) -> Tensor:
    """(n, classes) votes of the k nearest by cosine, each weighed by exp(cosine / temperature) (DINO, appendix E)."""
    known, asked = (F.normalize(part.features, dim=1) for part in (train, test))
    votes = []
    for rows in asked.split(1024):
        near = (rows @ known.T).topk(min(k, len(known)), dim=1)
        weights = F.softmax(near.values / temperature, dim=1)
        votes.append(torch.zeros(len(rows), classes).scatter_add_(1, train.label[near.indices], weights))
    return torch.cat(votes)


def linear_probe(train: Features, test: Features, classes: int, l2: float = 1e-4) -> Tensor:
    """(n, classes) logits of a logistic regression on features scaled to mean 0 and variance 1, solved by L-BFGS."""
    mean, std = train.features.mean(0), train.features.std(0).clamp_min(1e-6)
    known, asked = ((part.features - mean) / std for part in (train, test))
    weight = torch.zeros(classes, known.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def loss() -> Tensor:
        solver.zero_grad()
        logits = F.linear(known, weight[:, 1:], weight[:, 0])
        value = F.cross_entropy(logits, train.label) + l2 * weight[:, 1:].square().sum()
        value.backward()
        return value

    solver.step(loss)
    with torch.no_grad():
        return F.linear(asked, weight[:, 1:], weight[:, 0])


@dataclass(frozen=True)
class Settings:
    k: int = 20
    temperature: float = 0.07
    l2: float = 1e-4

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0 or self.l2 < 0:
            raise ValueError("expected k of 1 or more, a temperature above 0, l2 of 0 or more")


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 2
    try:
        paths, s = parse(Settings, words, ["TRAIN", "TEST"])
        train, test = (Features.load(Path(path)) for path in paths)
        for path, part in zip(paths, (train, test), strict=True):
            if part.features.ndim != 2:
                raise ValueError(f"{path}: holds tokens; expected one vector a video (eval.pool=mean or cls)")
        if train.features.shape[1] != test.features.shape[1]:
            raise ValueError(f"{paths[1]}: {test.features.shape[1]} features, {paths[0]} has {train.features.shape[1]}")
        classes = int(max(train.label.max(), test.label.max())) + 1
        for name, scores in (
            (f"{s.k} nearest neighbours", nearest_neighbours(train, test, classes, s.k, s.temperature)),
            ("linear probe", linear_probe(train, test, classes, s.l2)),
        ):
            best = scores.topk(min(5, classes)).indices == test.label[:, None]
            top1, top5 = (100 * best[:, :n].any(1).float().mean() for n in (1, 5))
            print(f"{name:24} top-1 {top1:.2f} %  top-5 {top5:.2f} %")
        print(f"{len(train.label)} videos known, {len(test.label)} asked, {train.features.shape[1]} features")
    except ValueError as error:
        print(f"evaluation.probes: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
