"""Scores of a test: class probabilities per video, and the statistics that are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Class probabilities of each video, (n, classes) float32 on the host."""

    probs: Tensor
    label: Tensor  # (n,) int64; with several labels per video (n, classes) float32 of zeros and ones
    scored: Tensor  # (n,) bool: False for a video that failed
    failed: dict[int, str]  # sample index -> reason
    padded: int  # slots of the last batches for which there was no video
    correct: Tensor  # (n, clips, 2) bool: whether a label is first, and among the first five, after so many scores
    pooled_clips: int = 1  # of each of these scores
    predicted: dict[str, Tensor] = field(default_factory=dict)  # classes (n, columns) int64 in further tests

    @property
    def multi_label(self) -> bool:
        """Return whether a video may have several labels, or none."""
        return self.label.ndim == 2

    def topk(self, k: int) -> float:
        """Return the fraction of all videos with a label among the k best classes; unreadable videos are wrong."""
        best = self.probs.topk(min(k, self.probs.shape[1])).indices
        correct = has_label(best, self.label).any(1) & self.scored
        return correct.double().mean().item()

    def class_accuracies(self) -> tuple[Tensor, Tensor]:
        """Return the numbers of videos (K,) and of correct ones (K,) of each class; unreadable videos are wrong."""
        num_classes = self.probs.shape[1]
        correct = (self.probs.argmax(1) == self.label) & self.scored
        return tuple(torch.bincount(label, minlength=num_classes) for label in (self.label, self.label[correct]))  # type: ignore[return-value]

    @property
    def macro_top1(self) -> float:
        """The mean of the accuracies of the classes that occur."""
        total, correct = self.class_accuracies()
        return (correct[total > 0].double() / total[total > 0]).mean().item()

    @property
    def loss(self) -> float:
        """Mean negative log probability of the label over the videos that were scored; of several labels the mean
        binary cross-entropy over the classes."""
        if self.multi_label:
            return F.binary_cross_entropy(self.probs[self.scored], self.label[self.scored]).item()
        label_probs = self.probs[self.scored, self.label[self.scored]]
        return -label_probs.clamp_min(1e-12).log().mean().item()

    def coverage(self) -> str:
        """Say in a line how many videos were scored, failed and padded."""
        scored, n = int(self.scored.sum()), len(self.label)
        return f"coverage: {scored} of {n} videos scored, {len(self.failed)} failed, {self.padded} padded"


def has_label(classes: Tensor, label: Tensor) -> Tensor:
    """Tell which classes (B, ..., k) are labels of their videos: label (B,) or, of several, (B, K) zeros and ones."""
    if label.ndim == 1:
        return classes == label.view(-1, *[1] * (classes.ndim - 1))
    of_class = label.view(len(label), *[1] * (classes.ndim - 2), -1).expand(*classes.shape[:-1], -1)
    return of_class.gather(-1, classes) > 0


def wilson_interval(correct: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval (95 %) of the proportion correct / n."""
    if not n:
        return 0.0, 1.0
    proportion = correct / n
    center = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n))
    # The proportion itself lies inside, also where rounding says otherwise.
    return min(proportion, max(0.0, center - half)), max(proportion, min(1.0, center + half))


def confusion_matrix(scores: Scores, num_classes: int) -> Tensor:
    """Count the scored videos by label and predicted class: (label, predicted) int64."""
    predicted = scores.probs.argmax(1)
    pairs = scores.label[scores.scored] * num_classes + predicted[scores.scored]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p (McNemar, 1947) of so uneven a split, if both sides were equally likely."""
    n, smaller = only_a + only_b, min(only_a, only_b)
    return min(1.0, sum(math.comb(n, i) for i in range(smaller + 1)) / 2 ** (n - 1)) if n else 1.0
