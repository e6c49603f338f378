"""The packets that the wanted frames need, as a small video in memory. Decoded frames are bit-identical.

A clip of 16 frames out of 300 depends on a fraction of the file: the groups of pictures that hold a wanted frame, only
up to the last wanted picture of each, and without the pictures that nothing refers to. DALI's decoder never seeks, so
what is not trimmed away is decoded.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from pipelines.parameter_sets import SPS, nal_length_size, nal_type, nal_units
from pipelines.pictures import Pictures
from pipelines.video import Video

_HELD = {"h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "h263", "ffv1"}
_ACCESS_UNIT_DELIMITER = b"\x09\xf0"
_START_CODE = b"\0\0\0\1"


def trim(
    source: str | os.PathLike[str] | bytes,
    frames: Sequence[int] | np.ndarray,
    seconds: float = math.inf,
    table: str = "",
    coded_size: tuple[int, int] | None = None,
) -> tuple[bytes, np.ndarray]:
    """A video that holds the wanted frames, and where they stand in it.

    `frames` are frame numbers in any order, repeats allowed; a number past the end means the last frame. Returns the
    small file and `positions` (len(frames),) int32: its frame `positions[i]` is `frames[i]` of the source. A video
    whose packets do not tell the order of its frames, or of a codec that MP4 does not hold, comes back whole. With the
    `table` that an index keeps (`Video.table`) only the bytes of those packets are read. With `coded_size` (width,
    height), of H.264 and HEVC, the small file says that all that is coded is shown: what a decoder would cut off at the
    right and the bottom is then part of its frames, and their size that of the decoder's surfaces.
    Raises ValueError for a negative number and for a source that is no readable video, or not within `seconds`.
    """
    with Video(source, seconds, table) as video:
        if not video.ordered or video.codec not in _HELD:
            last = len(video.pictures.frames) - 1
            wanted_pictures(video.pictures, frames)  # for its errors
            return video.content(), np.minimum(np.asarray(frames, np.int32), last)
        keep, positions = needed(video.pictures, frames)
        return _remux(video, keep, coded_size), positions


def needed(pictures: Pictures, frames: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures must be decoded for the wanted frames: (K,) decode-order numbers, ascending, and positions.

    `positions` (len(frames),) int32 are frame numbers in a stream that consists of these pictures alone.
    """
    wanted = wanted_pictures(pictures, frames)
    entries = np.flatnonzero(pictures.entry)
    ends = np.append(entries[1:], len(pictures.pts))
    last: dict[int, int] = {}  # group -> the last picture of it that must be decoded
    for w in wanted.tolist():
        group = int(np.searchsorted(entries, w, "right")) - 1
        last[group] = max(last.get(group, -1), w)
        if pictures.pts[w] < pictures.pts[entries[group]] and not pictures.closed[entries[group]] and group > 0:
            last[group - 1] = int(ends[group - 1]) - 1  # a leading picture of an open group: it needs the group before
    for group in sorted(last):
        earlier = [g for g in last if g < group]
        if earlier and not pictures.closed[entries[group]]:  # only a closed group may follow a gap
            for between in range(max(earlier), group):
                last[between] = int(ends[between]) - 1

    keep = np.zeros(len(pictures.pts), bool)
    for group, end in last.items():
        chosen = np.arange(entries[group], end + 1)
        useful = pictures.reference[chosen]
        if group - 1 not in last and not pictures.closed[entries[group]]:
            useful = useful & (
                pictures.pts[chosen] >= pictures.pts[entries[group]]
            )  # nothing to decode the leading from
        keep[chosen[useful]] = True
    keep[wanted] = True
    kept = np.flatnonzero(keep)
    # A picture that the source decodes but does not show (before the start of an edit list) is shown by the small file.
    rank = np.empty(len(pictures.pts), np.int32)
    rank[kept[np.argsort(pictures.pts[kept], kind="stable")]] = np.arange(len(kept))
    return kept, rank[wanted]


def wanted_pictures(pictures: Pictures, frames: Sequence[int] | np.ndarray) -> np.ndarray:
    """(len(frames),) decode-order number of each wanted frame; past the end means the last frame."""
    numbers, shown = np.asarray(frames, np.int64), pictures.frames
    if numbers.size == 0 or numbers.min() < 0:
        raise ValueError(f"frames {numbers.tolist()}: expected at least one, none below 0")
    if not len(shown):
        raise ValueError("no picture of the video is ever shown")
    return shown[np.minimum(numbers, len(shown) - 1)]


def _remux(video: Video, keep: np.ndarray, coded_size: tuple[int, int] | None) -> bytes:
    pts = video.pictures.pts[keep]
    rank = np.empty(len(keep), np.int64)
    rank[np.argsort(pts, kind="stable")] = np.arange(len(keep))
    delay = int((np.arange(len(keep)) - rank).max())  # a picture may not be shown before it is decoded
    output = io.BytesIO()
    # One picture a tick, whatever the source's clock: gaps in time would only invite a decoder to fill them.
    with av.open(output, "w", format="webm" if video.codec == "vp8" else "mp4") as container:
        container.flags |= cast(int, av.container.Flags.bitexact.value)  # the same bytes every time
        stream = container.add_stream_from_template(video.stream, opaque=True)
        packets = video.packets(keep)
        if coded_size:
            packets = _uncropped(video, stream, packets)
        for tick, (number, shown_at, packet) in enumerate(zip(keep.tolist(), rank.tolist(), packets, strict=True)):
            if video.codec == "h264" and tick and video.pictures.entry[number]:
                packet = _delimited(packet, stream.codec_context.extradata or b"")
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.dts, packet.pts, packet.duration = tick, shown_at + delay, 1
            container.mux(packet)
    return _with_size(output.getvalue(), coded_size) if coded_size else output.getvalue()


def _uncropped(video: Video, stream: av.VideoStream, packets: Sequence[av.Packet]) -> list[av.Packet]:
    """Take the cropping out of the stream's parameter sets and of those that lie in packets.

    FFmpeg's filter writes start codes before NAL units where MP4 has their lengths, so the other packets get them too;
    the muxer writes lengths again.
    """
    sides = ":".join(f"crop_{side}=0" for side in ("left", "right", "top", "bottom"))
    length_size = nal_length_size(video.codec, video.stream.codec_context.extradata or b"")
    uncropped = []
    try:
        rewrite = BitStreamFilterContext(f"{video.codec}_metadata={sides}", stream, stream)
        for packet in packets:
            units = list(nal_units(bytes(packet), length_size))
            if any(nal_type(video.codec, unit[0]) == SPS[video.codec] for unit in units if unit):
                (rewritten,) = rewrite.filter(packet)
            else:
                rewritten = av.Packet(b"".join(_START_CODE + unit for unit in units)) if length_size else packet
            rewritten.is_keyframe = packet.is_keyframe
            uncropped.append(rewritten)
    except (av.error.FFmpegError, ValueError):
        raise ValueError(f"{video.name}: its parameter sets cannot be rewritten") from None
    return uncropped


def _with_size(file: bytes, size: tuple[int, int]) -> bytes:
    """Write another frame size into the one video track of an MP4 (ISO/IEC 14496-12, 8.5.2 and 8.3.2)."""
    content = bytearray(file)
    moov = 0
    while content[moov + 4 : moov + 8] != b"moov":
        length = int.from_bytes(content[moov : moov + 4], "big")
        moov += length if length != 1 else int.from_bytes(content[moov + 8 : moov + 16], "big")
    entry = content.index(b"stsd", moov) + 12  # the sample entry: after version, flags and the number of entries
    struct.pack_into(">HH", content, entry + 32, *size)
    header = content.index(b"tkhd", moov)
    struct.pack_into(">II", content, header + 80, *(side << 16 for side in size))
    return bytes(content)


def _delimited(packet: av.Packet, extradata: bytes) -> av.Packet:
    """The packet behind an access unit delimiter: two IDR pictures that were far apart may carry the same idr_pic_id,
    which alone would read as one picture (H.264, 7.4.1.2.4)."""
    length_size = nal_length_size("h264", extradata)
    prefix = len(_ACCESS_UNIT_DELIMITER).to_bytes(length_size, "big") if length_size else _START_CODE
    delimited = av.Packet(prefix + _ACCESS_UNIT_DELIMITER + bytes(packet))
    delimited.is_keyframe = packet.is_keyframe
    return delimited
