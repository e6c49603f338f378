"""Scores of a test: what each video was classified as, how sure the shares are, what is confused with what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Class probabilities of each video, (n, classes) float32 on the host; `scored` (n,) bool: False if it failed.

    `hits` (n, clips, 2) bool: whether the label is the best, and among the best five, after so many clips.
    """

    probability: Tensor
    label: Tensor  # (n,) int64
    scored: Tensor
    failed: dict[int, str]  # row of the list -> reason
    padded: int  # places of the last batch that no video was left for
    hits: Tensor

    def topk(self, k: int) -> float:
        """Share of all videos, unreadable ones included as wrong, whose label is among the k best."""
        best = self.probability.topk(min(k, self.probability.shape[1])).indices
        hit = (best == self.label[:, None]).any(1) & self.scored
        return hit.double().mean().item()

    @property
    def loss(self) -> float:
        """Mean negative log probability of the label over the videos that were scored."""
        chosen = self.probability[self.scored, self.label[self.scored]]
        return -chosen.clamp_min(1e-12).log().mean().item()

    def coverage(self) -> str:
        n = len(self.label)
        return (
            f"coverage: {int(self.scored.sum())} of {n} videos scored, {len(self.failed)} failed, {self.padded} padded"
        )


def interval(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Of a share: between which the true one lies with 95 % confidence (Wilson's score interval)."""
    if not n:
        return 0.0, 1.0
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))  # rounding aside


def confusion(scores: Scores, classes: int) -> Tensor:
    """(label, predicted) int64: how many of the videos that were scored."""
    guess = scores.probability.argmax(1)
    pairs = scores.label[scores.scored] * classes + guess[scores.scored]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mcnemar(a: int, b: int) -> float:
    """Exact two-sided p (McNemar, 1947): the chance of a split of a + b as uneven, were each side as likely."""
    n, least = a + b, min(a, b)
    return min(1.0, sum(math.comb(n, i) for i in range(least + 1)) / 2 ** (n - 1)) if n else 1.0
