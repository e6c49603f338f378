"""Decode, crop and resize the views of a video on the CPU with PyAV, for videos that DALI has no decoder for.

Only what the requested frames depend on is decoded, and only the boxes are resized and converted to RGB, in one pass of
FFmpeg's scaler. DALI could crop and resize whole frames too, but on a CPU its resize takes a third of all time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_frames
from pipelines.sampling.spatial import letterbox_size

_RGB_OF_GBR = (2, 0, 1)  # FFmpeg's planar RGB has its planes in the order G, B, R


# What all decoders need comes first; the keyword arguments are options that each caller needs some of.
def decode_views(  # noqa: PLR0913
    source: str | os.PathLike[str] | bytes,
    frames: np.ndarray,
    boxes: np.ndarray,
    size: int,
    *,
    letterbox: Sequence[int] | None = None,
    timeout: float = math.inf,
    table: str = "",
    trimmed: bool = True,
) -> np.ndarray:
    """Decode views: `frames` (clips, T) as in `trim.trim`, `boxes` (crops, 4) -> (clips * crops, 3, T, size, size).

    The result is uint8 RGB. View c * crops + k is clip c in box k (top, left, bottom, right), stretched to the square,
    or, with `letterbox`, fitted into its middle and surrounded by that RGB color. Downscaling is antialiased. `timeout`
    and `table` are as in `trim.trim`. Without `trimmed` everything up to the last requested frame is decoded (only the
    bench does so).

    Raises ValueError with the path and the reason if the video or a requested frame cannot be decoded in time.
    """
    num_clips, num_frames = frames.shape
    views = np.empty((num_clips, len(boxes), 3, num_frames, size, size), np.uint8)
    if letterbox:
        views[:] = np.reshape(letterbox, (3, 1, 1, 1))
    with open_frames(source, timeout=timeout, table=table) as video:
        int_boxes = boxes.astype(int).tolist()
        view_sizes = [
            letterbox_size(right - left, bottom - top, size) if letterbox else (size, size)
            for top, left, bottom, right in int_boxes
        ]
        scalers: list[av.filter.Graph] = []
        for frame, positions in decode_frames(video, frames.reshape(-1), trimmed):
            scalers = scalers or [
                _scaler(frame, box, view_size) for box, view_size in zip(int_boxes, view_sizes, strict=True)
            ]
            clip, time = np.unravel_index(positions, frames.shape)
            for crop, scaler in enumerate(scalers):
                planes = _scale(scaler, frame, video.name)
                height, width = view_sizes[crop]
                top, left = (size - height + 1) // 2, (size - width + 1) // 2  # as DALI rounds
                rows, columns = slice(top, top + height), slice(left, left + width)
                for channel, plane in enumerate(_RGB_OF_GBR):
                    pixels = np.frombuffer(planes[plane], np.uint8).reshape(-1, planes[plane].line_size)
                    views[clip, crop, channel, time, rows, columns] = pixels[:height, :width]
    return views.reshape(-1, 3, num_frames, size, size)


def _scaler(frame: av.VideoFrame, box: Sequence[int], size: tuple[int, int]) -> av.filter.Graph:
    """Build a filter that turns frames like this one into their box as planar RGB of `size` (height, width)."""
    top, left, bottom, right = box
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=Fraction(1, 30))]
    if (top, left, bottom, right) != (0, 0, frame.height, frame.width):  # the filter refuses a frame of one pixel
        nodes.append(graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}"))
    graph.link_nodes(
        *nodes,
        graph.add("scale", f"{size[1]}:{size[0]}:flags=bilinear"),
        graph.add("format", "gbrp"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _scale(scaler: av.filter.Graph, frame: av.VideoFrame, name: str) -> Any:
    """Return the planes of a frame's box. Raises ValueError with the video's name if the frame cannot be converted."""
    try:
        scaler.push(frame)
        planes: Any = scaler.pull().planes
    except av.error.FFmpegError as error:
        raise ValueError(f"{name}: its frames cannot be converted to RGB: {error.strerror}") from None
    return planes
