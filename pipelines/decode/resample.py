"""Decode all frames of a video or folder upright, in one size and at a constant rate, to encode them again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

from pipelines.decode.container import read_packets
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.image_folder import DEFAULT_FPS, ImageFolder
from pipelines.decode.prove import open_frames


@contextlib.contextmanager
def open_resampled(path: str, fps: float, short_side: int) -> Iterator[tuple[Iterator[av.VideoFrame], Fraction]]:
    """Open a video or a folder of images; yield its frames, upright and resized, and their rate.

    That is `fps`, or if it is 0 the video's own, or else DEFAULT_FPS. Images are neither repeated nor dropped, whatever
    the rate.
    """
    rate = Fraction(fps).limit_denominator(1001)
    with open_frames(path, any_size=True) as video:
        if isinstance(video, ImageFolder):
            yield upright(map(video.decode, range(video.num_frames)), short_side), rate or Fraction(DEFAULT_FPS)
        else:
            rate = rate or video.fps or Fraction(DEFAULT_FPS)
            yield at_constant_rate(video, rate, short_side), rate


def at_constant_rate(video: VideoDemuxer, fps: Fraction, short_side: int) -> Iterator[av.VideoFrame]:
    """Yield upright, resized frames, one per tick of `fps`: the last frame that is displayed by then.

    All frames get the size that is computed from the first one. Raises ValueError if frames cannot be decoded.
    """
    times, ticks = video.frame_times, np.arange(video.frame_table.num_frames)
    if times is not None and (video.has_variable_frame_rate or fps != video.fps):
        base = float(video.stream.time_base or Fraction(1, 30)) * float(fps)
        ticks = np.round((times - times[0]) * base).astype(int)
    count = tick = 0
    last_frame: av.VideoFrame | None = None
    with video.reopen() as (container, stream):
        decoded = video.decode(read_packets(container, stream, video.name), stream.codec_context)
        for count, frame in enumerate(upright(decoded, short_side), 1):
            if count > len(ticks):
                break
            while last_frame is not None and tick < ticks[count - 1]:
                yield last_frame
                tick += 1
            last_frame = frame
    if count != len(ticks):
        raise ValueError(f"{video.name}: {count} of its {len(ticks)} frames can be decoded")
    if last_frame is not None:
        yield last_frame


def upright(frames: Iterable[av.VideoFrame], short_side: int) -> Iterator[av.VideoFrame]:
    """Turn frames upright and resize them to the size that is computed from the first one."""
    graph: av.filter.Graph | None = None
    frame_format, size = ("", 0, 0), (0, 0)
    for frame in frames:
        if graph is None or frame_format != (frame.format.name, frame.width, frame.height):
            frame_format = frame.format.name, frame.width, frame.height
            size = size if any(size) else target_size(frame, short_side)
            graph = rotate_and_resize_filter(frame, size)
        graph.push(frame)
        resized: Any = graph.pull()
        yield resized


def target_size(frame: av.VideoFrame, short_side: int) -> tuple[int, int]:
    """Return (width, height) of an upright frame: the short side `short_side`, the other a multiple of 16."""
    rotation = round(frame.rotation / 90) % 4
    width, height = (frame.height, frame.width) if rotation % 2 else (frame.width, frame.height)
    scale = short_side / min(width, height)
    target_width, target_height = (
        short_side if side == min(width, height) else max(round(side * scale / 16), 1) * 16 for side in (width, height)
    )
    return target_width, target_height


def rotate_and_resize_filter(frame: av.VideoFrame, size: tuple[int, int]) -> av.filter.Graph:
    """Build a filter that turns frames like this one upright and resizes them to `size` (width, height)."""
    rotation = round(frame.rotation / 90) % 4
    filters = [("transpose", "cclock")] * rotation if rotation < 3 else [("transpose", "clock")]
    filters += [("scale", f"{size[0]}:{size[1]}:flags=bicubic:out_color_matrix=bt601:out_range=tv")]
    filters += [("format", "yuv420p")]
    graph = av.filter.Graph()
    graph.threads = 1
    nodes: list[Any] = [graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=Fraction(1, 30))]
    nodes += [graph.add(name, arguments) for name, arguments in filters]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph
