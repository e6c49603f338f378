"""Random erasing, mixup and CutMix of a batch on its device, by kornia: one box per clip for all its frames.

Parameters are drawn on the host for each clip from (seed, epoch, sample_index), so resuming changes nothing, and are
fed to kornia, whose own transforms draw from torch's global generator. Boxes become masks by kornia's functions, since
its RandomCutMixV2 waits for the device; the noise of erased boxes comes from a generator seeded by the first clip. Clip
i is mixed with clip B - 1 - i of its own rank. No value is read back from the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from kornia.augmentation import RandomMixUpV2
from kornia.geometry.bbox import bbox_generator, bbox_to_mask

from pipelines.batch_loader import Batch
from utils import random_streams
from utils.device import to_device

ERASE_AREA, ERASE_ASPECT = (0.02, 1 / 3), 0.3  # of an erased box: fraction of the frame, smallest height / width
MAX_TRIES = 10  # to place an erased box
NO_BOX = (0, 0, 0, 0)
MIXUP = RandomMixUpV2()
Box = tuple[int, int, int, int]  # top, left, bottom, right


class Mixing(NamedTuple):
    """The parameters drawn for a clip: the box to erase, the box to take from the other clip, and its part of the
    label.

    `lam` is the fraction of pixels with a box, otherwise the weight in the blend.
    """

    erase_box: Box
    cut_box: Box
    lam: float


@dataclass(frozen=True)
class BatchMixing:
    """Mix and erase the clips of a batch.

    mixup, cutmix: alpha of the beta distribution of each clip's lam (0: off); with both, each clip gets one of them
    with probability 1/2. erase: probability that a box becomes noise, other noise in each frame (timm's mode "pixel").
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix or self.erase)

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with a new video (B, C, T, H, W) and, if clips are mixed, label (B, num_classes) float32."""
        video = batch.video
        height, width = video.shape[-2:]
        drawn = [self.draw(seed, height, width) for seed in batch.seeds]
        erase_boxes, cut_boxes, lam = (np.array(values) for values in zip(*drawn, strict=True))
        if self.erase:
            seed = int(np.random.default_rng(batch.seeds[0]).integers(2**62))
            generator = torch.Generator(video.device).manual_seed(seed)
            noise = torch.empty_like(video).normal_(generator=generator)
            video = torch.where(box_mask(erase_boxes, video), noise, video)
        if not (self.mixup or self.cutmix):
            return batch._replace(video=video)
        mixed = video
        if self.mixup:
            partner_weight = np.where(cut_boxes[:, 2] == 0, 1 - lam, 0)  # a clip with a box is not blended too
            mixed = blend(video, partner_weight)
        if self.cutmix:
            mixed = torch.where(box_mask(cut_boxes, video), video.flip(0), mixed)
        lam_on_device = to_device(lam.astype(np.float32), video.device)
        return batch._replace(video=mixed, label=self.mix_labels(batch.label, lam_on_device))

    def mix_labels(self, label: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        """Mix class indices (B,), or targets (B, ...), with those of the partners by lam (B,)."""
        target = label if label.is_floating_point() else F.one_hot(label, self.num_classes).float()
        lam = lam.view(-1, *[1] * (target.ndim - 1))
        return target * lam + target.flip(0) * (1 - lam)

    def draw(self, seed: tuple[int, ...], height: int, width: int) -> Mixing:
        """Draw the parameters of a clip with frames of a size."""
        rng = np.random.default_rng([*seed, random_streams.MIXING])
        erase_box = erasing_box(height, width, rng) if rng.random() < self.erase else NO_BOX
        if not (self.mixup or self.cutmix):
            return Mixing(erase_box, NO_BOX, 1.0)
        use_cutmix = self.cutmix and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if use_cutmix else self.mixup
        lam = float(rng.beta(alpha, alpha))
        if not use_cutmix:
            return Mixing(erase_box, NO_BOX, lam)
        top, left, bottom, right = cutmix_box(height, width, lam, rng)
        area = (bottom - top) * (right - left)
        return Mixing(erase_box, (top, left, bottom, right) if area else NO_BOX, 1 - area / (height * width))


def blend(video: torch.Tensor, partner_weight: np.ndarray) -> torch.Tensor:
    """Blend each clip (B, C, T, H, W) with its partner, which has a weight (B,): kornia's mixup."""
    params = {
        "mixup_pairs": torch.arange(len(video), device=video.device).flip(0),
        "mixup_lambdas": to_device(partner_weight.astype(np.float32), video.device),
    }
    mixed = MIXUP.apply_transform(rearrange(video, "B C T H W -> B (C T) H W"), params)
    return rearrange(mixed, "B (C T) H W -> B C T H W", C=video.shape[1])


def erasing_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """Draw a box of random area and shape that fits (random erasing: Zhong et al., 2017, algorithm 1), or NO_BOX."""
    for _ in range(MAX_TRIES):
        area = rng.uniform(*ERASE_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(ERASE_ASPECT), -math.log(ERASE_ASPECT)))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            return top, left, top + rows, left + columns
    return NO_BOX


def cutmix_box(height: int, width: int, lam: float, rng: np.random.Generator) -> Box:
    """Draw a box around any point, cut off at the borders, with sides sqrt(1 - lam) times those of the frame.

    CutMix (Yun et al., 2019, section 3.1).
    """
    rows, columns = int(height * math.sqrt(1 - lam)), int(width * math.sqrt(1 - lam))
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(row - rows // 2, 0), max(column - columns // 2, 0)
    return top, left, min(row + rows // 2, height), min(column + columns // 2, width)


def box_mask(boxes: np.ndarray, video: torch.Tensor) -> torch.Tensor:
    """Tell which pixels lie in the box (B, 4) of their clip: (B, 1, 1, H, W) bool on the video's device."""
    height, width = video.shape[-2:]
    top, left, bottom, right = to_device(boxes.astype(np.float32), video.device).unbind(1)
    corners = bbox_generator(left, top, right - left, bottom - top)
    return bbox_to_mask(corners, width, height).bool()[:, None, None]
