"""A task turns a network and a batch into a loss and outputs; the training loop does not know which task it runs."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class LabelledClips(Protocol):
    """What Classify reads of a batch."""

    video: Tensor
    label: Tensor


class Classify:
    """Cross-entropy over classes."""

    def __init__(self, label_smoothing: float = 0.0):
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing}: must lie in [0, 1)")
        self.label_smoothing = label_smoothing

    def __call__(self, network: nn.Module, batch: LabelledClips) -> dict[str, Tensor]:
        """video (B, C, T, H, W), label (B,) of class numbers or, after mixing, (B, num_classes) of probabilities
        -> loss () in float32, logits (B, num_classes) in the dtype the network computes in."""
        logits = network(batch.video)
        # half precision would round the log-sum-exp, under autocast the logits come in half precision
        label = batch.label.float() if batch.label.is_floating_point() else batch.label
        loss = F.cross_entropy(logits.float(), label, label_smoothing=self.label_smoothing)
        return {"loss": loss, "logits": logits}
