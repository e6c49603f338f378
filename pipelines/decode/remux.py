"""Write some packets of a video into a small file in memory, one frame a tick."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from pipelines.decode.bitstream.parameter_sets import SPS, nal_length_size, nal_type, nal_units
from pipelines.decode.demuxer import Video

HELD = {"h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "ffv1"}  # codecs
_ACCESS_UNIT_DELIMITER = b"\x09\xf0"
_START_CODE = b"\0\0\0\1"


def remux(video: Video, keep: np.ndarray, coded_size: tuple[int, int] | None = None) -> bytes:
    """An MP4 (of VP8 a WebM file) of the packets `keep`; `coded_size` as in `trim.trim`. Raises ValueError for packets
    that the container does not take."""
    try:
        return _written(video, keep, coded_size)
    except av.error.FFmpegError as error:
        raise ValueError(f"{video.name}: its packets make no file of their own: {error.strerror}") from None


def _written(video: Video, keep: np.ndarray, coded_size: tuple[int, int] | None) -> bytes:
    rank = np.empty(len(keep), np.int64)
    rank[np.argsort(video.frame_table.rank[keep], kind="stable")] = np.arange(len(keep))
    delay = int((np.arange(len(keep)) - rank).max())  # a picture may not be shown before it is decoded
    output = io.BytesIO()
    # One picture a tick, whatever the source's clock: gaps in time would only invite a decoder to fill them.
    # MP4 does not hold VP8, nor a chroma of half the height alone.
    in_webm = video.codec == "vp8" or video.codec == "vp9" and "440" in (video.stream.codec_context.pix_fmt or "")
    # An edit list would begin with the first packet, and hide what is shown before it (leading pictures of an IDR).
    options = {"use_editlist": "0"} if rank[0] and not in_webm else {}
    with av.open(output, "w", format="webm" if in_webm else "mp4", options=options) as container:
        container.flags |= cast(int, av.container.Flags.bitexact.value)  # the same bytes every time
        stream = container.add_stream_from_template(video.stream, opaque=True)
        packets = video.packets(keep)
        if coded_size:
            packets = _uncropped(video, stream, packets)
        for tick, (number, shown_at, packet) in enumerate(zip(keep.tolist(), rank.tolist(), packets, strict=True)):
            if video.codec == "h264" and tick and video.frame_table.is_random_access[number]:
                packet = _delimited(packet, stream.codec_context.extradata or b"")
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.dts, packet.pts, packet.duration = tick, shown_at + delay, 1
            container.mux(packet)
    return with_size(output.getvalue(), coded_size) if coded_size else output.getvalue()


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


def with_size(file: bytes, size: tuple[int, int]) -> bytes:
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
