"""Give all frames of a video upright, in one size and at a constant rate, for files that are written anew."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

from pipelines.decode.container import stored_packets
from pipelines.decode.demuxer import Video


def at_constant_rate(video: Video, fps: Fraction, short: int) -> Iterator[av.VideoFrame]:
    """Yield all frames upright and resized, one for each tick of `fps`: at each the last one shown by then.

    Where their size changes, all get that which is made of the first one's.
    """
    times, ticks = video.frame_times, np.arange(video.frame_table.num_frames)
    if times is not None and (video.variable_rate or fps != video.fps):
        base = float(video.stream.time_base or Fraction(1, 30)) * float(fps)
        ticks = np.round((times - times[0]) * base).astype(int)
    graph: av.filter.Graph | None = None
    kind, size = ("", 0, 0), (0, 0)
    count = due = 0
    held: Any = None
    with video.reopened() as (container, stream):
        decoded = video.decode(stored_packets(container, stream, video.name), stream.codec_context)
        for count, frame in enumerate(decoded, 1):
            if count > len(ticks):
                break
            while held is not None and due < ticks[count - 1]:
                yield held
                due += 1
            if graph is None or kind != (frame.format.name, frame.width, frame.height):
                kind = frame.format.name, frame.width, frame.height
                size = size if any(size) else target_size(frame, short)
                graph = upright_and_resized(frame, size)
            graph.push(frame)
            held = graph.pull()
    if count != len(ticks):
        raise ValueError(f"{video.name}: {count} of its {len(ticks)} frames can be decoded")
    if held is not None:
        yield held


def target_size(frame: av.VideoFrame, short: int) -> tuple[int, int]:
    """Return (width, height) of an upright frame: the short side `short`, the other a multiple of 16."""
    turns = round(frame.rotation / 90) % 4
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    scale = short / min(width, height)
    wide, high = (
        short if side == min(width, height) else max(round(side * scale / 16), 1) * 16 for side in (width, height)
    )
    return wide, high


def upright_and_resized(frame: av.VideoFrame, size: tuple[int, int]) -> av.filter.Graph:
    """Make a filter for frames like this one: turned upright, and of `size` (width, height)."""
    turns = round(frame.rotation / 90) % 4
    steps = [("transpose", "cclock")] * turns if turns < 3 else [("transpose", "clock")]
    steps += [("scale", f"{size[0]}:{size[1]}:flags=bicubic:out_color_matrix=bt601:out_range=tv")]
    steps += [("format", "yuv420p")]
    graph = av.filter.Graph()
    graph.threads = 1
    nodes: list[Any] = [graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=Fraction(1, 30))]
    nodes += [graph.add(name, arguments) for name, arguments in steps]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph
