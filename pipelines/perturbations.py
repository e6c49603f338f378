"""Changed clips of a test, made from its decoded ones: what does a network look at, and how much does it bear?

Motion: one frame repeated, frames shuffled, reversed, or at half the rate. Corruptions at five strengths: noise, blur
and brightness as in ImageNet-C (Hendrycks and Dietterich, 2019, appendix B), dropped frames, and compression by H.264.
Every draw depends on (seed, epoch, sample_index) alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pipelines.decode.encoder import encode_video
from pipelines.device_augment import blur
from utils import random_streams
from utils.device import to_device

NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, in units of 0 to 1
BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)  # sigma in pixels of a frame of 224x224
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to the value of HSV, in units of 0 to 1
DROPPED = (1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8)  # of the frames; each shows the last frame before it that is there
CRF = (30, 36, 42, 47, 51)  # of x264; 23 is its default, 51 its worst quality
# With its lookahead, x264 gives other bits of the same frames about once in a thousand times.
_X264 = {"x264-params": "force-cfr=1:mbtree=0:rc-lookahead=0"}
MOTION = ("one_frame", "shuffled", "reversed", "half_rate")
CORRUPTIONS = ("noise", "blur", "brightness", "dropped_frames", "compression")

Seeds = Sequence[tuple[int, ...]]  # (seed, epoch, sample_index) of each video


class Perturbation(NamedTuple):
    """A way in which clips are changed; `strength` 1 to 5 of a corruption, 0 where there is only one."""

    name: str
    strength: int = 0


def list_perturbations(kind: str) -> list[Perturbation]:
    """Return those of eval.perturbations: motion, corruptions, all, or none."""
    motion = [Perturbation(name) for name in MOTION]
    corruptions = [Perturbation(name, strength) for name in CORRUPTIONS for strength in range(1, 6)]
    return {"": [], "motion": motion, "corruptions": corruptions, "all": motion + corruptions}[kind]


def perturb(
    video: Tensor, perturbation: Perturbation, *, seeds: Seeds, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return changed clips; `video` (B, V, C, T, H, W) is normalized with mean and std, and so is the result.

    The frames of all clips of a video are chosen alike. Raises ValueError for compression of frames with an odd size.
    """
    name, level = perturbation.name, perturbation.strength - 1
    if name in MOTION or name == "dropped_frames":
        rngs = [np.random.default_rng([*seed, random_streams.PERTURBATION]) for seed in seeds]
        orders = [frame_order(name, level, video.shape[3], rng) for rng in rngs]
        changed = (clips[:, :, to_device(order, video.device)] for clips, order in zip(video, orders, strict=True))
        return torch.stack(list(changed))
    means, stds = (to_device(np.array(v, np.float32).reshape(-1, 1, 1, 1), video.device) for v in (mean, std))
    pixels = video.float() * stds + means
    if name == "noise":
        pixels = add_noise(pixels, NOISE[level], seeds)
    elif name == "blur":
        clips = rearrange(pixels, "B V C T H W -> (B V) C T H W")
        sigma = np.full(len(clips), BLUR[level] * min(clips.shape[-2:]) / 224)
        kernel_size = 2 * math.ceil(3 * sigma[0]) + 1
        pixels = rearrange(blur(clips, sigma, kernel_size), "(B V) C T H W -> B V C T H W", B=len(video))
    elif name == "brightness":
        pixels = brighten(pixels, BRIGHTNESS[level])
    else:
        pixels = compress(pixels, CRF[level])
    return ((pixels.clamp(0, 1) - means) / stds).to(video.dtype)


def frame_order(name: str, level: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return which frame is shown at each time, (T,)."""
    times = np.arange(num_frames)
    if name == "one_frame":
        return np.full(num_frames, num_frames // 2)
    if name == "shuffled":
        return rng.permutation(num_frames)
    if name == "reversed":
        return times[::-1].copy()
    if name == "half_rate":
        return times - times % 2
    # The same generator at every strength: what is dropped at one is dropped at the next.
    times[rng.permutation(np.arange(1, num_frames))[: round(DROPPED[level] * num_frames)]] = 0
    return np.maximum.accumulate(times)


def brighten(pixels: Tensor, amount: float) -> Tensor:
    """Add to the value of the color model HSV, which is the largest of the three channels of (B, V, C, T, H, W)."""
    value = pixels.amax(2, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, pixels * brighter / value.clamp(min=1e-6), brighter.expand_as(pixels))


def add_noise(pixels: Tensor, std: float, seeds: Seeds) -> Tensor:
    """Add normal noise to clips (B, V, C, T, H, W), at every strength the same one times `std`."""
    noisy = []
    for clips, seed in zip(pixels, seeds, strict=True):
        state = np.random.SeedSequence([*seed, random_streams.PERTURBATION]).generate_state(1, np.uint64)
        generator = torch.Generator(clips.device).manual_seed(int(state[0] >> 1))
        noisy.append(clips + std * torch.randn(clips.shape, generator=generator, device=clips.device))
    return torch.stack(noisy)


def compress(pixels: Tensor, crf: int) -> Tensor:
    """Encode each clip of (B, V, C, T, H, W) in units of 0 to 1 as H.264 and decode it again."""
    height, width = pixels.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"eval.perturbations: frames of {height}x{width} cannot be compressed, expected an even size")
    clips = rearrange(pixels, "B V C T H W -> (B V) T H W C")
    frames = (clips * 255 + 0.5).clamp(0, 255).to(torch.uint8).cpu().numpy()
    decoded = np.stack([reencode(clip, crf) for clip in frames]).astype(np.float32) / 255
    return rearrange(to_device(decoded, pixels.device), "(B V) T H W C -> B V C T H W", B=len(pixels))


def reencode(frames: np.ndarray, crf: int) -> np.ndarray:
    """Encode frames (T, H, W, 3) uint8 as one group of pictures of H.264 and decode them again."""
    file = io.BytesIO()
    encode_video(file, list(frames), 25, "h264", gop=len(frames), crf=crf, options=_X264)
    file.seek(0)
    container: Any = av.open(file)
    with container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
