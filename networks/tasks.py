"""A task turns a network and a batch into a loss and outputs; the training loop does not know which task it runs."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.hog import hog_targets
from networks.maskfeat import MaskFeat as MaskFeatNetwork
from networks.masks import draw_masks


class LabelledClips(Protocol):
    """What Classify reads of a batch."""

    video: Tensor
    label: Tensor


class SeededClips(Protocol):
    """What MaskFeat reads of a batch."""

    video: Tensor
    seeds: Sequence[Sequence[int]]


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


class MaskFeat:
    """Predict the HOG of hidden tokens: mean squared error over all of them (MaskFeat, section 3)."""

    def __init__(
        self, network: MaskFeatNetwork, mask: str = "cube", ratio: float = 0.4, window: int = 0, compiled: bool = False
    ):
        self.grid, self.mask_grid, self.spread = network.token_grid, network.mask_grid, network.spread
        self.mask, self.ratio, self.window = mask, ratio, window
        self.targets = torch.compile(hog_targets) if compiled else hog_targets
        draw_masks(mask, self.mask_grid, ratio, [(0, 0, 0)])  # says now what is wrong with them

    def hide(self, batch: SeededClips) -> Tensor:
        """(B, t, h, w) bool on the clips' device, each from its clip's (seed, epoch, row) alone; True is hidden."""
        masks = torch.from_numpy(draw_masks(self.mask, self.mask_grid, self.ratio, batch.seeds))
        device = batch.video.device
        return masks.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else masks

    def __call__(self, network: nn.Module, batch: SeededClips) -> dict[str, Tensor]:
        """video (B, C, T, H, W), or (B, 1, C, T, H, W) -> loss () and, of the same hidden tokens, the baseline () of
        predicting their mean, both float32; losses and baselines (B,) of each clip; mask; prediction and target
        (B, t, h, w, numbers)."""
        mask = self.hide(batch)
        video = batch.video.flatten(0, 1) if batch.video.ndim == 6 else batch.video  # one view of each
        prediction = network(video, mask)
        with torch.no_grad():
            target = self.targets(video, self.grid, self.window)
            _, h, _ = self.grid
            hidden = rearrange(self.spread(mask, self.grid), "B t (h w) -> B t h w", h=h)
            weight = hidden / reduce(hidden.float(), "B t h w -> B 1 1 1", "sum")
            mean = torch.einsum("bthw,bthwd->d", weight, target) / len(target)
            baselines = reduce((target - mean).square().mean(-1) * weight, "B t h w -> B", "sum")
        losses = reduce((prediction.float() - target).square().mean(-1) * weight, "B t h w -> B", "sum")
        return {"loss": losses.mean(), "baseline": baselines.mean(), "losses": losses.detach(), "baselines": baselines,
                "mask": mask, "prediction": prediction.detach(), "target": target}  # fmt: skip
