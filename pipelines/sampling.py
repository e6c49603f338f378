"""Which frames of a video make a clip. Pure; frame numbers only.

num_frames=12, frames=4, stride=3      . = a frame of the video, x = a frame of the clip

. x . . x . . x . . x .                span = (4 - 1) * 3 + 1 = 10, start in 0..2
"""

from __future__ import annotations

import numpy as np


def random_clip(num_frames: int, frames: int, stride: int, short: str, rng: np.random.Generator) -> np.ndarray:
    """(frames,) int64: a clip whose start is drawn uniformly from all places where it fits."""
    last_start = max(num_frames - span(frames, stride), 0)
    return _clip(int(rng.integers(last_start + 1)), num_frames, frames, stride, short)


def uniform_clips(num_frames: int, frames: int, stride: int, clips: int, short: str) -> np.ndarray:
    """(clips, frames) int64: clips spread evenly from the first place to the last; a single one in the middle."""
    last_start = max(num_frames - span(frames, stride), 0)
    # Halves round up, so that the middle of three clips is the single clip.
    starts = [last_start / 2] if clips == 1 else [last_start * i / (clips - 1) for i in range(clips)]
    return np.stack([_clip(int(start + 0.5), num_frames, frames, stride, short) for start in starts])


def span(frames: int, stride: int) -> int:
    """Frames of the video from the first to the last frame of a clip."""
    return (frames - 1) * stride + 1


def loop(wanted: np.ndarray, num_frames: int) -> np.ndarray:
    """num_frames=3: 0 1 2 3 4 5 -> 0 1 2 0 1 2"""
    return wanted % num_frames


def edge(wanted: np.ndarray, num_frames: int) -> np.ndarray:
    """num_frames=3: 0 1 2 3 4 5 -> 0 1 2 2 2 2"""
    return np.minimum(wanted, num_frames - 1)


SHORT = {"loop": loop, "edge": edge}


def _clip(start: int, num_frames: int, frames: int, stride: int, short: str) -> np.ndarray:
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames}: a clip needs a video of at least one frame")
    return SHORT[short](start + stride * np.arange(frames), num_frames)
