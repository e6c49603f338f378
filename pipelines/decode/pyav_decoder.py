"""Decode, crop and resize the views of a video on the CPU with PyAV, for videos that DALI has no decoder for.

Only what the requested frames depend on is decoded. A box, or a whole frame of which several boxes are cut, is resized
and converted to RGB in one pass of FFmpeg's scaler. DALI could crop and resize whole frames too, but on a CPU its
resize takes a third of all time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np

from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_frames
from pipelines.sampling.spatial import letterbox_size

_RGB_OF_GBR = (2, 0, 1)  # FFmpeg's planar RGB has its planes in the order G, B, R


class _Crop(NamedTuple):
    """A part of a scaled frame, and where it lies in a view; all in pixels of the view."""

    number: int  # of the crop
    source: tuple[slice, slice]  # rows and columns of the scaled frame
    target: tuple[slice, slice]  # rows and columns of the view
    mirror: bool = False


class _Scaling(NamedTuple):
    """A box of the stored frame (top, left, bottom, right) that is scaled to `size` (height, width), and its crops."""

    box: tuple[int, ...]
    size: tuple[int, int]
    crops: list[_Crop]


# What all decoders need comes first; the keyword arguments are options that each caller needs some of.
def decode_views(  # noqa: PLR0913
    source: str | os.PathLike[str] | bytes,
    frames: np.ndarray,
    boxes: np.ndarray,
    size: int,
    *,
    scaled_size: tuple[int, int] | None = None,
    letterbox: Sequence[int] | None = None,
    mirror: np.ndarray | None = None,
    timeout: float = math.inf,
    table: str = "",
    trimmed: bool = True,
) -> np.ndarray:
    """Decode views: `frames` (clips, T) as in `trim.trim`, `boxes` (crops, 4) -> (clips * crops, 3, T, size, size).

    The result is uint8 RGB. View c * crops + k is clip c in box k (top, left, bottom, right), stretched to the square,
    or, with `letterbox`, fitted into its middle and surrounded by that RGB color. With `scaled_size` (width, height)
    each frame is scaled to it once, and all boxes, which are squares of `size` there, are cut out of it; otherwise the
    views of a box for which `mirror` (crops,) has a 1 are mirrored. Downscaling is antialiased. `timeout` and `table`
    are as in `trim.trim`. Without `trimmed` everything up to the last requested frame is decoded (only the bench does
    so).

    Raises ValueError with the path and the reason if the video or a requested frame cannot be decoded in time.
    """
    num_clips, num_frames = frames.shape
    views = np.empty((num_clips, len(boxes), 3, num_frames, size, size), np.uint8)
    if letterbox:
        views[:] = np.reshape(letterbox, (3, 1, 1, 1))
    with open_frames(source, timeout=timeout, table=table) as video:
        scalers: list[tuple[_Scaling, av.filter.Graph]] = []
        for frame, positions in decode_frames(video, frames.reshape(-1), trimmed):
            if not scalers and scaled_size:
                scalings = [_scale_whole(boxes, size, (frame.width, frame.height), scaled_size)]
            elif not scalers:
                flips = [False] * len(boxes) if mirror is None else mirror.astype(bool).tolist()
                planned = zip(boxes, flips, strict=True)
                scalings = [_scale_box(i, box, size, bool(letterbox), flip) for i, (box, flip) in enumerate(planned)]
            scalers = scalers or [(scaling, _scaler(frame, scaling.box, scaling.size)) for scaling in scalings]
            for scaling, scaler in scalers:
                planes = _scale(scaler, frame, video.name)
                for channel, plane in enumerate(_RGB_OF_GBR):
                    pixels = np.frombuffer(planes[plane], np.uint8).reshape(-1, planes[plane].line_size)
                    for crop in scaling.crops:
                        copy = _copy_mirrored if crop.mirror else np.copyto
                        for clip, time in (divmod(position, num_frames) for position in positions):
                            copy(views[clip, crop.number, channel, time][crop.target], pixels[crop.source])
    return views.reshape(-1, 3, num_frames, size, size)


def _scale_box(number: int, box: np.ndarray, size: int, letterbox: bool, mirror: bool) -> _Scaling:
    """Plan a view that has its own box: the whole square, or its middle with `letterbox`."""
    top, left, bottom, right = box.astype(int).tolist()
    height, width = letterbox_size(right - left, bottom - top, size) if letterbox else (size, size)
    first_row, first_column = (size - height + 1) // 2, (size - width + 1) // 2  # as DALI rounds
    if mirror:
        first_column = size - width - first_column
    target = slice(first_row, first_row + height), slice(first_column, first_column + width)
    crop = _Crop(number, (slice(0, height), slice(0, width)), target, mirror)
    return _Scaling((top, left, bottom, right), (height, width), [crop])


def _scale_whole(boxes: np.ndarray, size: int, frame_size: tuple[int, int], scaled_size: tuple[int, int]) -> _Scaling:
    """Plan views that are cut out of one scaled frame; sizes are (width, height)."""
    (width, height), (scaled_width, scaled_height) = frame_size, scaled_size
    offsets = np.rint(boxes[:, :2] * [scaled_height / height, scaled_width / width]).astype(int).tolist()
    square = slice(0, size), slice(0, size)
    crops = [
        _Crop(number, (slice(top, top + size), slice(left, left + size)), square)
        for number, (top, left) in enumerate(offsets)
    ]
    return _Scaling((0, 0, height, width), (scaled_height, scaled_width), crops)


def _copy_mirrored(target: np.ndarray, source: np.ndarray) -> None:
    """Copy rows of bytes from right to left, as words of up to eight bytes, which takes a quarter of the time."""
    word = math.gcd(source.shape[1], 8)
    target.view(f"<u{word}")[...] = source.view(f">u{word}")[:, ::-1]


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
