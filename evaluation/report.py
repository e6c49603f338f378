"""Write what a test found: summary.json, three CSV files and the confusion matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from evaluation.scores import Scores, confusion_matrix, wilson_interval
from pipelines.data.dataset import VideoEntry
from utils.files import atomic_write_text, write_csv
from utils.plotting import draw_confusion


class ClassResult(NamedTuple):
    """The number of videos of a class, and how many of them were classified correctly."""

    name: str
    videos: int
    correct: int
    top1: float


class Confusion(NamedTuple):
    """The number of videos of a label that were classified as another class, and their fraction."""

    label: str
    predicted: str
    videos: int
    fraction: float


class Report(NamedTuple):
    """The content of the files of a test, and the lines to print."""

    text: str
    summary: dict[str, Any]
    per_class: list[ClassResult]
    confusions: list[Confusion]  # the most frequent first
    confusion_figure: Figure


def write_report(
    output_dir: Path,
    scores: Scores,
    videos: Sequence[VideoEntry],
    classes: Sequence[str],
    settings: Mapping[str, Any],
) -> Report:
    """Write summary.json, predictions.csv, per_class.csv, confusions.csv and confusion.png.

    `settings` go into the summary: num_clips and num_crops at least.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    columns, rows = _prediction_rows(scores, videos, classes)
    write_csv(output_dir / "predictions.csv", columns, rows)
    matrix = confusion_matrix(scores, len(classes))
    per_class, confusions = count_classes(scores, matrix, classes)
    class_rows = ((*result[:3], f"{result.top1:.4f}") for result in per_class)
    write_csv(output_dir / "per_class.csv", ["class", "videos", "correct", "top1"], class_rows)
    confusion_rows = ((*confusion[:3], f"{confusion.fraction:.4f}") for confusion in confusions)
    write_csv(output_dir / "confusions.csv", ["label", "predicted", "videos", "fraction_of_label"], confusion_rows)
    figure = draw_confusion(matrix, classes)
    figure.savefig(output_dir / "confusion.png", dpi=110)
    summary = summarize(scores, settings)
    atomic_write_text(output_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    lines = _lines(scores, videos, summary, per_class, confusions)
    return Report("\n".join(lines), summary, per_class, confusions, figure)


def summarize(scores: Scores, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of summary.json: settings, coverage, accuracies with their intervals, loss."""
    n, top1, top5 = len(scores.label), scores.topk(1), scores.topk(5)
    return {
        **settings,
        "videos": n,
        "scored": int(scores.scored.sum()),
        "failed": len(scores.failed),
        "padded": scores.padded,
        "top1": top1,
        "top1_interval": wilson_interval(top1 * n, n),
        "top5": top5,
        "top5_interval": wilson_interval(top5 * n, n),
        "loss": scores.loss,
        "by_num_clips": [
            {"num_clips": count * scores.pooled_clips, "top1": top1_after, "top5": top5_after}
            for count, (top1_after, top5_after) in enumerate(scores.correct.double().mean(0).tolist(), start=1)
        ],
    }


def count_classes(scores: Scores, matrix: Tensor, classes: Sequence[str]) -> tuple[list[ClassResult], list[Confusion]]:
    """Count the results of each class that occurs, and the confusions, the most frequent first."""
    correct = matrix.diagonal()
    total = torch.bincount(scores.label, minlength=len(classes)).tolist()
    per_class = [
        ClassResult(classes[i], total[i], int(correct[i]), int(correct[i]) / total[i])
        for i in range(len(classes))
        if total[i]
    ]
    pairs = (matrix - correct.diag()).nonzero().tolist()
    counts = sorted(((int(matrix[label, predicted]), label, predicted) for label, predicted in pairs), reverse=True)
    confusions = [Confusion(classes[a], classes[b], count, count / total[a]) for count, a, b in counts]
    return per_class, confusions


def _prediction_rows(
    scores: Scores, videos: Sequence[VideoEntry], classes: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    best = scores.probs.topk(min(5, len(classes)))
    rows = []
    for i, video in enumerate(videos):
        label = classes[video.label]
        if scores.scored[i]:
            predictions = zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True)
            cells = [text for predicted, prob in predictions for text in (classes[predicted], f"{prob:.4f}")]
            rows.append([video.name, label, "scored", *cells])
        else:
            rows.append([video.name, label, f"failed: {scores.failed.get(i, 'unknown')}"])
    numbers = range(1, best.indices.shape[1] + 1)
    return ["video", "label", "status", *(f"{what}{i}" for i in numbers for what in ("class", "score"))], rows


def _lines(
    scores: Scores,
    videos: Sequence[VideoEntry],
    summary: Mapping[str, Any],
    per_class: Sequence[ClassResult],
    confusions: Sequence[Confusion],
) -> list[str]:
    low, high = (100 * bound for bound in summary["top1_interval"])
    views = f"{summary['num_clips']}x{summary['num_crops']}"
    top1, top5 = 100 * summary["top1"], 100 * summary["top5"]
    worst = sorted(per_class, key=lambda result: result.top1)[:3]
    lines = [
        f"test {views}: top-1 {top1:.2f} % (95 %: {low:.1f}-{high:.1f})  top-5 {top5:.2f} %",
        scores.coverage(),
        *(f"  failed: {videos[index].name}: {reason}" for index, reason in sorted(scores.failed.items())),
        "worst classes: " + ", ".join(f"{result.name} {result.correct}/{result.videos}" for result in worst),
    ]
    if confusions:
        most = (f"{c.label} as {c.predicted} ({c.videos})" for c in confusions[:3])
        lines.append("most confused: " + ", ".join(most))
    return lines
