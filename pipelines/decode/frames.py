"""Decode wanted frames of a video with PyAV, as its frame table says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import av
import numpy as np

from pipelines.decode.demuxer import Video
from pipelines.decode.frame_table import checked_frames, frame_packets, required_packets


def decode_frames(
    video: Video, frames: Sequence[int] | np.ndarray, trimmed: bool = True, context: av.VideoCodecContext | None = None
) -> Iterator[tuple[av.VideoFrame, list[int]]]:
    """Give each wanted frame once, in presentation order, and where it stands in `frames`.

    The frame table is taken as it is: `prove.prove` comes before. One thread: the workers are the parallelism. Without
    `trimmed` all is decoded up to the last wanted frame. `context` is another decoder than the video's own. Raises
    ValueError if a frame cannot be decoded, or has another size than the video.
    """
    numbers = checked_frames(video.frame_table, frames)
    places: dict[int, list[int]] = {}  # frame number -> where it stands
    for place, number in enumerate(numbers.tolist()):
        places.setdefault(number, []).append(place)
    if video.frame_table.seek_points:
        decoded = _count_frames(video, sorted(places), trimmed)
    else:
        decoded = _frames_by_rank(video, sorted(places), trimmed, context)
    for frame, number in decoded:
        if (frame.width, frame.height) != (video.width, video.height):
            raise ValueError(f"{video.name}: the frame size changes from {video.width}x{video.height} "
                             f"to {frame.width}x{frame.height} midway")  # fmt: skip
        yield frame, places.pop(number)
    if places:
        raise ValueError(
            f"{video.name}: {len(places)} of the wanted frames cannot be decoded, the first is frame {min(places)}"
        )


def _frames_by_rank(
    video: Video, numbers: Sequence[int], trimmed: bool, context: av.VideoCodecContext | None
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Find the wanted among the decoded frames: each carries the rank of its packet."""
    table = video.frame_table
    packets = frame_packets(table, numbers)
    keep = required_packets(table, numbers)[0] if trimmed else np.arange(packets.max() + 1)
    wanted = dict(zip(table.rank[packets].tolist(), numbers, strict=True))
    for frame in video.decode(video.packets(keep), context):
        if frame.pts in wanted:
            yield frame, wanted.pop(frame.pts)
            if not wanted:
                return


def _count_frames(video: Video, numbers: Sequence[int], trimmed: bool) -> Iterator[tuple[av.VideoFrame, int]]:
    """Count frames from the last seek point before each, with a decoder that has seen nothing else."""
    points = video.frame_table.seek_points if trimmed else video.frame_table.seek_points[:1]
    ends = [frame for _, frame in points[1:]] + [video.frame_table.num_frames]
    for (packet, first), end in zip(points, ends, strict=True):
        here = {number for number in numbers if first <= number < end}
        if not here:
            continue
        with video.reopened() as (_, stream):
            for number, frame in enumerate(video.decode(video.raw_packets[packet:], stream.codec_context), first):
                if number in here:
                    here.remove(number)
                    yield frame, number
                if not here:
                    break


def frame_digest(frame: av.VideoFrame) -> bytes:
    """Return a digest of the samples of a frame that are shown, in its own pixel format."""
    digest = hashlib.blake2b(digest_size=16)
    planes = frame.planes
    for number, plane in enumerate(planes):
        components = [component for component in frame.format.components if component.plane == number]
        if len(planes) == 1:
            width = -(-plane.width * frame.format.padded_bits_per_pixel // 8)
        elif components:
            width = plane.width * sum(-(-component.bits // 8) for component in components)
        else:  # a palette
            width = plane.line_size
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, :width]
        digest.update(rows.tobytes())
    return digest.digest()
