"""Find the packets of an MP4 and its decoder's configuration without FFmpeg's demuxer (ISO/IEC 14496-12, 8.5 to 8.7).

FFmpeg decodes the first frames of every file that it opens, to find out about the stream. An index knows all that, so
only the sample table is read: which bytes of the file are which packet.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import av
import numpy as np

from pipelines.decode.bitstream.container_signs import ReadBytes, boxes, nested_boxes, top_level_boxes

# Sample entry -> FFmpeg's decoder.
_DECODERS = {
    b"avc1": "h264",
    b"avc3": "h264",
    b"hvc1": "hevc",
    b"hev1": "hevc",
    b"vp08": "vp8",
    b"vp09": "vp9",
    b"av01": "libdav1d",
}


class SampleTable(NamedTuple):
    """Say where the video track's sample table lies in the file, and in it the decoder's configuration; in bytes."""

    start: int
    size: int
    config_start: int  # from `start` on
    config_size: int  # 0: there is none


class PacketTable(NamedTuple):
    """The content of a sample table."""

    decoder: str  # FFmpeg's name
    config: bytes  # FFmpeg calls it extradata
    byte_ranges: list[tuple[int, int]]  # start and end of each packet in the file, in decode order


def find_sample_table(read: ReadBytes, track_id: int, config: bytes) -> SampleTable | None:
    """Find the sample table of a track whose decoder has a configuration; None if there is none that we can use."""
    for kind, start, end in top_level_boxes(read):
        if kind == b"moov":
            moov = read(start, end)
            for track_kind, first, last in boxes(moov, 0, len(moov)):
                if track_kind == b"trak" and (table := _find_in_track(moov, first, last, track_id, config)):
                    return table._replace(start=start + table.start)
            return None  # FFmpeg ignores a second moov
    return None


def _find_in_track(moov: bytes, start: int, end: int, track_id: int, config: bytes) -> SampleTable | None:
    found = {kind: (first, last) for kind, first, last in nested_boxes(moov, start, end)}
    if b"tkhd" not in found or b"stbl" not in found:
        return None
    header, (first, last) = found[b"tkhd"][0], found[b"stbl"]
    (number,) = struct.unpack_from(">I", moov, header + (20 if moov[header] == 1 else 12))
    if number != track_id:
        return None
    config_start = moov.find(config, first, last) - first if config else 0
    return SampleTable(first, last - first, config_start, len(config)) if config_start >= 0 else None


def read_sample_table(content: bytes, table: SampleTable) -> PacketTable:
    """Read the content of a sample table. Raises ValueError if it is none, or of a codec that we do not open."""
    try:
        found = {kind: content[start:end] for kind, start, end in boxes(content, 0, len(content))}
        entry = found[b"stsd"][12:16]
        return PacketTable(
            decoder=_DECODERS[entry],
            config=content[table.config_start : table.config_start + table.config_size],
            byte_ranges=_byte_ranges(found),
        )
    except (KeyError, IndexError, ValueError, struct.error):
        raise ValueError("no sample table of a codec that is known") from None


def _byte_ranges(found: dict[bytes, bytes]) -> list[tuple[int, int]]:
    """Return the byte ranges of all samples: chunks lie anywhere, the samples of a chunk one after the other."""
    sizes = _sample_sizes(found[b"stsz"])
    if b"co64" in found:
        offsets = np.frombuffer(found[b"co64"], ">u8", offset=8).astype(np.int64)
    else:
        offsets = np.frombuffer(found[b"stco"], ">u4", offset=8).astype(np.int64)
    runs = np.frombuffer(found[b"stsc"], ">u4", offset=8).reshape(-1, 3).astype(np.int64)  # first chunk, samples
    chunks_per_run = np.diff(np.append(runs[:, 0] - 1, len(offsets)))
    samples_per_chunk = np.repeat(runs[:, 1], chunks_per_run)
    if int(samples_per_chunk.sum()) != len(sizes):
        raise IndexError
    chunk = np.repeat(np.arange(len(offsets)), samples_per_chunk)
    before = np.cumsum(sizes) - sizes  # bytes of all samples before each
    first_of_chunk = np.cumsum(samples_per_chunk) - samples_per_chunk
    starts = offsets[chunk] + before - before[first_of_chunk][chunk]
    return list(zip(starts.tolist(), (starts + sizes).tolist(), strict=True))


def _sample_sizes(stsz: bytes) -> np.ndarray:
    size, count = struct.unpack_from(">II", stsz, 4)
    return np.full(count, size, np.int64) if size else np.frombuffer(stsz, ">u4", count, 12).astype(np.int64)


def open_decoder(table: PacketTable) -> av.VideoCodecContext:
    """Return a decoder that has not seen the container.

    H.264 need not say how far its frames are reordered. FFmpeg then guesses from what it has decoded and drops frames
    that come too late, unless it is told to be strict: then it reorders as far as the level of the stream allows.
    """
    context = av.CodecContext.create(table.decoder, "r")
    assert isinstance(context, av.VideoCodecContext)
    if table.config:
        context.extradata = table.config
    context.flags |= av.codec.context.Flags.unaligned  # as `container.video_stream` has it
    context.options = {"strict": "1"}
    return context
