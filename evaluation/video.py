"""What one video is taken for, or each of a folder: lines, a picture, a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from configs import loading
from pipelines.sliding_window import windows
from utils.device import autocast
from utils.files import write_csv
from utils.plotting import draw_rows


class Slide(NamedTuple):
    """Of a video, clip by clip: its seconds, its middle frame (H, W, 3), its class probabilities (clips, classes)."""

    spans: list[tuple[float, float]]
    pictures: list[np.ndarray]
    scores: Tensor


class Guess(NamedTuple):
    """A class, its mean probability over a video's clips, and the clip that shows it best: seconds, probability."""

    name: str
    score: float
    start: float
    end: float
    peak: float


def best_classes(scores: Tensor, spans: Sequence[tuple[float, float]], classes: Sequence[str]) -> list[Guess]:
    """The best five; `scores` (clips, classes) are probabilities of clips, `spans` their seconds."""
    mean = scores.mean(0)
    found = []
    for number in mean.topk(min(5, len(classes))).indices.tolist():
        at = int(scores[:, number].argmax())
        start, end = spans[at]
        found.append(Guess(classes[number], mean[number].item(), start, end, scores[at, number].item()))
    return found


def classify_video(slide: Slide, classes: Sequence[str], path: Path, folder: Path) -> str:
    """The five best classes and when each is seen best, with a picture of at most ten clips."""
    spans, pictures, scores = slide
    lines = [f"{path}: {spans[-1][1]:.1f} s, {len(spans)} clips"]
    for guess in best_classes(scores, spans, classes):
        when = f"most at {guess.start:.2f}-{guess.end:.2f} s: {100 * guess.peak:.1f} %"
        lines.append(f"  {100 * guess.score:5.1f} %  {guess.name}  ({when})")
    few = np.linspace(0, len(spans) - 1, min(len(spans), 10)).round().astype(int).tolist()
    best = [f"{classes[int(scores[n].argmax())]} {100 * scores[n].max():.0f} %" for n in few]
    titles = [f"{spans[n][0]:.1f}-{spans[n][1]:.1f} s\n{name}" for n, name in zip(few, best, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    draw_rows([[pictures[n] for n in few]], titles).savefig(folder / f"{path.name}.png", dpi=90)
    return "\n".join([*lines, f"written: {folder / path.name}.png"])


def classify_all(score: Callable[[str], Slide], classes: Sequence[str], files: Sequence[Path], table: Path) -> str:
    """A table of videos: the five best classes of each, and when each is seen best."""
    rows: list[list[Any]] = []
    for file in tqdm(files, desc="videos", leave=False, disable=not sys.stderr.isatty()):
        try:
            spans, _, scores = score(str(file))
        except ValueError as error:
            rows.append([file, str(error).removeprefix(f"{file}: ")])
            continue
        best = best_classes(scores, spans, classes)
        shown = [f for g in best for f in (g.name, f"{g.score:.4f}", f"{g.start:.2f}", f"{g.end:.2f}", f"{g.peak:.4f}")]
        rows.append([file, "scored", f"{spans[-1][1]:.2f}", *shown])
    kinds = ("class", "score", "from", "to", "peak")
    names = [f"{kind}{n + 1}" for n in range(min(5, len(classes))) for kind in kinds]
    table.parent.mkdir(parents=True, exist_ok=True)
    write_csv(table, ["video", "state", "seconds", *names], rows)
    return f"{len(rows)} videos, {sum(len(row) == 2 for row in rows)} could not be read\nwritten: {table}"


@torch.inference_mode()
def score_video(network: nn.Module, cfg: loading.Config, path: str, device: torch.device, dtype: torch.dtype) -> Slide:
    """The clips that slide over a video, each the mean over its views."""
    spans, pictures, scores = [], [], []
    for window in windows(path, cfg):
        with autocast(device, dtype):
            logits = network(window.views.to(device))
        scores.append(F.softmax(logits.float(), dim=-1).mean(0).cpu())
        spans.append((window.start, window.end))
        pictures.append(window.picture)
    return Slide(spans, pictures, torch.stack(scores))
