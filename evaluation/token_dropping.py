"""Tests at several thresholds of run-length tokenization: what accuracy do fewer tokens cost, and what do they save?"""

from __future__ import annotations

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


class ThresholdResult(NamedTuple):
    """A test at one threshold; times are those of the network alone, on the main process."""

    threshold: float
    kept: float  # share of the patches
    top1: float
    p: float  # McNemar's exact one, beside a threshold of 0
    clips_per_s: float
    speedup: float  # over a threshold of 0: the median over the batches, and their quartiles
    low: float
    high: float


class ThresholdTest:
    """Score the clips of each batch at 0 and at other thresholds, and time the network.

    Raises ValueError if the network has no run-length tokenization.
    """

    def __init__(self, network: nn.Module, thresholds: Sequence[float]):
        if not hasattr(network, "rlt_threshold"):
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

    def results(self, scores: Scores) -> list[ThresholdResult]:
        """Return a result for each threshold of a test that has this one among its own."""
        predicted, label = scores.predicted["rlt"], scores.label
        right = [(predicted[:, column] == label) & scores.scored for column in range(len(self.thresholds))]
        unknown = [[np.nan] * len(self.thresholds)]  # of a test whose batches were all scored before
        seconds, num_clips = np.array(self.seconds or unknown), np.array(self.num_clips or [1])
        kept = np.average(self.kept or unknown, axis=0, weights=num_clips)
        rates = num_clips[:, None] / seconds
        low, median, high = np.percentile(seconds[:, :1] / seconds, [25, 50, 75], axis=0)
        return [
            ThresholdResult(
                threshold=threshold,
                kept=float(kept[i]),
                top1=right[i].double().mean().item(),
                p=mcnemar(int((right[0] & ~right[i]).sum()), int((right[i] & ~right[0]).sum())),
                clips_per_s=float(np.median(rates[:, i])),
                speedup=float(median[i]),
                low=float(low[i]),
                high=float(high[i]),
            )
            for i, threshold in enumerate(self.thresholds)
        ]


def write_thresholds(output_dir: Path, results: Sequence[ThresholdResult]) -> Figure:
    """Write rlt.csv and rlt.png; return the figure."""
    write_csv(output_dir / "rlt.csv", ThresholdResult._fields, ([f"{value:.4g}" for value in r] for r in results))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    thresholds = [r.threshold for r in results]
    left.plot(thresholds, [100 * r.top1 for r in results], marker="o")
    left.plot(thresholds, [100 * r.kept for r in results], marker="o", color="gray", label="patches kept, %")
    left.set(xlabel="threshold", ylabel="top-1, %", ylim=(0, 102))
    left.legend()
    errors = [[r.speedup - r.low for r in results], [r.high - r.speedup for r in results]]
    right.errorbar(thresholds, [r.speedup for r in results], yerr=errors, marker="o", capsize=3)
    right.axhline(1, color="gray", linewidth=1)
    right.set(xlabel="threshold", ylabel="clips/s of the network, over threshold 0", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(output_dir / "rlt.png", dpi=110)
    return figure


def describe_thresholds(results: Sequence[ThresholdResult]) -> list[str]:
    """Return a line for each threshold."""
    return [
        f"rlt_threshold {r.threshold:<6g} {100 * r.kept:5.1f} % of the patches  top-1 {100 * r.top1:6.2f} % "
        f"(McNemar's p {r.p:.4f})  {r.clips_per_s:.1f} clips/s, {r.speedup:.2f} times ({r.low:.2f}-{r.high:.2f})"
        for r in results
    ]
