"""One video of any length as clips that slide over it, decoded on the host a few at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from configs.loading import Config
from pipelines.dali_graph import mean_colour
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.video_info import Row, read_row
from pipelines.loader import short_side
from pipelines.sampling import spatial, temporal

AT_ONCE = 4  # clips


class Window(NamedTuple):
    """A clip of a video: its seconds, its views (V, C, T, H, W) normalised float32 on the host, its middle frame."""

    start: float
    end: float
    views: torch.Tensor
    picture: np.ndarray  # (H, W, 3) uint8, of the middle view


def windows(path: str, cfg: Config) -> Iterator[Window]:
    """Clips as cfg.data has them, each half a clip behind the one before, the last one at the end; of segments one,
    over the whole video. Raises ValueError with the path and the reason for a video that cannot be read."""
    data, row = cfg.data, read_row(path)
    if row.error:
        raise ValueError(f"{path}: {row.error}")
    frames = choose_frames(row, cfg)
    letterbox = data.crop == "letterbox"
    if letterbox:
        boxes = spatial.whole_frame(row.width, row.height)[None]
    else:
        boxes = spatial.view_boxes(row.width, row.height, data.size, short_side(cfg), cfg.eval.crops)
    boxes = spatial.stored(boxes, row.width, row.height, row.turns)
    fill = mean_colour(data.mean) if letterbox else None
    mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in (data.mean, data.std))
    rate = row.fps or 30.0
    for first in range(0, len(frames), AT_ONCE):
        here = frames[first : first + AT_ONCE]
        views = decode_views(path, here, boxes, data.size, fill, data.seconds, row.table)
        views = np.rot90(views, row.turns, (-2, -1)).reshape(len(here), -1, *views.shape[1:])
        for numbers, clip in zip(here, views, strict=True):
            middle = clip[len(clip) // 2, :, clip.shape[2] // 2].transpose(1, 2, 0).copy()  # and not all of the clips
            normal = (torch.from_numpy(np.ascontiguousarray(clip)).float() / 255 - mean) / std
            yield Window(float(numbers.min()) / rate, float(numbers.max() + 1) / rate, normal, middle)


def glimpse(row: Row, frames: int = 6, size: int = 112) -> np.ndarray:
    """(frames, size, size, 3) uint8: whole frames, one from the middle of each equal part, on white.

    Raises ValueError as windows().
    """
    if row.error:
        raise ValueError(f"{row.path}: {row.error}")
    box = spatial.stored(spatial.whole_frame(row.width, row.height)[None], row.width, row.height, row.turns)
    numbers = temporal.uniform_segments(row.num_frames, frames, 1)
    views = decode_views(row.path, numbers, box, size, (255, 255, 255), table=row.table)
    return np.rot90(views, row.turns, (-2, -1))[0].transpose(1, 2, 3, 0)


def is_short(row: Row, cfg: Config) -> bool:
    """Whether a readable video has fewer frames than a clip; segments take what there is."""
    stride = temporal.stride_at(cfg.data.stride, cfg.data.fps, row.fps)
    return cfg.data.sampling != "segments" and 0 < row.num_frames < temporal.span(cfg.data.frames, stride)


def choose_frames(row: Row, cfg: Config) -> np.ndarray:
    """(clips, frames) frame numbers."""
    data = cfg.data
    if data.sampling == "segments":
        return temporal.uniform_segments(row.num_frames, data.frames, 1)
    stride = temporal.stride_at(data.stride, data.fps, row.fps)
    span = temporal.span(data.frames, stride)
    count = max(math.ceil(2 * (row.num_frames - span) / span), 0) + 1
    return temporal.uniform_clips(row.num_frames, data.frames, stride, count, data.short, "spread")
