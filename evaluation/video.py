"""Classify one video of any length, or all videos of a folder: lines, a figure, a table."""

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

from configs.schema import Data, Eval
from pipelines.sliding_window import windows
from utils.device import autocast
from utils.files import write_csv
from utils.plotting import draw_rows

MAX_FRAMES = 10  # in the figure of a video


class VideoScores(NamedTuple):
    """The clips of a video: seconds, middle frames (H, W, 3), class probabilities (clips, classes)."""

    spans: list[tuple[float, float]]
    frames: list[np.ndarray]
    probs: Tensor


class ClassPrediction(NamedTuple):
    """A class, its mean probability over the clips of a video, and the clip in which it is most probable."""

    name: str
    prob: float
    start: float  # seconds
    end: float
    peak_prob: float


@torch.inference_mode()
def score_video(
    network: nn.Module, path: str, data: Data, test: Eval, device: torch.device, dtype: torch.dtype
) -> VideoScores:
    """Score overlapping clips of a video, each as the mean over its views."""
    spans, frames, probs = [], [], []
    for window in windows(path, data, test):
        with autocast(device, dtype):
            logits = network(window.views.to(device)).float()
        views = logits.sigmoid() if data.multi_label else F.softmax(logits, dim=-1)
        probs.append(views.mean(0).cpu())
        spans.append((window.start, window.end))
        frames.append(window.frame)
    return VideoScores(spans, frames, torch.stack(probs))


def best_classes(scores: VideoScores, classes: Sequence[str]) -> list[ClassPrediction]:
    """Return the five most probable classes of a video."""
    mean = scores.probs.mean(0)
    predictions = []
    for index in mean.topk(min(5, len(classes))).indices.tolist():
        clip = int(scores.probs[:, index].argmax())
        start, end = scores.spans[clip]
        predictions.append(
            ClassPrediction(classes[index], mean[index].item(), start, end, scores.probs[clip, index].item())
        )
    return predictions


def classify_video(scores: VideoScores, classes: Sequence[str], path: Path, output_dir: Path) -> str:
    """Return the five best classes and when each is most probable, and write a figure of at most ten clips."""
    spans, frames, probs = scores
    lines = [f"{path}: {spans[-1][1]:.1f} s, {len(spans)} clips"]
    for p in best_classes(scores, classes):
        peak = f"most at {p.start:.2f}-{p.end:.2f} s: {100 * p.peak_prob:.1f} %"
        lines.append(f"  {100 * p.prob:5.1f} %  {p.name}  ({peak})")
    clips = np.linspace(0, len(spans) - 1, min(len(spans), MAX_FRAMES)).round().astype(int).tolist()
    titles = []
    for clip in clips:
        (start, end), best = spans[clip], int(probs[clip].argmax())
        titles.append(f"{start:.1f}-{end:.1f} s\n{classes[best]} {100 * probs[clip, best]:.0f} %")
    output_dir.mkdir(parents=True, exist_ok=True)
    draw_rows([[frames[clip] for clip in clips]], titles).savefig(output_dir / f"{path.name}.png", dpi=90)
    return "\n".join([*lines, f"written: {output_dir / path.name}.png"])


def classify_videos(
    score: Callable[[str], VideoScores], classes: Sequence[str], paths: Sequence[Path], csv_path: Path
) -> str:
    """Write a table of videos: the five best classes of each, and when each is most probable. Returns a summary."""
    rows: list[list[Any]] = []
    for path in tqdm(paths, desc="videos", leave=False, disable=not sys.stderr.isatty()):
        try:
            scores = score(str(path))
        except ValueError as error:
            rows.append([path, str(error).removeprefix(f"{path}: ")])
            continue
        row = [path, "scored", f"{scores.spans[-1][1]:.2f}"]
        for p in best_classes(scores, classes):
            row += [p.name, f"{p.prob:.4f}", f"{p.start:.2f}", f"{p.end:.2f}", f"{p.peak_prob:.4f}"]
        rows.append(row)
    numbers = range(1, min(5, len(classes)) + 1)
    columns = [f"{name}{n}" for n in numbers for name in ("class", "score", "start", "end", "peak")]
    csv_path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(csv_path, ["video", "status", "seconds", *columns], rows)
    return f"{len(rows)} videos, {sum(len(row) == 2 for row in rows)} could not be read\nwritten: {csv_path}"
