"""Write what a test found: summary.json, three CSV files and the confusion matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from evaluation.multi_label import LabelResult, describe_labels, rate_classes, summarize_labels, write_label_report
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


class ShotGroup(NamedTuple):
    """The classes with a range of numbers of training videos, and the mean of their accuracies (or AP)."""

    name: str  # head, middle or tail
    train_videos: str  # more than 100
    classes: int
    mean: float


class Report(NamedTuple):
    """The content of the files of a test, and the lines to print."""

    text: str
    summary: dict[str, Any]
    per_class: list[ClassResult] | list[LabelResult]
    confusions: list[Confusion]  # the most frequent first; of several labels none
    figure: tuple[str, Figure]  # with its title


def write_report(
    output_dir: Path,
    scores: Scores,
    videos: Sequence[VideoEntry],
    classes: Sequence[str],
    settings: Mapping[str, Any],
    *,
    num_train_videos: Sequence[int] = (),
    shots: tuple[int, int] = (20, 100),
) -> Report:
    """Write summary.json, predictions.csv, per_class.csv, confusions.csv and confusion.png.

    `settings` go into the summary: num_clips and num_crops at least. If the numbers of training videos of the classes
    are known, accuracy is also that of head, middle and tail, which `shots` divide.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if scores.multi_label:
        trained = dict(zip(classes, num_train_videos, strict=False))
        return _report_labels(output_dir, scores, videos, classes, settings, trained, shots)
    columns, rows = _prediction_rows(scores, videos, classes)
    write_csv(output_dir / "predictions.csv", columns, rows)
    matrix = confusion_matrix(scores, len(classes))
    per_class, confusions = count_classes(scores, matrix, classes)
    trained = dict(zip(classes, num_train_videos, strict=False))
    class_rows = ((*r[:3], f"{r.top1:.4f}", *([trained[r.name]] if trained else [])) for r in per_class)
    class_columns = ["class", "videos", "correct", "top1", *(["train_videos"] if trained else [])]
    write_csv(output_dir / "per_class.csv", class_columns, class_rows)
    confusion_rows = ((*confusion[:3], f"{confusion.fraction:.4f}") for confusion in confusions)
    write_csv(output_dir / "confusions.csv", ["label", "predicted", "videos", "fraction_of_label"], confusion_rows)
    figure = draw_confusion(matrix, classes)
    figure.savefig(output_dir / "confusion.png", dpi=110)
    groups = group_classes({result.name: result.top1 for result in per_class}, trained, shots)
    summary = summarize(scores, settings) | {"groups": [group._asdict() for group in groups]}
    atomic_write_text(output_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    lines = _lines(scores, videos, summary, per_class, confusions)
    return Report("\n".join(lines), summary, per_class, confusions, ("Confusion", figure))


def _report_labels(  # noqa: PLR0913  # what write_report() is given
    output_dir: Path,
    scores: Scores,
    videos: Sequence[VideoEntry],
    classes: Sequence[str],
    settings: Mapping[str, Any],
    num_train_videos: Mapping[str, int],
    shots: tuple[int, int],
) -> Report:
    """Write the files of a test with several labels per video."""
    results = rate_classes(scores, classes)
    groups = group_classes({result.name: result.ap for result in results}, num_train_videos, shots)
    summary = {
        **settings,
        **_coverage(scores),
        **summarize_labels(scores, results),
        "groups": [group._asdict() for group in groups],
    }
    figure = write_label_report(output_dir, scores, videos, classes, results, summary, num_train_videos)
    worst = ", ".join(f"{r.name} {100 * r.ap:.1f} %" for r in sorted(results, key=lambda result: result.ap)[:3])
    lines = [
        f"test {summary['num_clips']}x{summary['num_crops']}: {describe_labels(summary)}",
        *([f"mean over classes{_describe_groups(summary['groups'])}"] if groups else []),
        scores.coverage(),
        *(f"  failed: {videos[index].name}: {reason}" for index, reason in sorted(scores.failed.items())),
        f"worst classes, average precision: {worst}",
    ]
    return Report("\n".join(lines), summary, results, [], ("Precision and recall", figure))


def _coverage(scores: Scores) -> dict[str, int]:
    return {
        "videos": len(scores.label),
        "scored": int(scores.scored.sum()),
        "failed": len(scores.failed),
        "padded": scores.padded,
    }


def summarize(scores: Scores, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of summary.json: settings, coverage, accuracies with their intervals, loss."""
    n, top1, top5 = len(scores.label), scores.topk(1), scores.topk(5)
    return {
        **settings,
        **_coverage(scores),
        "top1": top1,
        "top1_interval": wilson_interval(top1 * n, n),
        "top5": top5,
        "top5_interval": wilson_interval(top5 * n, n),
        "macro_top1": scores.macro_top1,
        "loss": scores.loss,
        "by_num_clips": [
            {"num_clips": count * scores.pooled_clips, "top1": top1_after, "top5": top5_after}
            for count, (top1_after, top5_after) in enumerate(scores.correct.double().mean(0).tolist(), start=1)
        ],
    }


def group_classes(
    per_class: Mapping[str, float], num_train_videos: Mapping[str, int], shots: tuple[int, int]
) -> list[ShotGroup]:
    """Group the classes that were tested by their training videos: more than shots[1], fewer than shots[0], or neither.

    `per_class` are their accuracies or average precisions, whose means those of many-, medium- and few-shot classes are
    (Liu et al., 2019). None if all classes are in one group.
    """
    groups: dict[str, list[float]] = {"head": [], "middle": [], "tail": []}
    for name, score in per_class.items():
        number = num_train_videos.get(name)
        if number is not None:
            groups["head" if number > shots[1] else "tail" if number < shots[0] else "middle"].append(score)
    low, high = shots
    ranges = {"head": f"more than {high}", "middle": f"{low} to {high}", "tail": f"fewer than {low}"}
    means = {name: sum(scores) / len(scores) for name, scores in groups.items() if scores}
    found = [ShotGroup(name, ranges[name], len(groups[name]), mean) for name, mean in means.items()]
    return found if len(found) > 1 else []


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


def _describe_groups(groups: Sequence[Mapping[str, Any]]) -> str:
    parts = (f"{g['name']} {100 * g['mean']:.2f} % ({g['classes']} of {g['train_videos']} videos)" for g in groups)
    return f"; {', '.join(parts)}" if groups else ""


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
        f"mean over classes {100 * summary['macro_top1']:.2f} %{_describe_groups(summary['groups'])}",
        scores.coverage(),
        *(f"  failed: {videos[index].name}: {reason}" for index, reason in sorted(scores.failed.items())),
        "worst classes: " + ", ".join(f"{result.name} {result.correct}/{result.videos}" for result in worst),
    ]
    if confusions:
        most = (f"{c.label} as {c.predicted} ({c.videos})" for c in confusions[:3])
        lines.append("most confused: " + ", ".join(most))
    return lines
