"""Prove the frame table of a video by the headers of its packets, or, if they leave a doubt, by decoding it once.

The whole file is decoded as FFmpeg does it, and each frame is compared with the one that the predicted table gives when
decoding begins at the table's entry points. If they differ, frames are counted instead: from those key frames after
which decoding gives the frames of the whole decode, or else from the first packet.
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

from pipelines.decode.container import read_packets
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.first_frame import FirstFrame, read_first_frame
from pipelines.decode.frame_table import COUNTED, NOT_REMUXABLE, FrameTable, required_packets
from pipelines.decode.frames import decode_frames, frame_digest
from pipelines.decode.image_folder import ImageFolder, is_image_folder
from pipelines.decode.remux import REMUXABLE_CODECS, remux

_MAX_ENTRY_POINTS = 300  # each is tried
_MAX_CUT_GROUPS = 30  # groups of pictures of which a single frame is decoded, too
_MAX_CUT_GROUPS_IF_TIMED = 4  # the same, for files whose frame times agree with the table
_MAX_SEEK_POINTS = 60
_MAX_FRAME_DELAY = 40  # frames between the last one before a key packet and the first one decoded from it
_PROVE_SECONDS_PER_PACKET = 1  # added to the timeout of a file that must be decoded
_MAX_DECODED_RATIO = 3  # frames decoded in the search for seek points, per frame of the file


class WholeDecode(NamedTuple):
    """The result of decoding all packets: for each frame its digest, its time and its last packet.

    `last_packets` are the numbers of the packets after which the decoder gave the frames.
    """

    digests: list[bytes]
    times: list[int | None]
    last_packets: list[int]
    damaged_frames: list[int]  # numbers of frames that the decoder marks as corrupt
    num_refused_packets: int  # packets that the decoder raised an error for
    first_frame: av.VideoFrame
    format_change: str  # how the frames' size or pixel format changes midway; empty if it does not


def open_video(
    source: str | os.PathLike[str] | bytes, *, timeout: float = math.inf, table: str = "", any_size: bool = False
) -> VideoDemuxer:
    """Open a video and prove its frame table; arguments and errors are VideoDemuxer's and prove_frame_table()'s."""
    video = VideoDemuxer(source, timeout=timeout, table=table)
    try:
        prove_frame_table(video, any_size=any_size)
    except BaseException:
        video.close()
        raise
    return video


def open_frames(
    source: str | os.PathLike[str] | bytes, *, timeout: float = math.inf, table: str = "", any_size: bool = False
) -> VideoDemuxer | ImageFolder:
    """Open a video as open_video(), or a folder of images; `decode_frames` decodes frames of both."""
    if not isinstance(source, bytes) and is_image_folder(source):
        return ImageFolder(source, timeout=timeout, table=table)
    return open_video(source, timeout=timeout, table=table, any_size=any_size)


def prove_frame_table(video: VideoDemuxer, *, any_size: bool = False) -> FirstFrame | None:
    """Make the video's frame table trustworthy; return the properties of the first frame, None for a stored table.

    Decodes the first frame, and the whole file if the table is in doubt. Raises ValueError with the path and the reason
    if nothing can be decoded, or, without `any_size`, if frames differ in size or pixel format.
    """
    if video.is_table_stored:
        return None
    first_frame = None if video.doubt else read_first_frame(video)
    if not video.doubt:
        return first_frame
    video.timeout += _PROVE_SECONDS_PER_PACKET * len(video.raw_packets)
    whole_decode = decode_whole(video)
    if whole_decode.format_change and not any_size:
        raise ValueError(f"{video.name}: {whole_decode.format_change}")
    video.decoded_times = whole_decode.times
    video.width, video.height = whole_decode.first_frame.width, whole_decode.first_frame.height
    _set_decoded_table(video, whole_decode)
    video.doubt = ""
    return read_first_frame(video, whole_decode.first_frame)


def _set_decoded_table(video: VideoDemuxer, whole_decode: WholeDecode) -> None:
    """Keep the predicted table if the whole decode confirms it; otherwise replace it by one that counts frames."""
    table = video.frame_table if _is_intra_only(video) else video.frame_table.limit_entry_points(_MAX_ENTRY_POINTS)
    video.frame_table = replace(table, proof="decoded")
    # With changing parameter sets, frames depend on the packets decoded before. In place of a damaged picture a decoder
    # makes one up, which depends on them too.
    depends_on_history = (
        whole_decode.format_change
        or whole_decode.damaged_frames
        or whole_decode.num_refused_packets
        or video.changes_parameter_sets
    )
    if not depends_on_history and _confirms_table(video, whole_decode):
        # For AV1 with several layers, the number of frames depends on the decoder's number of threads.
        may_have_layers = video.codec == "av1" and not video.has_plain_headers
        if video.codec not in REMUXABLE_CODECS or may_have_layers or not _confirms_remuxing(video, whole_decode):
            irregularity = table.irregularity or NOT_REMUXABLE
            video.frame_table = replace(video.frame_table, is_remuxable=False, irregularity=irregularity)
        return
    points = (
        ((0, 0),)
        if whole_decode.format_change
        else _find_seek_points(video, whole_decode.digests, whole_decode.last_packets)
    )
    video.frame_table = FrameTable(
        seek_points=points,
        num_counted=len(whole_decode.digests),
        irregularity=table.irregularity or COUNTED,
        proof="decoded" if len(points) > 1 else "sequential",
    )


def _is_intra_only(video: VideoDemuxer) -> bool:
    """Return whether each picture is decoded by itself; a JPEG may rely on the tables of another packet."""
    return video.codec != "mjpeg" and video.stream.codec_context.codec.intra_only


def decode_whole(video: VideoDemuxer) -> WholeDecode:
    """Decode all packets in the order of the file. Raises ValueError if that gives no frame."""
    digests: list[bytes] = []
    times: list[int | None] = []
    last_packets: list[int] = []
    damaged_frames: list[int] = []
    first_frame: av.VideoFrame | None = None
    format_change = ""
    video.num_refused_packets = 0
    with video.reopen() as (container, stream):
        packets = _NumberedPackets(read_packets(container, stream, video.name))
        for frame in video.decode(packets, stream.codec_context):
            first_frame = first_frame or frame
            format_change = format_change or _describe_format_change(first_frame, frame)
            if frame.is_corrupt:
                damaged_frames.append(len(digests))
            digests.append(frame_digest(frame))
            times.append(frame.pts)
            last_packets.append(packets.last_number)
    if first_frame is None:
        raise ValueError(f"{video.name}: none of its {len(video.raw_packets)} packets can be decoded")
    return WholeDecode(
        digests=digests,
        times=times,
        last_packets=last_packets,
        damaged_frames=damaged_frames,
        num_refused_packets=video.num_refused_packets,
        first_frame=first_frame,
        format_change=format_change,
    )


def _describe_format_change(first: av.VideoFrame, frame: av.VideoFrame) -> str:
    """Return how a frame differs from the first one in size or pixel format; empty if it does not."""
    for name, before, after in (
        ("frame size", f"{first.width}x{first.height}", f"{frame.width}x{frame.height}"),
        ("pixel format", first.format.name, frame.format.name),
    ):
        if before != after:
            return f"the {name} changes from {before} to {after} midway"
    return ""


class _NumberedPackets(Iterator[av.Packet]):
    """An iterator over packets that knows the number of the last one that it gave; -1 before the first."""

    def __init__(self, packets: Iterable[av.Packet]):
        self._packets, self.last_number = iter(packets), -1

    def __next__(self) -> av.Packet:
        packet = next(self._packets)
        self.last_number += 1
        return packet


def _confirms_table(video: VideoDemuxer, whole_decode: WholeDecode) -> bool:
    """Return whether decoding by the frame table, from each of its entry points, gives the frames of the whole decode.

    If the headers of all packets were read and only the container is in doubt, equal frame times are evidence enough,
    and only a few entry points are tried.
    """
    table = video.frame_table
    if table.num_frames != len(whole_decode.digests):
        return False
    entries = [*np.flatnonzero(table.is_random_access).tolist(), len(table.rank)]
    groups = list(pairwise(entries))
    are_times_equal = video.has_plain_headers and video.packet_times(table.packet_of_frame) == whole_decode.times
    cut_stride = -(-len(groups) // (_MAX_CUT_GROUPS_IF_TIMED if are_times_equal else _MAX_CUT_GROUPS))
    for start, end in groups[:: cut_stride if are_times_equal else -(-len(groups) // _MAX_ENTRY_POINTS)]:
        group = np.flatnonzero((table.packet_of_frame >= start) & (table.packet_of_frame < end))
        if not len(group):
            continue
        requests = [] if are_times_equal else [group]
        if not table.is_reference[start:end].all() and not are_times_equal:
            requests.append(group[::4])  # skips unreferenced pictures
        if start in entries[::cut_stride]:
            requests.append(group[len(group) // 2 :][:1])  # ends before the packets that follow the frame
        if not all(_gives_frames(video, frames, whole_decode.digests) for frames in requests):
            return False
    return True


def _confirms_remuxing(video: VideoDemuxer, whole_decode: WholeDecode) -> bool:
    """Return whether packets of the video, written into a file of their own, give the frames of the whole decode."""
    count = len(whole_decode.digests)
    uniform = np.linspace(0, count - 1, 8).astype(int)
    more_requests = [*(uniform[:number] for number in (1, 3, 6)), np.arange(max(count - 20, 0), count)]
    for frames in [uniform] if video.has_plain_headers else [uniform, *more_requests]:
        keep, positions = required_packets(video.frame_table, frames)
        try:
            with VideoDemuxer(remux(video, keep)) as remuxed:
                digests = decode_whole(remuxed).digests
        except ValueError:
            return False
        if positions.max() >= len(digests):
            return False
        if any(
            digests[position] != whole_decode.digests[frame] for position, frame in zip(positions, frames, strict=True)
        ):
            return False
    return True


def _gives_frames(video: VideoDemuxer, frames: np.ndarray, digests: Sequence[bytes]) -> bool:
    """Return whether decoding `frames` by the frame table gives frames with these digests (of all frames)."""
    with video.reopen() as (_, stream):
        try:
            decoded = decode_frames(video, frames, context=stream.codec_context)
            return all(frame_digest(frame) == digests[frames[position]] for frame, (position,) in decoded)
        except ValueError:  # a requested frame is not among the decoded ones
            return False


def _find_seek_points(
    video: VideoDemuxer, digests: Sequence[bytes], last_packets: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return the key packets from which decoding gives the frames of the whole decode, up to the next such packet.

    `digests` and `last_packets` are those of the whole decode. Returns (packet, number of its first frame), ascending;
    the first packet is always among them.
    """
    with video.reopen() as (container, stream):
        packets = list(read_packets(container, stream, video.name))
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe and number]
    keys = keys[:: max(-(-len(keys) // _MAX_SEEK_POINTS), 1)]
    points: list[tuple[int, int]] = []
    end, budget = len(digests), _MAX_DECODED_RATIO * len(digests)
    for packet in reversed(keys):
        earliest = bisect_left(last_packets, packet)
        with video.reopen() as (_, stream):
            frames = video.decode(packets[packet:], stream.codec_context)
            first_number, num_decoded = _first_frame_number(map(frame_digest, frames), digests, earliest, end)
        budget -= num_decoded
        if first_number is not None:
            points.append((packet, first_number))
            end = first_number
        if budget < 0:
            break
    return ((0, 0), *reversed(points))


def _first_frame_number(
    decoded: Iterator[bytes], digests: Sequence[bytes], earliest: int, end: int
) -> tuple[int | None, int]:
    """Find the frame number from which the decoded frames equal `digests` up to `end`, and count the decoded frames.

    The number is `earliest` or somewhat larger; None if there is no such number.
    """
    candidates = list(range(earliest, min(earliest + _MAX_FRAME_DELAY, end)))
    count = 0
    while candidates and candidates[0] + count < end:
        digest = next(decoded, None)
        candidates = [start for start in candidates if start + count >= end or digest == digests[start + count]]
        count += 1
    return (candidates[0] if candidates else None), count
