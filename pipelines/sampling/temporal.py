"""Which frames of a video make a clip. Pure; frame numbers only.

num_frames=12, frames=4, stride=3      . = a frame of the video, x = a frame of the clip

. x . . x . . x . . x .                clip: span = (4 - 1) * 3 + 1 = 10, start in 0..2
. x . . . x x . . . . x                segments: one frame of each quarter (TSN); stride does not matter
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PLACES = ("spread", "start", "centre")


def random_clip(num_frames: int, frames: int, stride: float, short: str, rng: np.random.Generator) -> np.ndarray:
    """(frames,) int64: a clip whose start is drawn uniformly from all places where it fits."""
    return _clip(int(rng.integers(_last_start(num_frames, frames, stride) + 1)), num_frames, frames, stride, short)


def uniform_clips(
    num_frames: int, frames: int, stride: float, clips: int, short: str, place: str = "spread"
) -> np.ndarray:
    """(clips, frames) int64: clips at fixed places, by one of three conventions.

    spread: evenly from the first place to the last, a single one in the middle (VideoMAE, ViViT, MViT). start: the
    first at frame 0, the others evenly after it, none at the end (TimeSformer, older SlowFast). centre: the video in
    as many equal parts, each clip in the middle of its own (mmaction2).
    """
    last = _last_start(num_frames, frames, stride)
    number = np.arange(clips)
    # In whole numbers. Halves round up, so that the middle of three clips is the single clip.
    if place == "start":
        starts = last * number // clips
    elif place == "centre" or clips == 1:
        starts = (last + 1) * (2 * number + 1) // (2 * clips)
    else:
        starts = (2 * last * number // (clips - 1) + 1) // 2
    return np.stack([_clip(start, num_frames, frames, stride, short) for start in starts.tolist()])


def random_segments(num_frames: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames,) int64: a frame drawn from each of as many equal parts of the video (TSN, section 3.1)."""
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames}: a clip needs a video of at least one frame")
    edges = num_frames * np.arange(frames + 1) // frames
    return edges[:-1] + rng.integers(np.maximum(np.diff(edges), 1))


def uniform_segments(num_frames: int, frames: int, clips: int) -> np.ndarray:
    """(clips, frames) int64: of each part its middle; with several clips places evenly inside it."""
    inside = (np.arange(clips)[:, None] + 0.5) / clips
    return np.floor(num_frames * (np.arange(frames) + inside) / frames).astype(np.int64)


def snap(frames: np.ndarray, keyframes: Sequence[int], reach: float) -> np.ndarray:
    """Each frame moved to the nearest key frame that is at most `reach` away (the earlier of two), else left."""
    keys = np.asarray(keyframes)
    if not len(keys):
        return frames
    after = np.minimum(np.searchsorted(keys, frames), len(keys) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(keys[before] - frames) <= np.abs(keys[after] - frames), keys[before], keys[after])
    return np.where(np.abs(nearest - frames) <= reach, nearest, frames)


def stride_at(stride: float, fps: float, file_fps: float) -> float:
    """A stride in frames at `fps`, in frames of a file of another rate; 0 in either means as the file has it."""
    return stride * file_fps / fps if fps and file_fps else stride


def span(frames: int, stride: float) -> int:
    """Frames of the video from the first to the last frame of a clip."""
    return int(_offsets(frames, stride)[-1]) + 1


def loop(wanted: np.ndarray, num_frames: int) -> np.ndarray:
    """num_frames=3: 0 1 2 3 4 5 -> 0 1 2 0 1 2"""
    return wanted % num_frames


def edge(wanted: np.ndarray, num_frames: int) -> np.ndarray:
    """num_frames=3: 0 1 2 3 4 5 -> 0 1 2 2 2 2"""
    return np.minimum(wanted, num_frames - 1)


SHORT = {"loop": loop, "edge": edge}


def _offsets(frames: int, stride: float) -> np.ndarray:
    return np.floor(stride * np.arange(frames) + 0.5).astype(np.int64)


def _last_start(num_frames: int, frames: int, stride: float) -> int:
    return max(num_frames - span(frames, stride), 0)


def _clip(start: int, num_frames: int, frames: int, stride: float, short: str) -> np.ndarray:
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames}: a clip needs a video of at least one frame")
    return SHORT[short](start + _offsets(frames, stride), num_frames)
