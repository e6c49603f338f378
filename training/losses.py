"""Losses of logits against classes: those with a softmax, for one class per clip, and those with a sigmoid per class.

Shapes: B clips, K classes. A target (B, K) has the probability of each class, or of several labels ones and zeros.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy (B,)."""
    return F.cross_entropy(logits, target, reduction="none")


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the focal loss (B,), cross-entropy with less weight on what is right already (Lin et al., 2017)."""
    log_probs = logits.log_softmax(-1)
    wrong = (1 - log_probs.exp()).clamp(min=1e-7)  # of 0 a power below 1 has no gradient
    return -(target * wrong**gamma * log_probs).sum(-1)


def poly(logits: Tensor, target: Tensor, epsilon: float = 1.0) -> Tensor:
    """Return Poly-1 (B,): cross-entropy + epsilon (1 - probability of the label) (PolyLoss, Leng et al., 2022)."""
    return cross_entropy(logits, target) + epsilon * (1 - (target * logits.softmax(-1)).sum(-1))


def generalized_cross_entropy(logits: Tensor, target: Tensor, q: float = 0.7) -> Tensor:
    """Return (1 - p^q) / q (B,), p the probability of the label, for noisy labels (Zhang and Sabuncu, 2018).

    It is the cross-entropy for q -> 0, and the mean absolute error for q = 1.
    """
    return (target * (1 - (q * logits.log_softmax(-1)).exp()) / q).sum(-1)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy (B, K) of each class, over K, so that its sum is the mean over the classes."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") / logits.shape[-1]


def sigmoid_focal(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Return the focal loss with a sigmoid (B, K), over K (Lin et al., 2017); `alpha` < 0 weighs no class."""
    return sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma) / logits.shape[-1]


def asymmetric(
    logits: Tensor, target: Tensor, gamma_pos: float = 1.0, gamma_neg: float = 4.0, clip: float = 0.05
) -> Tensor:
    """Return the asymmetric loss (B, K), for few labels among many classes (Ridnik et al., 2021, equation 7).

    Its sum is that over the classes, as the authors have it (they add up the clips, too). Targets between 0 and 1 mix
    the terms of a positive and a negative label.
    """
    absent = logits.neg().sigmoid()
    shifted = (absent + clip).clamp(min=1e-8, max=1)
    on_labels = target * absent**gamma_pos * F.logsigmoid(logits)
    return -(on_labels + (1 - target) * (1 - shifted) ** gamma_neg * shifted.log())


Function = Callable[..., Tensor]
BOUNDS = {"q": (1e-3, 1.0), "alpha": (-1.0, 1.0), "epsilon": (-1.0, math.inf), "clip": (0.0, 1.0)}  # others from 0
SOFTMAX: dict[str, Function] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "poly": poly,
    "gce": generalized_cross_entropy,
}
SIGMOID: dict[str, Function] = {"bce": binary_cross_entropy, "focal": sigmoid_focal, "asymmetric": asymmetric}


class Loss:
    """A loss by its name, in float32, with label smoothing and corrections for classes of different sizes.

    `args` are those of the function above. `class_weights` (K,) multiply the loss of a clip by the weight of its class,
    or with several labels (`multi_label`) the loss of each class by its own. `logit_offsets` (K,) are added to the
    logits. "focal" has a sigmoid with several labels, otherwise a softmax. Raises ValueError for another name or
    argument, and for a softmax with several labels.
    """

    def __init__(  # noqa: PLR0913  # the keys of the configuration
        self,
        name: str = "cross_entropy",
        args: Mapping[str, Any] | None = None,
        *,
        label_smoothing: float = 0.0,
        multi_label: bool = False,
        class_weights: Tensor | None = None,
        logit_offsets: Tensor | None = None,
    ):
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing}: expected a number, 0 to below 1")
        functions = SIGMOID if multi_label else SOFTMAX | {"bce": binary_cross_entropy, "asymmetric": asymmetric}
        if name not in functions:
            several = " with several labels per video" if multi_label else ""
            raise ValueError(f"loss={name}: expected one of {', '.join(functions)}{several}")
        self.name, self.function, self.args = name, functions[name], dict(args or {})
        self.label_smoothing, self.multi_label = label_smoothing, multi_label
        self.class_weights, self.logit_offsets = class_weights, logit_offsets
        known = list(inspect.signature(self.function).parameters)[2:]
        for key, value in self.args.items():
            if key not in known:
                takes = ", ".join(known) or "none"
                raise ValueError(f"loss_args.{key}: expected the arguments of loss={name}: {takes}")
            low, high = BOUNDS.get(key, (0.0, math.inf))
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"loss_args.{key}={value}: expected a number, {low:g} to {high:g}")

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the mean () over the clips, for logits (B, K), and label (B,) int64 or target (B, K)."""
        # In float32, because half precision, which the logits have under autocast, would round the log-sum-exp.
        logits = logits.float()
        weights = self.class_weights
        if self.logit_offsets is not None:
            logits = logits + self.logit_offsets
        if self.name == "cross_entropy" and weights is None:
            label = label.float() if label.is_floating_point() else label
            return F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        num_classes = logits.shape[-1]
        target = label.float() if label.is_floating_point() else F.one_hot(label, num_classes).float()
        smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        losses = self.function(logits, smoothed, **self.args)
        if weights is not None and self.multi_label:
            losses = losses * weights
        losses = losses.sum(-1) if losses.ndim == 2 else losses
        if weights is not None and not self.multi_label:
            losses = losses * (target @ weights)
        return losses.mean()


def adjusted_offsets(counts: Sequence[int], tau: float) -> Tensor:
    """Return tau times the log of the classes' shares of the training videos (K,), for training alone.

    Logit adjustment (Menon et al., 2021, equation 10).
    """
    shares = torch.tensor(counts, dtype=torch.float64) / max(sum(counts), 1)
    return (shares**tau + 1e-12).log().float()


def effective_weights(counts: Sequence[int], beta: float) -> Tensor:
    """Return weights (K,) of mean 1 by the effective numbers of videos, (1 - beta^n) / (1 - beta); 0 without videos.

    Class-balanced loss (Cui et al., 2019, section 3).
    """
    numbers = torch.tensor(counts, dtype=torch.float64)
    weights = torch.where(numbers > 0, (1 - beta) / (1 - beta**numbers), 0.0)
    return (weights / weights.sum() * len(counts)).float()
