"""A task turns a network and a batch into a loss and outputs; the training loop does not know which task it runs."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.hog import hog_targets
from networks.maskfeat import MaskFeat as MaskFeatNetwork
from networks.masking import draw_masks, middle_frames
from utils.device import autocast


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
    """Predict the HOG of hidden tokens: mean squared error over all of them (MaskFeat, section 3); with masks of the
    kind "runs" over the middle frame of each run alone (VideoTransformer-pytorch)."""

    def __init__(
        self,
        network: MaskFeatNetwork,
        mask: str = "cube",
        ratio: float = 0.4,
        window: int = 0,
        gradient: str = "sobel",
        compiled: bool = False,
    ):
        self.grid, self.mask_grid, self.spread = network.token_grid, network.mask_grid, network.spread
        self.frames = network.target_frames
        self.mask, self.ratio, self.window, self.gradient = mask, ratio, window, gradient
        self.targets = torch.compile(hog_targets) if compiled else hog_targets
        if not draw_masks(mask, self.mask_grid, ratio, [(0, 0, 0)]).any():
            raise ValueError(f"mask_ratio={ratio}: hides nothing of {'x'.join(map(str, self.mask_grid))} cells")

    def hide(self, batch: SeededClips) -> tuple[Tensor, Tensor]:
        """-> mask (B, t, h, w), each from its clip's (seed, epoch, row) alone, and the frames (B, t, f) whose hidden
        tokens count; bool on the clips' device."""
        mask = draw_masks(self.mask, self.mask_grid, self.ratio, batch.seeds)
        frames = np.ones((*mask.shape[:2], self.frames), bool)
        if self.mask == "runs":
            frames = middle_frames(mask, self.frames)
        device = batch.video.device
        on_host = torch.from_numpy(mask), torch.from_numpy(frames)
        if device.type != "cuda":
            return on_host
        mask_there, frames_there = (part.pin_memory().to(device, non_blocking=True) for part in on_host)
        return mask_there, frames_there

    def __call__(self, network: nn.Module, batch: SeededClips) -> dict[str, Tensor]:
        """video (B, C, T, H, W), or (B, 1, C, T, H, W) -> loss () and, of the same hidden tokens, the baseline () of
        predicting their mean, both float32; losses and baselines (B,) of each clip; mask (B, t, h, w); frames
        (B, t, f) that count; prediction and target (B, t, f, h, w, numbers)."""
        mask, frames = self.hide(batch)
        video = batch.video.flatten(0, 1) if batch.video.ndim == 6 else batch.video  # one view of each
        prediction = network(video, mask)
        with torch.no_grad():
            target = self.targets(video, self.grid, self.frames, self.window, self.gradient)
            _, h, _ = self.grid
            hidden = rearrange(self.spread(mask, self.grid), "B t (h w) -> B t 1 h w", h=h)
            counted = hidden & rearrange(frames, "B t f -> B t f 1 1")
            weight = counted / reduce(counted.float(), "B t f h w -> B 1 1 1 1", "sum")
            mean = torch.einsum("btfhw,btfhwd->d", weight, target) / len(target)
            baselines = reduce((target - mean).square().mean(-1) * weight, "B t f h w -> B", "sum")
        losses = reduce((prediction.float() - target).square().mean(-1) * weight, "B t f h w -> B", "sum")
        return {"loss": losses.mean(), "baseline": baselines.mean(), "losses": losses.detach(), "baselines": baselines,
                "mask": mask, "frames": frames, "prediction": prediction.detach(), "target": target}  # fmt: skip


@torch.inference_mode()
def mean_loss(
    network: nn.Module, task: MaskFeat, batches: Iterable[Any], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[float, float, tuple[Any, dict[str, Tensor]]]:
    """Mean loss over the videos of a validation (rows `sample` < 0 are padding), of all ranks, and that of predicting
    the mean HOG of each batch, masks being the same each time; and the first batch with what the task made of it."""
    training = network.training
    network.eval()
    sums = torch.zeros(3, device=device)
    first = None
    for batch in batches:
        with autocast(device, dtype):
            out = task(network, batch)
        first = first or (batch, out)
        scored = (batch.sample >= 0).float()
        sums += torch.stack([(out["losses"] * scored).sum(), (out["baselines"] * scored).sum(), scored.sum()])
    network.train(training)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    loss, baseline, count = sums.tolist()
    assert first is not None
    return loss / max(count, 1), baseline / max(count, 1), first
