"""Tests at several thresholds of run-length tokenization: what accuracy do fewer tokens cost, and what do they save?

Of a test that was interrupted, the times are those of the batches since it was resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from evaluation.scores import Scores, mcnemar
from networks.run_length import changed_patches
from utils.files import write_csv


class Timing(NamedTuple):
    """The cost of the network at one threshold, on the main process."""

    threshold: float
    kept: float  # share of the patches
    clips_per_s: float
    speedup: float  # over a threshold of 0: the median over the batches, and their quartiles
    low: float
    high: float


class ThresholdResult(NamedTuple):
    """A test at one threshold."""

    timing: Timing
    top1: float
    p: float  # McNemar's exact one, beside a threshold of 0

    def row(self) -> dict[str, float | None]:
        """Return all figures by their names; None for a time that was not measured, as JSON has no nan."""
        figures = {**self.timing._asdict(), "top1": self.top1, "p": self.p}
        return {name: None if math.isnan(value) else value for name, value in figures.items()}


class ThresholdTest:
    """Score the clips of each batch at 0 and at other thresholds, and time the network.

    Raises ValueError if the network has no run-length tokenization.
    """

    def __init__(self, network: nn.Module, thresholds: Sequence[float]):
        kwargs: Any = getattr(network, "kwargs", {})
        if not hasattr(network, "rlt_threshold") or kwargs.get("attention", "joint") != "joint":
            name = type(network).__name__
            raise ValueError(f"eval.rlt_thresholds: {name} has none; expected ViViT (joint), VideoMAE or V-JEPA 2")
        self.network: Any = network
        self.thresholds = sorted({0.0, *thresholds})
        self.seconds: list[list[float]] = []  # of each batch, at each threshold
        self.kept: list[list[float]] = []
        self.num_clips: list[int] = []

    def __call__(self, score: Callable[[Tensor], Tensor], video: Tensor, seeds: Any = None) -> Tensor:
        """Return the classes (B, thresholds) of clips (B, V, C, T, H, W)."""
        before, seconds, kept, predicted = self.network.rlt_threshold, [], [], []
        try:
            for threshold in self.thresholds:
                self.network.rlt_threshold = threshold
                start = self._now(video)
                probs = score(video)
                seconds.append(self._now(video) - start)
                predicted.append(probs.argmax(1))
                changed = changed_patches(video.flatten(0, 1), self.network.patch_embed.stride, threshold)
                kept.append(changed.float().mean().item())
        finally:
            self.network.rlt_threshold = before
        self.seconds.append(seconds)
        self.kept.append(kept)
        self.num_clips.append(video.shape[0] * video.shape[1])
        return torch.stack(predicted, dim=1)

    def _now(self, video: Tensor) -> float:
        if video.device.type == "cuda":
            torch.cuda.synchronize(video.device)
        return time.perf_counter()

    def timings(self) -> list[Timing]:
        """Return the cost at each threshold."""
        unknown = [[np.nan] * len(self.thresholds)]  # of a test whose batches were all scored before
        seconds, num_clips = np.array(self.seconds or unknown), np.array(self.num_clips or [1])
        kept = np.average(self.kept or unknown, axis=0, weights=num_clips)
        clips_per_s = np.median(num_clips[:, None] / seconds, axis=0)
        low, median, high = np.percentile(seconds[:, :1] / seconds, [25, 50, 75], axis=0)
        columns = (self.thresholds, kept, clips_per_s, median, low, high)
        return [Timing(*map(float, values)) for values in zip(*columns, strict=True)]

    def results(self, scores: Scores) -> list[ThresholdResult]:
        """Return a result for each threshold of a test that has this one among its own."""
        predicted, label = scores.predicted["rlt"], scores.label
        right = [(predicted[:, column] == label) & scores.scored for column in range(len(self.thresholds))]
        return [
            ThresholdResult(
                timing,
                top1=correct.double().mean().item(),
                p=mcnemar(int((right[0] & ~correct).sum()), int((correct & ~right[0]).sum())),
            )
            for timing, correct in zip(self.timings(), right, strict=True)
        ]


def write_thresholds(output_dir: Path, results: Sequence[ThresholdResult]) -> Figure:
    """Write rlt.csv and rlt.png; return the figure."""
    rows = [result.row() for result in results]
    write_csv(
        output_dir / "rlt.csv",
        rows[0],
        (["" if value is None else f"{value:.4g}" for value in row.values()] for row in rows),
    )
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    timings = [result.timing for result in results]
    thresholds = [t.threshold for t in timings]
    left.plot(thresholds, [100 * r.top1 for r in results], marker="o")
    left.plot(thresholds, [100 * t.kept for t in timings], marker="o", color="gray", label="patches kept, %")
    left.set(xlabel="threshold", ylabel="top-1, %", ylim=(0, 102))
    left.legend()
    errors = [[t.speedup - t.low for t in timings], [t.high - t.speedup for t in timings]]
    right.errorbar(thresholds, [t.speedup for t in timings], yerr=errors, marker="o", capsize=3)
    right.axhline(1, color="gray", linewidth=1)
    right.set(xlabel="threshold", ylabel="clips/s of the network, over threshold 0", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(output_dir / "rlt.png", dpi=110)
    return figure


def describe_thresholds(results: Sequence[ThresholdResult]) -> list[str]:
    """Return a line for each threshold."""
    return [
        f"rlt_threshold {r.timing.threshold:<6g} top-1 {100 * r.top1:6.2f} % (McNemar's p {r.p:.4f})  "
        f"{describe_timing(r.timing)}"
        for r in results
    ]


def describe_timing(timing: Timing) -> str:
    """Describe the cost at a threshold."""
    return (
        f"{100 * timing.kept:5.1f} % of the patches, {timing.clips_per_s:.3g} clips/s of the network, "
        f"{timing.speedup:.2f} times ({timing.low:.2f}-{timing.high:.2f})"
    )
