"""Average precision and F1 of videos with several labels, and the files of such a test.

Shapes: n videos, K classes. A video that could not be read has probability 0 of every class: it comes last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from evaluation.scores import Scores
from pipelines.data.dataset import VideoEntry
from utils.files import atomic_write_text, write_csv

THRESHOLD = 0.5  # of the probability, for precision, recall and F1
MAX_DECISIONS = 10**6  # videos times classes, up to which one curve of all of them is drawn
MAX_CURVES = 5  # of the best and of the worst classes, in a figure
SEPARATOR = " | "  # between the labels of a video in predictions.csv


class LabelResult(NamedTuple):
    """The result of a class: the videos that have it, its average precision, and the rest at the threshold."""

    name: str
    videos: int
    ap: float
    precision: float
    recall: float
    f1: float


def average_precision(scores: Tensor, target: Tensor) -> float:
    """Return the area under the precision-recall curve as a sum of steps, for scores (n,) and target (n,) of 0 and 1.

    Equal scores are one step, so that their order plays no part. Not a number without a positive.
    """
    precision, recall = precision_recall(scores, target)
    return (precision * recall.diff(prepend=recall.new_zeros(1))).sum().item() if len(recall) else float("nan")


def precision_recall(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall (m,) float64 at each of m different scores, the highest first; none without a
    positive."""
    if not target.any():
        return target.new_empty(0).double(), target.new_empty(0).double()
    scores, order = scores.sort(descending=True, stable=True)
    positives = target[order].double().cumsum(0)
    is_last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
    found, predicted = positives[is_last], torch.arange(1, len(scores) + 1)[is_last]
    return found / predicted, found / positives[-1]


def rate_classes(scores: Scores, classes: Sequence[str]) -> list[LabelResult]:
    """Return the result of each class that a video has."""
    results = []
    for index, name in enumerate(classes):
        target, probs = scores.label[:, index] > 0, scores.probs[:, index]
        if target.any():
            predicted = probs > THRESHOLD
            found, number = (predicted & target).sum().item(), predicted.sum().item()
            precision, recall = found / number if number else 0.0, found / target.sum().item()
            f1 = 2 * found / (number + target.sum().item())
            ap = average_precision(probs, target)
            results.append(LabelResult(name, int(target.sum()), ap, precision, recall, f1))
    return results


def summarize_labels(scores: Scores, results: Sequence[LabelResult]) -> dict[str, float]:
    """Return map and macro_f1, the means over the classes that occur, micro_f1 over all decisions, and loss.

    top1 and top5 are the fractions of videos with a label among the best classes (hit@1, hit@5).
    """
    predicted, target = scores.probs > THRESHOLD, scores.label > 0
    found, number = (predicted & target).sum().item(), (predicted.sum() + target.sum()).item()
    return {
        "map": sum(result.ap for result in results) / max(len(results), 1),
        "micro_f1": 2 * found / number if number else 0.0,
        "macro_f1": sum(result.f1 for result in results) / max(len(results), 1),
        "top1": scores.topk(1),
        "top5": scores.topk(5),
        "loss": scores.loss,
    }


def describe_labels(summary: Mapping[str, float]) -> str:
    """Describe the figures of summarize_labels() in a line."""
    names = {"map": "mAP", "micro_f1": "micro F1", "macro_f1": "macro F1", "top1": "hit@1", "top5": "hit@5"}
    return "  ".join(f"{name} {100 * summary[key]:.2f} %" for key, name in names.items())


def label_names(label: Tensor, classes: Sequence[str]) -> str:
    """Return the names of the labels (K,) of a video."""
    return SEPARATOR.join(classes[index] for index in label.nonzero()[:, 0].tolist())


def write_label_report(
    output_dir: Path,
    scores: Scores,
    videos: Sequence[VideoEntry],
    classes: Sequence[str],
    results: Sequence[LabelResult],
    summary: Mapping[str, Any],
    num_train_videos: Mapping[str, int],
) -> Figure:
    """Write summary.json, predictions.csv, per_class.csv and precision_recall.png; return the figure."""
    best = scores.probs.topk(min(5, len(classes)))
    rows = []
    for index, video in enumerate(videos):
        row = [video.name, label_names(scores.label[index], classes)]
        if scores.scored[index]:
            pairs = zip(best.indices[index].tolist(), best.values[index].tolist(), strict=True)
            row += ["scored", *(text for predicted, prob in pairs for text in (classes[predicted], f"{prob:.4f}"))]
        else:
            row.append(f"failed: {scores.failed.get(index, 'unknown')}")
        rows.append(row)
    numbers = range(1, best.indices.shape[1] + 1)
    columns = ["video", "label", "status", *(f"{what}{n}" for n in numbers for what in ("class", "score"))]
    write_csv(output_dir / "predictions.csv", columns, rows)
    trained = [[num_train_videos[result.name]] if num_train_videos else [] for result in results]
    class_rows = (
        [r.name, r.videos, *(f"{value:.4f}" for value in r[2:]), *t] for r, t in zip(results, trained, strict=True)
    )
    class_columns = ["class", *LabelResult._fields[1:], *(["train_videos"] if num_train_videos else [])]
    write_csv(output_dir / "per_class.csv", class_columns, class_rows)
    figure = draw_precision_recall(scores, classes, results)
    figure.savefig(output_dir / "precision_recall.png", dpi=110)
    atomic_write_text(output_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    return figure


def curve_points(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return recall and precision where the recall rises, from a recall of 0 on: the steps of the average precision."""
    precision, recall = precision_recall(scores, target)
    rises = recall.diff(prepend=recall.new_zeros(1)) > 0
    precision, recall = precision[rises], recall[rises]
    return torch.cat([recall.new_zeros(1), recall]), torch.cat([precision[:1], precision])


def draw_precision_recall(scores: Scores, classes: Sequence[str], results: Sequence[LabelResult]) -> Figure:
    """Draw precision over recall: of all decisions together, and of the best and the worst classes."""
    ranked = [result.name for result in sorted(results, key=lambda result: -result.ap)]
    shown = list(dict.fromkeys([*ranked[:MAX_CURVES], *ranked[-MAX_CURVES:]]))
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    if scores.probs.numel() <= MAX_DECISIONS:
        micro = curve_points(scores.probs.flatten(), scores.label.flatten() > 0)
        axes.step(*micro, where="pre", color="black", linewidth=2, label="all classes")
    ap = {result.name: result.ap for result in results}
    for name in shown:
        index = classes.index(name)
        points = curve_points(scores.probs[:, index], scores.label[:, index] > 0)
        axes.step(*points, where="pre", linewidth=1, label=f"{name[:40]} ({100 * ap[name]:.0f} %)")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, title="average precision", title_fontsize=8)
    return figure
