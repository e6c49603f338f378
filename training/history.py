"""Read metrics.jsonl: the best validation, the summary of a run, its curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut short by a kill is dropped."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def is_best(found: dict[str, float], rows: list[dict]) -> bool:
    """Whether a validation is at least as good as all before."""
    before = [row for row in rows if row["kind"] == "val"]
    if "top1" in found:
        return found["top1"] >= max((row["top1"] for row in before), default=0)
    return found["loss"] <= min((row["loss"] for row in before if row["loss"] is not None), default=math.inf)


def summary(rows: list[dict[str, Any]]) -> str:
    """A finished run in a line: its best epoch, time an epoch, clips/s, share of waiting."""
    train, val = ([row for row in rows if row["kind"] == kind] for kind in ("train", "val"))
    parts = []
    if any("top1" in row for row in val):
        best = max(val, key=lambda row: row["top1"])
        parts.append(f"best epoch {best['epoch']}: top-1 {100 * best['top1']:.2f} %")
    elif val:
        best = min(val, key=lambda row: math.inf if row["loss"] is None else row["loss"])
        parts.append(f"best epoch {best['epoch']}: loss {best['loss']:.4f}")
    seconds = sum(row["seconds"] for row in train)
    if seconds:
        waited = sum(row["data"] * row["seconds"] for row in train) / seconds
        epochs = len({row["epoch"] for row in train})
        clips = sum(row["clips"] for row in train)
        parts.append(f"{epochs} epochs of {seconds / epochs:.1f} s, {clips / seconds:.1f} clips/s, "
                     f"{100 * waited:.0f} % of the time waiting for data")  # fmt: skip
    return "; ".join(parts)


def draw_curves(folder: Path) -> Path:
    """curves.png from metrics.jsonl: loss and top-1 accuracy (of a pre-training the loss's share of the mean HOG's)
    over steps, training and validation."""
    rows = read_metrics(folder)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    score, title = ("top1", "top-1, %") if any("top1" in row for row in rows) else ("share", "loss / mean HOG's, %")
    rows = [
        row | {"share": row["loss"] / row["baseline"]} if row.get("baseline") and row["loss"] else row for row in rows
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
        axes.set(xlabel="step", title=title, ylim=(0, 102 if scale == 100 else None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / "curves.png", dpi=110)
    return folder / "curves.png"
