"""Tasks turn a network and a batch into a loss and outputs; the training step does not know which task it runs.

Those with labels are here, those without in `pretraining_tasks`.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from training.losses import Loss


class LabeledClips(Protocol):
    """The part of a batch that Classify reads."""

    @property
    def video(self) -> Tensor: ...
    @property
    def label(self) -> Tensor: ...


class Classify:
    """A loss of logits against labels; by default the cross-entropy."""

    def __init__(self, loss: Loss | None = None):
        self.loss = loss or Loss()

    def __call__(self, network: nn.Module, batch: LabeledClips) -> dict[str, Tensor]:
        """Return loss () in float32 and logits (B, num_classes) in the dtype that the network computes in.

        The batch has video (B, C, T, H, W) and label (B,), class indices, or after mixing (B, num_classes),
        probabilities.
        """
        logits = network(batch.video)
        return {"loss": self.loss(logits, batch.label), "logits": logits}


class ClassifyByProbes(Classify):
    """The loss of each probe of a grid."""

    def __call__(self, network: nn.Module, batch: LabeledClips) -> dict[str, Tensor]:
        """Return the loss (), which is the sum of the probes' losses, so that each gets the gradients of its own.

        Also returned: their mean_loss () over those that are finite, and logits (P, B, num_classes). The batch is as
        Classify's, with several clips of each video if the network pools them.
        """
        logits = network(batch.video)
        losses = torch.stack([self.loss(part, batch.label) for part in logits])
        finite = losses.detach().where(losses.isfinite(), torch.nan)
        return {"loss": losses.sum(), "mean_loss": finite.nanmean(), "logits": logits}
