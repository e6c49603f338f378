"""Prove the frame table of a video: by the headers of its packets, or where they leave a doubt by decoding it once.

A file is decoded whole as FFmpeg does it, and every frame compared with what the predicted table gives from each place
where decoding can begin. Where they differ, frames are counted: from those key frames after which all that comes is
what the whole decode gave, or from the first packet on.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np

from pipelines.decode.container import stored_packets
from pipelines.decode.demuxer import FirstFrame, Video
from pipelines.decode.frame_table import COUNTED, UNFIT, FrameTable, required_packets
from pipelines.decode.frames import decode_frames, frame_digest
from pipelines.decode.remux import HELD, remux

_MOST_ENTRIES = 300  # places to begin at that are tried one by one
_MOST_CUTS = 30  # groups of which a single frame is decoded, too
_FEW_CUTS = 4
_MOST_SEEK_POINTS = 60
_LATEST = 40  # frames after the one that came out last before a key frame, among which its own one is looked for
_SECONDS_A_PACKET = 1  # that proving may take beside the time that a file has for being read
_MOST_DECODED = 3  # times the frames of the file, while seek points are looked for


class WholeDecode(NamedTuple):
    """What a decode of all packets gave: of each frame the digest, the time, and the packet after which it came."""

    digests: list[bytes]
    times: list[int | None]
    after: list[int]
    damaged: list[int]  # numbers of frames that the decoder says are
    num_failed: int  # packets that it refused
    first: av.VideoFrame
    change: str  # what is not the same of all frames: size or pixel format


def open_video(
    source: str | os.PathLike[str] | bytes, seconds: float = math.inf, table: str = "", any_size: bool = False
) -> Video:
    """Open a video whose frame table can be trusted; arguments and errors are those of Video and of prove()."""
    video = Video(source, seconds, table)
    try:
        prove(video, any_size)
    except BaseException:
        video.container.close()
        raise
    return video


def prove(video: Video, any_size: bool = False) -> FirstFrame | None:
    """Make the video's frame table one that can be trusted.

    Decodes the first frame, and the whole file if the table is in doubt. Returns what the first frame says; None where
    the table was proven before. Raises ValueError with the path and the reason where it has no frames, or, without
    `any_size`, frames of different sizes or pixel formats.
    """
    if video.is_stored:
        return None
    first = None if video.doubt else video.first_frame()
    if not video.doubt:
        return first
    video.seconds += _SECONDS_A_PACKET * len(video.raw_packets)
    whole = decode_whole(video)
    if whole.change and not any_size:
        raise ValueError(f"{video.name}: {whole.change}")
    video.decoded_times = whole.times
    video.width, video.height = whole.first.width, whole.first.height
    predicted = video.frame_table if _is_intra(video) else video.frame_table.thinned(_MOST_ENTRIES)
    video.frame_table = replace(predicted, proof="decoded")
    # Where sets change, it matters which packets came before; where a picture is damaged, what a decoder makes up does.
    is_whole = not (whole.change or whole.damaged or whole.num_failed or video.changes_sets)
    if is_whole and agrees(video, whole):
        # Where a stream of AV1 has several layers, how many frames come out depends on the decoder's threads.
        may_have_layers = video.codec == "av1" and not video.is_read
        if video.codec not in HELD or may_have_layers or not makes_files(video, whole):
            irregularity = predicted.irregularity or UNFIT
            video.frame_table = replace(video.frame_table, is_remuxable=False, irregularity=irregularity)
    else:
        points = ((0, 0),) if whole.change else find_seek_points(video, whole.digests, whole.after)
        video.frame_table = FrameTable(
            seek_points=points, num_counted=len(whole.digests), irregularity=predicted.irregularity or COUNTED,
            proof="decoded" if len(points) > 1 else "sequential",
        )  # fmt: skip
    video.doubt = ""
    return video.first_frame(whole.first)


def _is_intra(video: Video) -> bool:
    """Tell whether no picture of the codec refers to another; tables of a JPEG may lie elsewhere."""
    return video.codec != "mjpeg" and video.stream.codec_context.codec.intra_only


def decode_whole(video: Video) -> WholeDecode:
    """Decode all packets in the order of the file. Raises ValueError if no frame comes of them."""
    digests: list[bytes] = []
    times: list[int | None] = []
    after: list[int] = []
    damaged: list[int] = []
    first: av.VideoFrame | None = None
    change = ""
    video.num_failed = 0
    with video.reopened() as (container, stream):
        packets = _Counted(stored_packets(container, stream, video.name))
        for frame in video.decode(packets, stream.codec_context):
            first = first or frame
            change = change or _change(first, frame)
            if frame.is_corrupt:
                damaged.append(len(digests))
            digests.append(frame_digest(frame))
            times.append(frame.pts)
            after.append(packets.count)
    if first is None:
        raise ValueError(f"{video.name}: none of its {len(video.raw_packets)} packets can be decoded")
    return WholeDecode(digests, times, after, damaged, video.num_failed, first, change)


def _change(first: av.VideoFrame, frame: av.VideoFrame) -> str:
    """Say what makes a frame unlike the first one; empty if nothing does."""
    for what, before, here in (
        ("frame size", f"{first.width}x{first.height}", f"{frame.width}x{frame.height}"),
        ("pixel format", first.format.name, frame.format.name),
    ):
        if before != here:
            return f"the {what} changes from {before} to {here} midway"
    return ""


class _Counted(Iterator[av.Packet]):
    """Packets, and the number of the last one that was taken."""

    def __init__(self, packets: Iterable[av.Packet]):
        self._packets, self.count = iter(packets), -1

    def __next__(self) -> av.Packet:
        packet = next(self._packets)
        self.count += 1
        return packet


def agrees(video: Video, whole: WholeDecode) -> bool:
    """Tell whether the frame table gives the frames of the whole decode, beginning at each place where it can.

    Where the headers of all packets were read, and only the container is in doubt, the frames' times tell; then a few
    of those places are tried.
    """
    table = video.frame_table
    if table.num_frames != len(whole.digests):
        return False
    entries = [*np.flatnonzero(table.is_random_access).tolist(), len(table.rank)]
    groups = list(pairwise(entries))
    are_timed = video.is_read and video.times_of(table.frames) == whole.times
    stride = -(-len(groups) // (_FEW_CUTS if are_timed else _MOST_CUTS))
    for start, end in groups[:: stride if are_timed else -(-len(groups) // _MOST_ENTRIES)]:
        group = np.flatnonzero((table.frames >= start) & (table.frames < end))
        if not len(group):
            continue
        wanted = [] if are_timed else [group]
        if not table.is_reference[start:end].all() and not are_timed:
            wanted.append(group[::4])  # pictures that nothing refers to are left out
        if start in entries[::stride]:
            wanted.append(group[len(group) // 2 :][:1])  # the decoder is not given what follows
        if not all(_same_frames(video, frames, whole.digests) for frames in wanted):
            return False
    return True


def makes_files(video: Video, whole: WholeDecode) -> bool:
    """Tell whether packets of the video, written into a file of their own, give the frames of the whole decode."""
    count = len(whole.digests)
    spread = np.linspace(0, count - 1, 8).astype(int)
    parts = [spread[:number] for number in (1, 3, 6)] + [np.arange(max(count - 20, 0), count)]
    for frames in [spread] if video.is_read else [spread, *parts]:
        keep, positions = required_packets(video.frame_table, frames)
        try:
            with Video(remux(video, keep)) as small:
                digests = decode_whole(small).digests
        except ValueError:
            return False
        if positions.max() >= len(digests):
            return False
        if any(digests[at] != whole.digests[frame] for at, frame in zip(positions, frames, strict=True)):
            return False
    return True


def _same_frames(video: Video, frames: np.ndarray, digests: Sequence[bytes]) -> bool:
    with video.reopened() as (_, stream):
        try:
            decoded = decode_frames(video, frames, context=stream.codec_context)
            return all(frame_digest(frame) == digests[frames[place]] for frame, (place,) in decoded)
        except ValueError:  # one does not come out
            return False


def find_seek_points(video: Video, digests: Sequence[bytes], after: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the key packets from which decoding gives the frames of the whole decode, up to the next of them.

    `digests` and `after` are of the whole decode. Returns (packet, number of the first frame) of each, ascending; the
    first packet is always one.
    """
    with video.reopened() as (container, stream):
        packets = list(stored_packets(container, stream, video.name))
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe and number]
    keys = keys[:: max(-(-len(keys) // _MOST_SEEK_POINTS), 1)]
    points: list[tuple[int, int]] = []
    end, budget = len(digests), _MOST_DECODED * len(digests)
    for packet in reversed(keys):
        lowest = bisect_left(after, packet)
        with video.reopened() as (_, stream):
            frames = video.decode(packets[packet:], stream.codec_context)
            first, count = _first_frame_number(map(frame_digest, frames), digests, lowest, end)
        budget -= count
        if first is not None:
            points.append((packet, first))
            end = first
        if budget < 0:
            break
    return ((0, 0), *reversed(points))


def _first_frame_number(
    decoded: Iterator[bytes], digests: Sequence[bytes], lowest: int, end: int
) -> tuple[int | None, int]:
    """Where the decoded frames stand among `digests`, at `lowest` or somewhat later, if they are the same up to `end`;
    None if they are not. And how many were looked at."""
    places = list(range(lowest, min(lowest + _LATEST, end)))
    count = 0
    while places and places[0] + count < end:
        digest = next(decoded, None)
        places = [place for place in places if place + count >= end or digest == digests[place + count]]
        count += 1
    return (places[0] if places else None), count
