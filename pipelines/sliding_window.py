"""Cut one video of any length into overlapping clips, decoded with PyAV a few at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from configs.schema import Data, Eval
from pipelines.dali_graph import mean_color
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.video_info import VideoInfo, read_video_info
from pipelines.sampling import spatial, temporal
from pipelines.sampling.spatial import short_side_pixels

MAX_WINDOWS_AT_ONCE = 4  # clips


class Window(NamedTuple):
    """A clip of a video: its seconds, its views (V, C, T, H, W), normalized float32 on the host, its middle frame."""

    start: float
    end: float
    views: torch.Tensor
    frame: np.ndarray  # (H, W, 3) uint8, of the middle view


def windows(path: str, data: Data, test: Eval) -> Iterator[Window]:
    """Yield clips as `data` has them, each half a clip after the one before, the last one at the end of the video.

    With data.sampling=tsn there is one clip, over the whole video. Each has test.num_crops views. Raises ValueError
    with the path and the reason for a video that cannot be read."""
    info = read_video_info(path)
    if info.error:
        raise ValueError(f"{path}: {info.error}")
    frames = choose_frames(info, data)
    letterbox, scaled_size = data.crop == "letterbox", None
    if letterbox:
        boxes = spatial.full_frame(info.width, info.height)[None]
    else:
        side = short_side_pixels(test.short_side, data.image_size)
        boxes = spatial.view_boxes(info.width, info.height, data.image_size, side, test.num_crops)
        scaled_size = spatial.scaled_size(info.width, info.height, side)
        scaled_size = scaled_size[::-1] if info.rotation % 2 else scaled_size
    boxes = spatial.to_stored_orientation(boxes, info.width, info.height, info.rotation)
    fill = mean_color(data.mean) if letterbox else None
    mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in (data.mean, data.std))
    fps = info.fps or 30.0
    for first in range(0, len(frames), MAX_WINDOWS_AT_ONCE):
        some = frames[first : first + MAX_WINDOWS_AT_ONCE]
        views = decode_views(
            path,
            some,
            boxes,
            data.image_size,
            scaled_size=scaled_size,
            letterbox=fill,
            timeout=data.decode_timeout,
            table=info.table,
        )
        views = np.rot90(views, info.rotation, (-2, -1)).reshape(len(some), -1, *views.shape[1:])
        for numbers, clip in zip(some, views, strict=True):
            middle = clip[len(clip) // 2, :, clip.shape[2] // 2].transpose(1, 2, 0).copy()  # keeps no clip alive
            normalized = (torch.from_numpy(np.ascontiguousarray(clip)).float() / 255 - mean) / std
            yield Window(float(numbers.min()) / fps, float(numbers.max() + 1) / fps, normalized, middle)


def thumbnails(info: VideoInfo, num_frames: int = 6, size: int = 112) -> np.ndarray:
    """Decode whole frames, the middle one of each equal segment, on white: (num_frames, size, size, 3) uint8.

    Raises ValueError as windows().
    """
    if info.error:
        raise ValueError(f"{info.path}: {info.error}")
    frame = spatial.full_frame(info.width, info.height)[None]
    box = spatial.to_stored_orientation(frame, info.width, info.height, info.rotation)
    numbers = temporal.uniform_segments(info.num_frames, num_frames, 1)
    views = decode_views(info.path, numbers, box, size, letterbox=(255, 255, 255), table=info.table)
    return np.rot90(views, info.rotation, (-2, -1))[0].transpose(1, 2, 3, 0)


def choose_frames(info: VideoInfo, data: Data) -> np.ndarray:
    """Choose the frame numbers (clips, frames) of all windows."""
    if data.sampling == "tsn":
        return temporal.uniform_segments(info.num_frames, data.num_frames, 1)
    stride = temporal.stride_in_frames(data.frame_stride, data.fps, info.fps)
    span = temporal.span(data.num_frames, stride)
    count = max(math.ceil(2 * (info.num_frames - span) / span), 0) + 1
    return temporal.uniform_clips(info.num_frames, data.num_frames, stride, count, data.short_clip, "uniform")
