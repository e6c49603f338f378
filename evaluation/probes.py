"""Tell classes by frozen features, without further training: nearest neighbors and a linear probe, also few-shot.

    python -m evaluation.probes TRAIN TEST [k=20] [temperature=0.07] [l2=1e-4] [shots=1,5,10] [seeds=5]

TRAIN and TEST are files or folders that `eval.features_path` wrote (see `evaluation.features`); of tokens the mean of
each video is used. With `shots`, both are repeated with that many training videos of each class, drawn `seeds` times.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import Features
from pipelines.data.dataset import few_per_class
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
    mean, std = train.features.mean(0), train.features.std(0, correction=0).clamp_min(1e-6)
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
    shots: tuple[str, ...] = ()
    seeds: int = 5

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0 or self.l2 < 0:
            raise ValueError("expected k of 1 or more, temperature above 0, l2 of 0 or more")
        if self.seeds < 1 or not all(shots.isdecimal() and int(shots) for shots in self.shots):
            raise ValueError("expected shots such as 1,5,10, numbers of 1 or more, and seeds of 1 or more")


def load_pair(paths: Sequence[str]) -> tuple[Features, Features]:
    """Load the features of a training and a test list, of tokens their means.

    Raises ValueError if they do not fit each other.
    """
    train, test = (Features.load(Path(path), mean=True) for path in paths)
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(f"{paths[1]}: {test.features.shape[1]} features, {paths[0]} has {train.features.shape[1]}")
    return train, test


def score_probes(train: Features, test: Features, num_classes: int, s: Settings) -> dict[str, Tensor]:
    """Return the scores (n, classes) of both classifiers by their names."""
    return {
        f"{s.k} nearest neighbors": nearest_neighbors(train, test, num_classes, s.k, s.temperature),
        "linear probe": linear_probe(train, test, num_classes, s.l2),
    }


def top1(scores: Tensor, label: Tensor) -> float:
    """Return the accuracy in percent."""
    return 100 * (scores.argmax(1) == label).double().mean().item()


def few_shot_line(train: Features, test: Features, num_classes: int, shots: int, s: Settings) -> str:
    """Return the accuracies with few training videos of each class, mean and standard deviation over the seeds."""
    accuracies: dict[str, list[float]] = {}
    for seed in range(s.seeds):
        few = train.select(few_per_class(train.label.tolist(), shots, seed))
        for name, scores in score_probes(few, test, num_classes, s).items():
            accuracies.setdefault(name, []).append(top1(scores, test.label))
    parts = []
    for name, values in accuracies.items():
        deviation = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        parts.append(f"{name} {statistics.mean(values):.2f}{deviation} %")
    return f"{shots} per class, {s.seeds} seed{'s' * (s.seeds > 1)}: {', '.join(parts)}"


def probe(argv: Sequence[str]) -> int:
    """Print the accuracy of both classifiers."""
    paths, s = parse_args(Settings, argv, ["TRAIN", "TEST"])
    train, test = load_pair(paths)
    num_classes = int(max(train.label.max(), test.label.max())) + 1
    for name, scores in score_probes(train, test, num_classes, s).items():
        correct = scores.topk(min(5, num_classes)).indices == test.label[:, None]
        top5 = 100 * correct.any(1).double().mean().item()
        print(f"{name:24} top-1 {top1(scores, test.label):.2f} %  top-5 {top5:.2f} %")
    print(f"{len(train.label)} training videos, {len(test.label)} test videos, {train.features.shape[1]} features")
    for shots in s.shots:
        print(few_shot_line(train, test, num_classes, int(shots), s), flush=True)
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    return run_command("evaluation.probes", __doc__ or "", probe, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
