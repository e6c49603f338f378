"""Decode requested frames of a video with PyAV, as its frame table says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import av
import numpy as np

from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.frame_table import clamp_frame_numbers, frame_packets, required_packets
from pipelines.decode.image_folder import ImageFolder


def decode_frames(
    video: VideoDemuxer | ImageFolder,
    frames: Sequence[int] | np.ndarray,
    trimmed: bool = True,
    context: av.VideoCodecContext | None = None,
) -> Iterator[tuple[av.VideoFrame, list[int]]]:
    """Yield each requested frame once, in presentation order, with its positions in `frames`.

    The frame table is trusted, so it must be proven (`prove.prove_frame_table`). Decoding uses one thread: the worker
    processes run in parallel. Without `trimmed` everything up to the last requested frame is decoded. `context`
    replaces the video's own decoder. Raises ValueError if a frame cannot be decoded or has another size than the video.
    """
    if isinstance(video, ImageFolder):
        yield from video.decode_frames(frames)
        return
    numbers = clamp_frame_numbers(video.frame_table, frames)
    positions: dict[int, list[int]] = {}  # frame number -> its positions in `frames`
    for position, number in enumerate(numbers.tolist()):
        positions.setdefault(number, []).append(position)
    if video.frame_table.seek_points:
        numbered_frames = _decode_by_counting(video, sorted(positions), trimmed)
    else:
        numbered_frames = _decode_by_rank(video, sorted(positions), trimmed, context)
    for frame, number in numbered_frames:
        if (frame.width, frame.height) != (video.width, video.height):
            raise ValueError(
                f"{video.name}: the frame size changes from {video.width}x{video.height} "
                f"to {frame.width}x{frame.height} midway"
            )
        yield frame, positions.pop(number)
    if positions:
        raise ValueError(
            f"{video.name}: {len(positions)} of the requested frames cannot be decoded, "
            f"the first is frame {min(positions)}"
        )


def _decode_by_rank(
    video: VideoDemuxer, numbers: Sequence[int], trimmed: bool, context: av.VideoCodecContext | None
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield the requested frames with their numbers; each decoded frame carries the rank of its packet as pts."""
    table = video.frame_table
    packets = frame_packets(table, numbers)
    keep = required_packets(table, numbers)[0] if trimmed else np.arange(packets.max() + 1)
    number_of_rank = dict(zip(table.rank[packets].tolist(), numbers, strict=True))
    for frame in video.decode(video.packets(keep), context):
        if frame.pts in number_of_rank:
            yield frame, number_of_rank.pop(frame.pts)
            if not number_of_rank:
                return


def _decode_by_counting(
    video: VideoDemuxer, numbers: Sequence[int], trimmed: bool
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield the requested frames with their numbers, counted from the last seek point before each by a new decoder."""
    points = video.frame_table.seek_points if trimmed else video.frame_table.seek_points[:1]
    ends = [frame for _, frame in points[1:]] + [video.frame_table.num_frames]
    for (packet, first), end in zip(points, ends, strict=True):
        remaining = {number for number in numbers if first <= number < end}
        if not remaining:
            continue
        with video.reopen() as (_, stream):
            for number, frame in enumerate(video.decode(video.raw_packets[packet:], stream.codec_context), first):
                if number in remaining:
                    remaining.remove(number)
                    yield frame, number
                if not remaining:
                    break


def frame_digest(frame: av.VideoFrame) -> bytes:
    """Return a digest of the visible samples of a frame, in its own pixel format."""
    digest = hashlib.blake2b(digest_size=16)
    planes = frame.planes
    for index, plane in enumerate(planes):
        components = [component for component in frame.format.components if component.plane == index]
        if len(planes) == 1:
            row_bytes = -(-plane.width * frame.format.padded_bits_per_pixel // 8)
        elif components:
            row_bytes = plane.width * sum(-(-component.bits // 8) for component in components)
        else:  # a palette
            row_bytes = plane.line_size
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, :row_bytes]
        digest.update(rows.tobytes())
    return digest.digest()
