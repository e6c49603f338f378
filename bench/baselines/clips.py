"""The clips that every baseline delivers, and what turns decoded frames into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv


@dataclass(frozen=True)
class DrawnClip:
    """One clip as Clipline's source drew it."""

    path: str
    frames: tuple[int, ...]
    box: tuple[int, int, int, int]  # top, left, height, width
    mirror: bool
    label: int

    @property
    def unique_frames(self) -> list[int]:
        """Return the frames in presentation order, each once: a clip may wrap around the end of its video."""
        return sorted(set(self.frames))

    def select(self, video: torch.Tensor) -> torch.Tensor:
        """Return the clip from a video of its unique frames, time first. Raises RuntimeError if frames are missing."""
        unique = self.unique_frames
        if len(video) != len(unique):
            raise RuntimeError(f"{self.path}: {len(video)} of {len(unique)} frames were decoded")
        return video if unique == list(self.frames) else video[[unique.index(frame) for frame in self.frames]]


def crop_resize(video: torch.Tensor, clip: DrawnClip, image_size: int) -> torch.Tensor:
    """Crop, resize and flip frames with torchvision: (T, C, H, W) uint8 -> (T, C, image_size, image_size) uint8."""
    video = tv.resized_crop(video, *clip.box, [image_size] * 2, InterpolationMode.BILINEAR, antialias=True)
    return tv.horizontal_flip(video) if clip.mirror else video


def filter_graph(clip: DrawnClip, image_size: int) -> str:
    """Describe for FFmpeg what crop_resize() does. `exact` keeps odd corners, which 4:2:0 would round to even ones."""
    top, left, height, width = clip.box
    crop = f"crop={width}:{height}:{left}:{top}:exact=1"
    flip = ["hflip"] if clip.mirror else []
    return ",".join([crop, *flip, f"scale={image_size}:{image_size}:flags=bilinear"])


class Normalize:
    """Turn uint8 frames into a normalized clip: (T, C, H, W) -> (C, T, H, W) float32, contiguous.

    Does what torchvision's to_dtype() and normalize() do, with half as many passes over the memory.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        scale = 1 / torch.tensor(std, dtype=torch.float32)
        self.bias = (-torch.tensor(mean, dtype=torch.float32) * scale).reshape(-1, 1, 1, 1)
        self.scale = scale.reshape(-1, 1, 1, 1) / 255

    def __call__(self, video: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Normalize one clip, into `out` if it is given."""
        if out is None:
            num_frames, channels, height, width = video.shape
            out = torch.empty(channels, num_frames, height, width)
        return out.copy_(video.transpose(0, 1)).mul_(self.scale).add_(self.bias)


def describe_error(error: Exception) -> str:
    """Return the first line of an error, shortened; the name of its class if it has no text."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 120, placeholder=" ...")
