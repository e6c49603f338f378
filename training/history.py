"""Read metrics.jsonl: the best validation, the summary and the curves of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

METRIC_NAMES = {"top1": "top-1", "macro_top1": "mean over classes", "map": "mAP"}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl; a last line that was cut short by a kill is dropped."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def is_best(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metric: str = "auto") -> bool:
    """Tell whether a validation is at least as good as all earlier ones by a metric; probes have to be better."""
    earlier = max((score_of(row, metric) for row in rows if row["kind"] == "val"), default=None)
    score = score_of(metrics, metric)
    if score[0] == -math.inf:  # of a loss that is not finite
        return False
    return earlier is None or score > earlier or (score == earlier and "probe" not in metrics)


def score_of(row: Mapping[str, Any], metric: str = "auto") -> tuple[float, float]:
    """Return what validations are compared by, more is better: of probes the accuracy, then the loss.

    `metric` auto is the accuracy, of several labels the mean average precision, of a pre-training the loss. Raises
    ValueError for one that the run does not have.
    """
    name = metric if metric != "auto" else next(key for key in ("map", "top1", "loss") if key in row)
    if name not in row:
        scored = ", ".join(key for key in row if key not in ("kind", "step", "epoch", "probe"))
        raise ValueError(f"eval.metric={metric}: expected one of {scored}")
    loss = _negated(row.get("loss"))
    if name == "loss":
        return loss, 0.0
    return row[name], loss if "probe" in row else 0.0


def _negated(loss: float | None) -> float:
    return -loss if loss is not None and math.isfinite(loss) else -math.inf


def validations_since_best(rows: Sequence[Mapping[str, Any]], metric: str = "auto") -> int:
    """Count the validations after the first one with the best score."""
    scores = [score_of(row, metric) for row in rows if row["kind"] == "val"]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def summarize_run(rows: list[dict[str, Any]], keeps_last: bool = False, metric: str = "auto") -> str:
    """Summarize a finished run in one line: best epoch, time per epoch, clips/s, time spent waiting for data.

    `keeps_last`: the last network was kept rather than the best one by `metric`.
    """
    train, val = ([row for row in rows if row["kind"] == kind] for kind in ("train", "val"))
    parts = []
    if val:
        best = val[-1] if keeps_last else max(val, key=lambda row: score_of(row, metric))
        result = f"top-1 {100 * best['top1']:.2f} %" if "top1" in best else f"loss {best['loss']:.4f}"
        name = "map" if metric == "auto" and "map" in best else metric
        if name in ("macro_top1", "map"):
            first = "hit@1" if "map" in best else "top-1"
            result = f"{METRIC_NAMES[name]} {100 * best[name]:.2f} %, {result.replace('top-1', first)}"
        parts.append(f"{'last' if keeps_last else 'best'} epoch {best['epoch']}: {result}")
    seconds = sum(row["seconds"] for row in train)
    if seconds:
        waited = sum(row["data_time_frac"] * row["seconds"] for row in train) / seconds
        epochs = len({row["epoch"] for row in train})
        clips = sum(row["clips"] for row in train)
        parts.append(
            f"{epochs} epoch{'s' * (epochs > 1)} of {seconds / epochs:.1f} s, {clips / seconds:.1f} clips/s, "
            f"{100 * waited:.0f} % of the time waiting for data"
        )
    return "; ".join(parts)


def draw_curves(folder: Path) -> Path:
    """Draw curves.png from metrics.jsonl: loss and top-1 accuracy over steps, training and validation.

    Of a pre-training the second panel is the loss relative to that of predicting the mean target.
    """
    rows = read_metrics(folder)
    figure = Figure(figsize=(10, 3.6))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.15, top=0.9)
    has_top1 = any("top1" in row for row in rows)
    score, title = ("top1", "top-1, %") if has_top1 else ("relative_loss", "loss / loss of the mean target, %")
    if any("map" in row for row in rows):  # of several labels, in validations
        score, title = "map", "mAP, %"
    rows = [
        row | {"relative_loss": row["loss"] / row["baseline"]} if row.get("baseline") and row["loss"] else row
        for row in rows
    ]
    panels = zip(figure.subplots(1, 2), ("loss", score), (1, 100), ("loss", title), strict=True)
    for axes, key, scale, title in panels:
        for kind, style in (("train", {"color": "tab:blue"}), ("val", {"color": "tab:orange", "marker": "o"})):
            points = [
                (row["step"], scale * row[key]) for row in rows if row["kind"] == kind and row.get(key) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), label=kind, markersize=3, linewidth=1, **style)
        highest = max((y for line in axes.lines for y in line.get_ydata()), default=0)
        top = max(102, min(1.05 * highest, 300)) if scale == 100 else None
        axes.set(xlabel="step", title=title, ylim=(0, top))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(folder / "curves.png", dpi=110)
    return folder / "curves.png"
