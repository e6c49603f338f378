"""Read metrics.jsonl: the best validation, the summary and the curves of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


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


def is_best(metrics: dict[str, float], rows: list[dict]) -> bool:
    """Tell whether a validation is at least as good as all earlier ones; of probes better, or equal with less loss."""
    earlier = [row for row in rows if row["kind"] == "val"]
    if "probe" in metrics:
        return all(_probe_score(metrics) > _probe_score(row) for row in earlier)
    if "top1" in metrics:
        return metrics["top1"] >= max((row["top1"] for row in earlier), default=0)
    return metrics["loss"] <= min((row["loss"] for row in earlier if row["loss"] is not None), default=math.inf)


def _probe_score(row: dict[str, Any]) -> tuple[float, float]:
    """Return what probes are compared by: the accuracy, then the loss."""
    loss = row["loss"]
    return row["top1"], -loss if loss is not None and math.isfinite(loss) else -math.inf


def summarize_run(rows: list[dict[str, Any]], keeps_last: bool = False) -> str:
    """Summarize a finished run in one line: best epoch, time per epoch, clips/s, time spent waiting for data.

    `keeps_last`: the last network was kept rather than the best one.
    """
    train, val = ([row for row in rows if row["kind"] == kind] for kind in ("train", "val"))
    parts = []
    if any("top1" in row for row in val):
        best = max(val, key=_probe_score if "probe" in val[0] else lambda row: row["top1"])
        parts.append(f"best epoch {best['epoch']}: top-1 {100 * best['top1']:.2f} %")
    elif val:
        best = val[-1] if keeps_last else min(val, key=lambda row: math.inf if row["loss"] is None else row["loss"])
        parts.append(f"{'last' if keeps_last else 'best'} epoch {best['epoch']}: loss {best['loss']:.4f}")
    seconds = sum(row["seconds"] for row in train)
    if seconds:
        waited = sum(row["data_time_frac"] * row["seconds"] for row in train) / seconds
        epochs = len({row["epoch"] for row in train})
        clips = sum(row["clips"] for row in train)
        parts.append(
            f"{epochs} epochs of {seconds / epochs:.1f} s, {clips / seconds:.1f} clips/s, "
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
            axes.plot(
                *zip(*points, strict=True) if points else ((), ()), label=kind, markersize=3, linewidth=1, **style
            )
        highest = max((y for line in axes.lines for y in line.get_ydata()), default=0)
        top = max(102, min(1.05 * highest, 300)) if scale == 100 else None
        axes.set(xlabel="step", title=title, ylim=(0, top))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / "curves.png", dpi=110)
    return folder / "curves.png"
