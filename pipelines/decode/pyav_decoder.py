"""The views of a video decoded, cropped and resized on the host by PyAV, where DALI has no decoder.

Only what the wanted frames depend on is decoded, and only the boxes are resized and converted to RGB, in one pass of
FFmpeg's scaler. DALI could crop and resize whole frames as well, but on a CPU its resize alone costs a third of the
whole loader.
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
from pipelines.decode.prove import open_video
from pipelines.sampling.spatial import fitted

_RGB_OF_GBR = (2, 0, 1)  # FFmpeg's planar RGB has its planes in the order G, B, R


def decode_views(
    source: str | os.PathLike[str] | bytes,
    frames: np.ndarray,
    boxes: np.ndarray,
    size: int,
    letterbox: Sequence[int] | None = None,
    seconds: float = math.inf,
    table: str = "",
    trimmed: bool = True,
) -> np.ndarray:
    """(clips * crops, 3, T, size, size) uint8 RGB; `frames` (clips, T) as in `trim.trim`, `boxes` (crops, 4).

    View c * crops + k is clip c in box k, stretched to the square or, with `letterbox`, in its middle with that colour
    around it. Downscaling is antialiased. Raises ValueError with the path and the reason for a video that cannot be
    read or a wanted frame that cannot be decoded, or not within `seconds`. `table` is as in `trim.trim`. Without
    `trimmed` all is decoded up to the last wanted frame (bench only).
    """
    clips, times = frames.shape
    views = np.empty((clips, len(boxes), 3, times, size, size), np.uint8)
    if letterbox:
        views[:] = np.reshape(letterbox, (3, 1, 1, 1))
    with open_video(source, seconds, table) as video:
        whole = boxes.astype(int).tolist()
        shapes = [fitted(right - left, bottom - top, size) if letterbox else (size, size)
                  for top, left, bottom, right in whole]  # fmt: skip
        scalers: list[av.filter.Graph] = []
        for frame, places in decode_frames(video, frames.reshape(-1), trimmed):
            scalers = scalers or [_scaler(frame, box, shape) for box, shape in zip(whole, shapes, strict=True)]
            clip, time = np.unravel_index(places, frames.shape)
            for crop, scaler in enumerate(scalers):
                try:
                    scaler.push(frame)
                    planes: Any = scaler.pull().planes
                except av.error.FFmpegError as error:
                    raise ValueError(f"{video.name}: its frames cannot be converted to RGB: {error.strerror}") from None
                height, width = shapes[crop]
                top, left = (size - height + 1) // 2, (size - width + 1) // 2  # as DALI rounds
                rows, columns = slice(top, top + height), slice(left, left + width)
                for channel, plane in enumerate(_RGB_OF_GBR):
                    pixels = np.frombuffer(planes[plane], np.uint8).reshape(-1, planes[plane].line_size)
                    views[clip, crop, channel, time, rows, columns] = pixels[:height, :width]
    return views.reshape(-1, 3, times, size, size)


def _scaler(frame: av.VideoFrame, box: Sequence[int], shape: tuple[int, int]) -> av.filter.Graph:
    """Frames in, the box of them as planar RGB of `shape` (height, width) out."""
    top, left, bottom, right = box
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=Fraction(1, 30))]
    if (top, left, bottom, right) != (0, 0, frame.height, frame.width):  # a frame of one pixel cannot even be cropped
        nodes.append(graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}"))
    graph.link_nodes(
        *nodes,
        graph.add("scale", f"{shape[1]}:{shape[0]}:flags=bilinear"),
        graph.add("format", "gbrp"),
        graph.add("buffersink"),
    ).configure()
    return graph
