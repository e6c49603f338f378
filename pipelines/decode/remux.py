"""Write some packets of a video into a small file in memory, one frame per tick."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from pipelines.decode.bitstream.parameter_sets import SPS, nal_length_size, nal_unit_type, nal_units
from pipelines.decode.demuxer import VideoDemuxer

REMUXABLE_CODECS = {"h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "ffv1"}
_ACCESS_UNIT_DELIMITER = b"\x09\xf0"
_START_CODE = b"\0\0\0\1"


def remux(video: VideoDemuxer, keep: np.ndarray, coded_size: tuple[int, int] | None = None) -> bytes:
    """Return the packets `keep` as an MP4, or WebM for VP8 and 4:4:0 VP9; `coded_size` is as in `trim.trim`.

    Raises ValueError for packets that the container does not take.
    """
    try:
        return _mux(video, keep, coded_size)
    except av.error.FFmpegError as error:
        raise ValueError(f"{video.name}: its packets cannot be remuxed: {error.strerror}") from None


def _mux(video: VideoDemuxer, keep: np.ndarray, coded_size: tuple[int, int] | None) -> bytes:
    rank = np.empty(len(keep), np.int64)
    rank[np.argsort(video.frame_table.rank[keep], kind="stable")] = np.arange(len(keep))
    delay = int((np.arange(len(keep)) - rank).max())  # no picture may be shown before it is decoded
    output = io.BytesIO()
    # One picture per tick, whatever the source's clock is: a decoder might fill gaps in time with extra frames.
    # MP4 has no place for VP8, nor for VP9 with 4:4:0 chroma.
    in_webm = video.codec == "vp8" or video.codec == "vp9" and "440" in (video.stream.codec_context.pix_fmt or "")
    # An edit list would begin with the first packet and hide pictures shown before it (leading pictures of an IDR).
    options = {"use_editlist": "0"} if rank[0] and not in_webm else {}
    with av.open(output, "w", format="webm" if in_webm else "mp4", options=options) as container:
        container.flags |= cast(int, av.container.Flags.bitexact.value)  # equal inputs give equal bytes
        stream = container.add_stream_from_template(video.stream, opaque=True)
        packets = video.packets(keep)
        if coded_size:
            packets = _remove_cropping(video, stream, packets)
        for tick, (number, shown_tick, packet) in enumerate(zip(keep.tolist(), rank.tolist(), packets, strict=True)):
            if video.codec == "h264" and tick and video.frame_table.is_random_access[number]:
                packet = _with_delimiter(packet, stream.codec_context.extradata or b"")
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.dts, packet.pts, packet.duration = tick, shown_tick + delay, 1
            container.mux(packet)
    return replace_frame_size(output.getvalue(), coded_size) if coded_size else output.getvalue()


def _remove_cropping(video: VideoDemuxer, stream: av.VideoStream, packets: Sequence[av.Packet]) -> list[av.Packet]:
    """Set the cropping to zero in the stream's parameter sets and in those within packets.

    FFmpeg's filter replaces the lengths of NAL units by start codes. Other packets get start codes too;
    the muxer turns all of them into lengths again.
    """
    crop_options = ":".join(f"crop_{side}=0" for side in ("left", "right", "top", "bottom"))
    length_size = nal_length_size(video.codec, video.stream.codec_context.extradata or b"")
    packets_without_cropping = []
    try:
        bitstream_filter = BitStreamFilterContext(f"{video.codec}_metadata={crop_options}", stream, stream)
        for packet in packets:
            units = list(nal_units(bytes(packet), length_size))
            if any(nal_unit_type(video.codec, unit[0]) == SPS[video.codec] for unit in units if unit):
                (rewritten,) = bitstream_filter.filter(packet)
            else:
                rewritten = av.Packet(b"".join(_START_CODE + unit for unit in units)) if length_size else packet
            rewritten.is_keyframe = packet.is_keyframe
            packets_without_cropping.append(rewritten)
    except (av.error.FFmpegError, ValueError):
        raise ValueError(f"{video.name}: its parameter sets cannot be rewritten") from None
    return packets_without_cropping


def replace_frame_size(file: bytes, size: tuple[int, int]) -> bytes:
    """Replace the frame size of the only video track of an MP4 (ISO/IEC 14496-12, 8.5.2 and 8.3.2)."""
    content = bytearray(file)
    moov = 0
    while content[moov + 4 : moov + 8] != b"moov":
        length = int.from_bytes(content[moov : moov + 4], "big")
        moov += length if length != 1 else int.from_bytes(content[moov + 8 : moov + 16], "big")
    entry = content.index(b"stsd", moov) + 12  # the sample entry, after version, flags and the number of entries
    struct.pack_into(">HH", content, entry + 32, *size)
    header = content.index(b"tkhd", moov)
    struct.pack_into(">II", content, header + 80, *(side << 16 for side in size))
    return bytes(content)


def _with_delimiter(packet: av.Packet, extradata: bytes) -> av.Packet:
    """Return the packet with an access unit delimiter in front.

    Two IDR pictures that are far apart in the source may have the same idr_pic_id. Without a delimiter between them
    they would be parsed as one picture (H.264, 7.4.1.2.4).
    """
    length_size = nal_length_size("h264", extradata)
    prefix = len(_ACCESS_UNIT_DELIMITER).to_bytes(length_size, "big") if length_size else _START_CODE
    packet_with_delimiter = av.Packet(prefix + _ACCESS_UNIT_DELIMITER + bytes(packet))
    packet_with_delimiter.is_keyframe = packet.is_keyframe
    return packet_with_delimiter
