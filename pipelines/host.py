"""The views of a video decoded, cropped and resized on the host by PyAV, where DALI has no decoder.

Only what the wanted frames depend on is decoded (`trim.needed`), and only the boxes are resized and converted to RGB,
in one pass of FFmpeg's scaler. DALI could crop and resize whole frames as well, but on a CPU its resize alone costs a
third of the whole loader.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import av
import numpy as np

from pipelines.geometry import fitted
from pipelines.trim import needed, wanted_pictures
from pipelines.video import Video

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
    with Video(source, seconds, table) as video:
        whole = boxes.astype(int).tolist()
        shapes = [fitted(right - left, bottom - top, size) if letterbox else (size, size)
                  for top, left, bottom, right in whole]  # fmt: skip
        scalers = [_scaler(video, box, shape) for box, shape in zip(whole, shapes, strict=True)]
        for frame, places in wanted_frames(video, frames.reshape(-1), trimmed):
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


def wanted_frames(
    video: Video, frames: Sequence[int] | np.ndarray, trimmed: bool = True
) -> Iterator[tuple[av.VideoFrame, list[int]]]:
    """Each wanted frame once, in presentation order, and where it stands in `frames`.

    One thread: the workers are the parallelism. Raises ValueError if one cannot be decoded.
    """
    places: dict[int, list[int]] = {}  # key of a decoded frame -> where it stands
    decoded: Iterable[tuple[int | None, av.VideoFrame]]
    pictures = wanted_pictures(video.pictures, frames)
    if video.ordered:
        keep = needed(video.pictures, frames)[0] if trimmed else np.arange(pictures.max() + 1)
        keys, decoded = video.pictures.pts[pictures], ((frame.pts, frame) for frame in _decode(video, keep))
    else:  # counted as they come
        keys = np.minimum(np.asarray(frames), len(video.pictures.frames) - 1)
        decoded = enumerate(_decode(video, np.arange(len(video.pictures.pts))))
    for place, key in enumerate(keys.tolist()):
        places.setdefault(key, []).append(place)
    for key, frame in decoded:
        if key in places:
            if (frame.width, frame.height) != (video.width, video.height):
                raise ValueError(f"{video.name}: the frame size changes from {video.width}x{video.height} "
                                 f"to {frame.width}x{frame.height} midway")  # fmt: skip
            yield frame, places.pop(key)
            if not places:
                return
    lost = sorted(int(np.asarray(frames)[p[0]]) for p in places.values())
    raise ValueError(f"{video.name}: {len(lost)} of the wanted frames cannot be decoded, the first is frame {lost[0]}")


def _decode(video: Video, keep: np.ndarray) -> Iterator[av.VideoFrame]:
    context = video.stream.codec_context
    context.thread_type, context.thread_count = "NONE", 1
    for packet in video.packets(keep):
        video.in_time()
        try:
            yield from context.decode(packet)
        except av.error.FFmpegError:
            continue  # a damaged picture: if it was wanted, wanted_frames() says so
    with contextlib.suppress(av.error.FFmpegError):
        yield from context.decode(None)


def _scaler(video: Video, box: Sequence[int], shape: tuple[int, int]) -> av.filter.Graph:
    """Frames in, the box of them as planar RGB of `shape` (height, width) out."""
    top, left, bottom, right = box
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(template=video.stream, time_base=video.stream.time_base)]
    if (top, left, bottom, right) != (0, 0, video.height, video.width):  # a frame of one pixel cannot even be cropped
        nodes.append(graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}"))
    graph.link_nodes(
        *nodes,
        graph.add("scale", f"{shape[1]}:{shape[0]}:flags=bilinear"),
        graph.add("format", "gbrp"),
        graph.add("buffersink"),
    ).configure()
    return graph
