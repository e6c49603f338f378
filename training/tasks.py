"""Tasks turn a network and a batch into a loss and outputs; the training step does not know which task it runs."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.hog import hog_targets
from networks.maskfeat import MaskFeat
from networks.masking import draw_masks, middle_frames
from utils.device import autocast


class LabeledClips(Protocol):
    """The part of a batch that Classify reads."""

    @property
    def video(self) -> Tensor: ...
    @property
    def label(self) -> Tensor: ...


class SeededClips(Protocol):
    """The part of a batch that MaskFeat reads."""

    @property
    def video(self) -> Tensor: ...
    @property
    def seeds(self) -> Sequence[Sequence[int]]: ...


class Classify:
    """Cross-entropy over classes."""

    def __init__(self, label_smoothing: float = 0.0):
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing}: expected a number, 0 to below 1")
        self.label_smoothing = label_smoothing

    def __call__(self, network: nn.Module, batch: LabeledClips) -> dict[str, Tensor]:
        """Return loss () in float32 and logits (B, num_classes) in the dtype that the network computes in.

        The batch has video (B, C, T, H, W) and label (B,), class indices, or after mixing (B, num_classes),
        probabilities.
        """
        logits = network(batch.video)
        return {"loss": self.loss(logits, batch.label), "logits": logits}

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the cross-entropy () of logits (B, num_classes)."""
        # In float32, because half precision, which the logits have under autocast, would round the log-sum-exp.
        label = label.float() if label.is_floating_point() else label
        return F.cross_entropy(logits.float(), label, label_smoothing=self.label_smoothing)


class ClassifyByProbes(Classify):
    """Cross-entropy of each probe of a grid."""

    def __call__(self, network: nn.Module, batch: LabeledClips) -> dict[str, Tensor]:
        """Return the loss (), which is the sum of the probes' losses, so that each gets the gradients of its own.

        Also returned: their mean_loss () over those that are finite, and logits (P, B, num_classes). The batch is as
        Classify's, with several clips of each video if the network pools them.
        """
        logits = network(batch.video)
        losses = torch.stack([self.loss(part, batch.label) for part in logits])
        finite = losses.detach().where(losses.isfinite(), torch.nan)
        return {"loss": losses.sum(), "mean_loss": finite.nanmean(), "logits": logits}


class MaskFeatTask:
    """Predict the HOG of masked tokens: mean squared error over all of them (MaskFeat, section 3).

    With mask="frame_runs" only the middle frame of each run counts (as in VideoTransformer-pytorch).
    """

    def __init__(
        self,
        network: MaskFeat,
        mask: str = "cube",
        ratio: float = 0.4,
        window: int = 0,
        gradient: str = "sobel",
        compiled: bool = False,
    ):
        self.grid, self.mask_grid, self.upsample_mask = network.token_grid, network.mask_grid, network.upsample_mask
        self.frames = network.target_frames
        self.mask, self.ratio, self.window, self.gradient = mask, ratio, window, gradient
        self.targets = torch.compile(hog_targets) if compiled else hog_targets
        if not draw_masks(mask, self.mask_grid, ratio, [(0, 0, 0)]).any():
            raise ValueError(f"mask_ratio={ratio}: masks none of {'x'.join(map(str, self.mask_grid))} cells")

    def sample_mask(self, batch: SeededClips) -> tuple[Tensor, Tensor]:
        """Draw the mask (B, t, h, w) and the frames (B, t, f) whose masked tokens count, bool on the clips' device.

        Each clip's mask depends on its (seed, epoch, sample_index) alone.
        """
        mask = draw_masks(self.mask, self.mask_grid, self.ratio, batch.seeds)
        frames = np.ones((*mask.shape[:2], self.frames), bool)
        if self.mask == "frame_runs":
            frames = middle_frames(mask, self.frames)
        device = batch.video.device
        on_host = torch.from_numpy(mask), torch.from_numpy(frames)
        if device.type != "cuda":
            return on_host
        mask_on_device, frames_on_device = (part.pin_memory().to(device, non_blocking=True) for part in on_host)
        return mask_on_device, frames_on_device

    def __call__(self, network: nn.Module, batch: SeededClips) -> dict[str, Tensor]:
        """Return the loss () and the baseline (), which is the loss of predicting the mean HOG, both in float32.

        The batch has video (B, C, T, H, W), or (B, 1, C, T, H, W) with one view each. Also returned: losses and
        baselines (B,) of each clip; mask (B, t, h, w); frames (B, t, f) that count; prediction and target (B, t, f, h,
        w, D)."""
        mask, frames = self.sample_mask(batch)
        video = batch.video.flatten(0, 1) if batch.video.ndim == 6 else batch.video
        prediction = network(video, mask)
        with torch.no_grad():
            target = self.targets(video, self.grid, self.frames, self.window, self.gradient)
            _, h, _ = self.grid
            hidden = rearrange(self.upsample_mask(mask, self.grid), "B t (h w) -> B t 1 h w", h=h)
            counted = hidden & rearrange(frames, "B t f -> B t f 1 1")
            weight = counted / reduce(counted.float(), "B t f h w -> B 1 1 1 1", "sum")
            mean = torch.einsum("btfhw,btfhwd->d", weight, target) / len(target)
            baselines = reduce((target - mean).square().mean(-1) * weight, "B t f h w -> B", "sum")
        losses = reduce((prediction.float() - target).square().mean(-1) * weight, "B t f h w -> B", "sum")
        return {
            "loss": losses.mean(),
            "baseline": baselines.mean(),
            "losses": losses.detach(),
            "baselines": baselines,
            "mask": mask,
            "frames": frames,
            "prediction": prediction.detach(),
            "target": target,
        }


@torch.inference_mode()
def mean_loss(
    network: nn.Module,
    task: MaskFeatTask,
    batches: Iterable[Any],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, float, tuple[Any, dict[str, Tensor]]]:
    """Return the mean loss over the videos of all ranks, the mean baseline, and the first batch with its outputs.

    Samples with a negative sample_index are padding. The masks are the same in every validation.
    """
    was_training = network.training
    network.eval()
    sums = torch.zeros(3, device=device)
    first = None
    for batch in batches:
        with autocast(device, dtype):
            out = task(network, batch)
        first = first or (batch, out)
        scored = (batch.sample_index >= 0).float()
        sums += torch.stack([(out["losses"] * scored).sum(), (out["baselines"] * scored).sum(), scored.sum()])
    network.train(was_training)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    loss, baseline, count = sums.tolist()
    assert first is not None
    return loss / max(count, 1), baseline / max(count, 1), first
