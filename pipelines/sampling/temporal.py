"""Choose the frames of a clip. Pure functions of frame numbers; nothing here touches a file.

video_frames=12, num_frames=4, frame_stride=3      . = a frame of the video, x = a frame of the clip

. x . . x . . x . . x .                dense: span = (4 - 1) * 3 + 1 = 10, the start is 0, 1 or 2
. x . . . x x . . . . x                segments: one frame from each quarter (TSN); there is no stride
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CLIP_PLACEMENTS = ("uniform", "from_start", "segment_center")


def random_clip(
    video_frames: int, num_frames: int, frame_stride: float, pad_policy: str, rng: np.random.Generator
) -> np.ndarray:
    """Draw a clip whose start is uniform over all starts at which it fits: (num_frames,) int64."""
    return random_clips(video_frames, num_frames, frame_stride, 1, pad_policy, rng)[0]


def random_clips(
    video_frames: int,
    num_frames: int,
    frame_stride: float,
    num_clips: int,
    pad_policy: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw one clip from each of num_clips equal parts of the starts at which a clip fits: (num_clips, num_frames).

    In its part a start is uniform. A video too short for as many different clips has some of them twice.
    """
    starts = _last_start(video_frames, num_frames, frame_stride) + 1
    edges = starts * np.arange(num_clips + 1) // num_clips
    drawn = np.minimum(edges[:-1], starts - 1) + rng.integers(np.maximum(np.diff(edges), 1))
    return np.stack([_clip(start, video_frames, num_frames, frame_stride, pad_policy) for start in drawn.tolist()])


def uniform_clips(
    video_frames: int, num_frames: int, frame_stride: float, num_clips: int, pad_policy: str, placement: str = "uniform"
) -> np.ndarray:
    """Place clips at fixed starts by one of three conventions: (num_clips, num_frames) int64.

    uniform: evenly from the first possible start to the last; a single clip in the middle (VideoMAE, ViViT, MViT).
    from_start: the first at frame 0, the others evenly after it, none at the end (TimeSformer, older SlowFast).
    segment_center: the video in num_clips equal segments, each clip in the middle of its own (mmaction2).
    """
    last = _last_start(video_frames, num_frames, frame_stride)
    number = np.arange(num_clips)
    # In whole numbers. Halves round up, so that the middle of three clips is the single clip.
    if placement == "from_start":
        starts = last * number // num_clips
    elif placement == "segment_center" or num_clips == 1:
        starts = (last + 1) * (2 * number + 1) // (2 * num_clips)
    else:
        starts = (2 * last * number // (num_clips - 1) + 1) // 2
    clips = [_clip(start, video_frames, num_frames, frame_stride, pad_policy) for start in starts.tolist()]
    return np.stack(clips)


def random_segments(video_frames: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one frame from each of num_frames equal segments (TSN, section 3.1): (num_frames,) int64."""
    _check_not_empty(video_frames)
    edges = video_frames * np.arange(num_frames + 1) // num_frames
    return edges[:-1] + rng.integers(np.maximum(np.diff(edges), 1))


def uniform_segments(video_frames: int, num_frames: int, num_clips: int) -> np.ndarray:
    """Take the middle of each segment; several clips lie evenly inside it: (num_clips, num_frames) int64."""
    within = (np.arange(num_clips)[:, None] + 0.5) / num_clips
    return np.floor(video_frames * (np.arange(num_frames) + within) / num_frames).astype(np.int64)


def frames_between(
    video_frames: int, fps: float, start: float, end: float, times: np.ndarray | None = None
) -> tuple[int, int]:
    """Return the first frame shown at or after `start`, and how many are shown before `end`, at least one.

    Seconds count from the first frame. `times` (video_frames,) are those of the frames, if their rate varies. Raises
    ValueError if the video ends before `start`.
    """
    if times is None:
        times = np.arange(video_frames) / (fps or 30.0)
    duration = float(times[-1]) + 1 / (fps or 30.0)
    if start >= duration:
        raise ValueError(f"start={start:g}: the video ends after {duration:g} seconds")
    # Half a millisecond of tolerance: 1/30 and 0.0333 are the same frame.
    first, last = (int(np.searchsorted(times, second - 5e-4)) for second in (start, end))
    first = min(first, video_frames - 1)
    return first, max(last - first, 1)


def snap_to_keyframes(frames: np.ndarray, keyframes: Sequence[int], reach: float) -> np.ndarray:
    """Move each frame to the nearest key frame that is at most `reach` away, the earlier of two; leave the others."""
    keys = np.asarray(keyframes)
    if not len(keys):
        return frames
    after = np.minimum(np.searchsorted(keys, frames), len(keys) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(keys[before] - frames) <= np.abs(keys[after] - frames), keys[before], keys[after])
    return np.where(np.abs(nearest - frames) <= reach, nearest, frames)


def stride_in_frames(frame_stride: float, fps: float, file_fps: float) -> float:
    """Convert a stride at `fps` into frames of a file of another rate; an fps of 0 means the rate of the file."""
    return frame_stride * file_fps / fps if fps and file_fps else frame_stride


def span(num_frames: int, frame_stride: float) -> int:
    """Count the frames of the video from the first to the last frame of a clip, both included."""
    return int(_offsets(num_frames, frame_stride)[-1]) + 1


def wrap(frames: np.ndarray, video_frames: int) -> np.ndarray:
    """Start over. video_frames=3: 0 1 2 3 4 5 -> 0 1 2 0 1 2"""
    return frames % video_frames


def repeat_last(frames: np.ndarray, video_frames: int) -> np.ndarray:
    """Repeat the last frame. video_frames=3: 0 1 2 3 4 5 -> 0 1 2 2 2 2"""
    return np.minimum(frames, video_frames - 1)


PAD_POLICIES = {"wrap": wrap, "repeat_last": repeat_last}  # what follows after the last frame of a short video


def _offsets(num_frames: int, frame_stride: float) -> np.ndarray:
    return np.floor(frame_stride * np.arange(num_frames) + 0.5).astype(np.int64)


def _last_start(video_frames: int, num_frames: int, frame_stride: float) -> int:
    return max(video_frames - span(num_frames, frame_stride), 0)


def _clip(start: int, video_frames: int, num_frames: int, frame_stride: float, pad_policy: str) -> np.ndarray:
    _check_not_empty(video_frames)
    return PAD_POLICIES[pad_policy](start + _offsets(num_frames, frame_stride), video_frames)


def _check_not_empty(video_frames: int) -> None:
    if video_frames < 1:
        raise ValueError(f"video_frames={video_frames}: expected a video of at least one frame")
