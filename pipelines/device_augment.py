"""Gaussian blur and solarization of clips on their device, by kornia, for self-supervised recipes.

Drawn on the host for each clip from (seed, epoch, sample_index), so resuming changes nothing; all frames of a clip are
changed alike. No value is read back from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from kornia.enhance import solarize
from kornia.filters import filter2d_separable, get_gaussian_kernel1d

from configs.schema import Data
from pipelines.batch_loader import Batch
from pipelines.mixup import BatchMixing
from utils import random_streams
from utils.device import to_device

SIGMA = (0.1, 2.0)  # of the blur, in pixels (SimCLR, appendix A)
THRESHOLD = 128 / 255  # of solarization (BYOL, appendix B)


@dataclass(frozen=True)
class DeviceAugment:
    """Blur and solarize clips, each with its own probability; mean and std are those that clips are normalized with."""

    blur: float
    solarize: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __bool__(self) -> bool:
        return bool(self.blur or self.solarize)

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with its video (B, C, T, H, W) augmented."""
        sigma, threshold = (np.array(values) for values in zip(*map(self.draw, batch.seeds), strict=True))
        video = batch.video
        if sigma.any():
            video = blur(video, sigma)
        if (threshold <= 1).any():
            mean, std = (torch.tensor(v, dtype=video.dtype).view(-1, 1, 1, 1) for v in (self.mean, self.std))
            mean, std = (to_device(v.numpy(), video.device) for v in (mean, std))
            pixels = solarize(video * std + mean, to_device(threshold.astype(np.float32), video.device))
            video = (pixels - mean) / std
        return batch._replace(video=video)

    def draw(self, seed: tuple[int, ...]) -> tuple[float, float]:
        """Draw the sigma of a clip's blur (0: none) and its solarization threshold in units of 0 to 1 (2: none)."""
        rng = np.random.default_rng([*seed, random_streams.DEVICE_AUGMENT])
        blurred, solarized, sigma = rng.random() < self.blur, rng.random() < self.solarize, rng.uniform(*SIGMA)
        return sigma if blurred else 0.0, THRESHOLD if solarized else 2.0


def build_transforms(data: Data, num_classes: int) -> list[Callable[[Batch], Batch]]:
    """Return what is done to each training batch on the device, after decoding and before the network."""
    augment = DeviceAugment(data.blur, data.solarize, data.mean, data.std)
    mixing = BatchMixing(num_classes, data.mixup, data.cutmix, data.random_erasing)
    return [transform for transform in (augment, mixing) if transform]


def blur(video: torch.Tensor, sigma: np.ndarray, kernel_size: int = 0) -> torch.Tensor:
    """Blur the frames of each clip (B, C, T, H, W) by its sigma (B,) in pixels; 0 leaves a clip as it is.

    The kernel is a tenth of the frame's size, as in SimCLR, unless `kernel_size` says otherwise. It is made on the
    host: kornia's gaussian_blur2d checks that sigma is positive, for which a GPU would be waited for.
    """
    size = kernel_size or 2 * max(min(video.shape[-2:]) // 20, 1) + 1
    kernel = get_gaussian_kernel1d(size, torch.from_numpy(sigma.astype(np.float32))[:, None])  # (B, size)
    kernel = to_device(kernel.numpy(), video.device)
    frames = rearrange(video, "B C T H W -> B (C T) H W")
    blurred = filter2d_separable(frames, kernel, kernel, border_type="reflect")
    return rearrange(blurred, "B (C T) H W -> B C T H W", C=video.shape[1]).to(video.dtype)
