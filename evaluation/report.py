"""What a test found: the scores of each video, and the files and lines that are made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evaluation.scores import Scores, confusion, interval
from utils.files import replace_text, write_csv
from utils.plotting import draw_confusion


class Report(NamedTuple):
    """What was written of a test, and the lines to print."""

    text: str
    summary: dict[str, Any]
    per_class: list[tuple[str, int, int, float]]  # class, videos, right, top-1
    confusions: list[tuple[str, str, int, float]]  # label, predicted, videos, share of the label's; the most first


def write_report(
    folder: Path, scores: Scores, clips: Sequence[tuple[str, int]], classes: Sequence[str], about: dict[str, Any]
) -> Report:
    """summary.json, predictions.csv, per_class.csv, confusions.csv and confusion.png in `folder`. `about` (views, how
    scores are averaged, ...) goes into the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    best = scores.probability.topk(min(5, len(classes)))
    rows = []
    for row, (path, label) in enumerate(clips):
        guesses = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
        named = [text for number, share in guesses for text in (classes[number], f"{share:.4f}")]
        state = "scored" if scores.scored[row] else f"failed: {scores.failed.get(row, 'unknown')}"
        rows.append([path, classes[label], state, *(named if scores.scored[row] else [])])
    guess_columns = [f"{what}{i + 1}" for i in range(best.indices.shape[1]) for what in ("class", "score")]
    write_csv(folder / "predictions.csv", ["video", "label", "state", *guess_columns], rows)

    matrix = confusion(scores, len(classes))
    right = matrix.diagonal()
    total = torch.bincount(scores.label, minlength=len(classes))
    per_class = [(classes[n], int(total[n]), int(right[n]), int(right[n]) / int(total[n]))
                 for n in range(len(classes)) if total[n]]  # fmt: skip
    wrong = sorted(((int(matrix[a, b]), a, b) for a, b in (matrix - right.diag()).nonzero().tolist()), reverse=True)
    confusions = [(classes[a], classes[b], count, count / int(total[a])) for count, a, b in wrong]
    write_csv(folder / "per_class.csv", ["class", "videos", "right", "top1"],
              ((*row[:3], f"{row[3]:.4f}") for row in per_class))  # fmt: skip
    write_csv(folder / "confusions.csv", ["label", "predicted", "videos", "share of the label's"],
              ((*row[:3], f"{row[3]:.4f}") for row in confusions))  # fmt: skip
    draw_confusion(matrix, classes).savefig(folder / "confusion.png", dpi=110)

    n = len(clips)
    top = {k: scores.topk(k) for k in (1, 5)}
    summary = {
        **about, "videos": n, "scored": int(scores.scored.sum()), "failed": len(scores.failed), "padded": scores.padded,
        "top1": top[1], "top1_interval": interval(top[1] * n, n), "top5": top[5],
        "top5_interval": interval(top[5] * n, n), "loss": scores.loss,
        "by_clips": [{"clips": c + 1, "top1": one, "top5": five}
                     for c, (one, five) in enumerate(scores.hits.double().mean(0).tolist())],
    }  # fmt: skip
    replace_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    worst = sorted(per_class, key=lambda row: row[3])[:3]
    low, high = (100 * bound for bound in summary["top1_interval"])
    lines = [
        f"test {about['views']}: top-1 {100 * top[1]:.2f} % (95 %: {low:.1f}-{high:.1f})  top-5 {100 * top[5]:.2f} %",
        scores.coverage(),
        *(f"  failed: {clips[row][0]}: {why}" for row, why in sorted(scores.failed.items())),
        "worst classes: " + ", ".join(f"{name} {hits}/{videos}" for name, videos, hits, _ in worst),
    ]
    if confusions:
        lines.append("most confused: " + ", ".join(f"{a} for {b} ({count})" for b, a, count, _ in confusions[:3]))
    return Report("\n".join(lines), summary, per_class, confusions)
