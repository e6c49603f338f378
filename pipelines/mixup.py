"""Random erasing, mixup and cutmix of a batch on its device: one box a clip for all its frames, any batch size.

Drawn on the host for each clip from (seed, epoch, row), so that resuming changes nothing; the noise of erased boxes
from the first clip's. Clip i is mixed with clip B - 1 - i of its own rank. No value is read back from the device.
(kornia's mixing draws from torch's global generator, and its cutmix waits for the device.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.loader import Batch

AREA, ASPECT, TRIES = (0.02, 1 / 3), 0.3, 10  # of an erased box: share of the frame, narrowest height to width


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: alpha of the beta distribution of a clip's own share (0: never); with both, either for each clip
    with probability 1/2. erase: probability that a box becomes noise (timm's mode "pixel", each frame its own)."""

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix or self.erase)

    def __call__(self, batch: Batch) -> Batch:
        """video (B, C, T, H, W), label (B,) -> a batch of a new video; label (B, num_classes) float32 if mixed."""
        video = batch.video
        height, width = video.shape[-2:]
        drawn = [self.draw(seed, height, width) for seed in batch.seeds]
        erased, cut, own = (np.array(column) for column in zip(*drawn, strict=True))
        if self.erase:
            generator = torch.Generator(video.device).manual_seed(
                int(np.random.default_rng(batch.seeds[0]).integers(2**62))
            )
            noise = torch.empty_like(video).normal_(generator=generator)
            video = torch.where(inside(erased, video), noise, video)
        if not (self.mixup or self.cutmix):
            return batch._replace(video=video)
        other = video.flip(0)
        share = sent(own.astype(np.float32), video.device)
        mixed = torch.where(inside(cut, video), other, video) if self.cutmix else video
        blend = sent((cut[:, 2] == 0), video.device).view(-1, 1, 1, 1, 1)  # an empty box: blended instead
        weight = torch.where(blend, share.view(-1, 1, 1, 1, 1), 1.0).to(video.dtype)
        label = F.one_hot(batch.label, self.num_classes).float() * share[:, None]
        label = label + F.one_hot(batch.label.flip(0), self.num_classes) * (1 - share[:, None])
        return batch._replace(video=torch.lerp(other, mixed, weight), label=label)

    def draw(self, seed: tuple[int, ...], height: int, width: int) -> tuple[list[int], list[int], float]:
        """-> box to erase, box to take from the other clip (top, left, bottom, right; zeros: none), own share of the
        label: of the pixels with a box, else of the blend."""
        rng = np.random.default_rng([*seed, 3])  # 1 and 2 are the streams of the clip and of its mask
        erased = [0, 0, 0, 0]
        if rng.random() < self.erase:
            erased = erasing_box(height, width, rng)
        if not (self.mixup or self.cutmix):
            return erased, [0, 0, 0, 0], 1.0
        use_cutmix = self.cutmix and (not self.mixup or rng.random() < 0.5)
        own = float(rng.beta(*(self.cutmix if use_cutmix else self.mixup,) * 2))
        if not use_cutmix:
            return erased, [0, 0, 0, 0], own
        cut = cutmix_box(height, width, own, rng)
        area = (cut[2] - cut[0]) * (cut[3] - cut[1])
        return erased, cut if area else [0, 0, 0, 0], 1 - area / (height * width)


def erasing_box(height: int, width: int, rng: np.random.Generator) -> list[int]:
    """Random erasing (Zhong et al., 2017, algorithm 1): a box of random area and shape that fits, or zeros."""
    for _ in range(TRIES):
        area = rng.uniform(*AREA) * height * width
        shape = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
        rows, columns = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            return [top, left, top + rows, left + columns]
    return [0, 0, 0, 0]


def cutmix_box(height: int, width: int, own: float, rng: np.random.Generator) -> list[int]:
    """CutMix (Yun et al., 2019, section 3.1): sides of the frame's times sqrt(1 - own) around any place, cut off at the
    frame's borders."""
    rows, columns = int(height * math.sqrt(1 - own)), int(width * math.sqrt(1 - own))
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(row - rows // 2, 0), max(column - columns // 2, 0)
    return [top, left, min(row + rows // 2, height), min(column + columns // 2, width)]


def inside(boxes: np.ndarray, video: torch.Tensor) -> torch.Tensor:
    """(B, 4) -> (B, 1, 1, H, W) bool on the video's device: whether a pixel lies in its clip's box."""
    height, width = video.shape[-2:]
    top, left, bottom, right = sent(boxes, video.device).view(-1, 4, 1, 1, 1, 1).unbind(1)
    row = torch.arange(height, device=video.device).view(height, 1)
    column = torch.arange(width, device=video.device)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """To the device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
