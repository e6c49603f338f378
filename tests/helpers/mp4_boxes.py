"""Build MP4 files box by box (ISO/IEC 14496-12) that no muxer writes: odd edit lists, descriptions and fragments."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

TIMESCALE = 30  # a frame is one tick
_MATRIX = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


@dataclass(frozen=True)
class Sample:
    """One packet, displayed `shift` ticks after it is decoded; `description` counts from 1."""

    data: bytes
    is_key: bool
    shift: int = 0
    description: int = 1


@dataclass(frozen=True)
class Stream:
    """The samples of an encoded video, and its sample entry as a muxer wrote it."""

    samples: list[Sample]
    entry: bytes
    width: int
    height: int


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def encode_stream(
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    *,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    bframes: int = 0,
) -> Stream:
    """Encode RGB frames at 30 frames per second, and split the resulting MP4 into samples and sample entry."""
    file = io.BytesIO()
    height, width = frames[0].shape[:2]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, pix_fmt, Fraction(1, 30)
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, bframes
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = file.getvalue()
    start = data.index(b"stsd") + 12
    entry = data[start : start + int.from_bytes(data[start : start + 4], "big")]
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        ticks = [round(float((packet.pts - packets[0].pts) * packet.time_base) * TIMESCALE) for packet in packets]
    samples = [
        Sample(data=bytes(packet), is_key=packet.is_keyframe, shift=tick - number)
        for number, (packet, tick) in enumerate(zip(packets, ticks, strict=True))
    ]
    return Stream(samples=samples, entry=entry, width=width, height=height)


def build_mp4(
    stream: Stream,
    edits: Sequence[tuple[int, int]] = (),
    entries: Sequence[bytes] = (),
    fragments: Sequence[tuple[int, Sequence[int]]] = (),
) -> bytes:
    """Build an MP4 of a stream.

    edits: (duration, first tick of the media, or -1 for an empty edit).
    entries: sample entries that replace the stream's own.
    fragments: (tick of the first sample, numbers of the samples) of each; the movie box then has no samples.
    """
    samples = stream.samples if not fragments else []
    file_type = box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso2avc1mp41")
    media = box(b"mdat", *(sample.data for sample in samples))
    sample_table = _sample_table(samples, entries or [stream.entry], first_offset=len(file_type) + 8)
    duration = sum(length for length, _ in edits) or len(samples)
    track = _track(stream, edits=edits, duration=duration, num_samples=len(samples), sample_table=sample_table)
    header = full_box(
        b"mvhd",
        struct.pack(">4I", 0, 0, TIMESCALE, duration),
        struct.pack(">IH", 1 << 16, 256),
        bytes(10),
        _MATRIX,
        bytes(24),
        struct.pack(">I", 2),
    )
    extends = box(b"mvex", full_box(b"trex", struct.pack(">5I", 1, 1, 1, 0, 0))) if fragments else b""
    movie = box(b"moov", header, track, extends)
    return b"".join(
        [
            file_type,
            media,
            movie,
            *(_fragment(stream, number, tick, numbers) for number, (tick, numbers) in enumerate(fragments, 1)),
        ]
    )


def _sample_table(samples: Sequence[Sample], entries: Sequence[bytes], first_offset: int) -> bytes:
    """Build the stbl box of samples that lie one after the other from `first_offset` on."""
    min_shift = min((sample.shift for sample in samples), default=0)
    shifts = [sample.shift - min_shift for sample in samples]
    offsets = first_offset + np.cumsum([0, *(len(sample.data) for sample in samples)])[:-1]
    count = struct.pack(">I", len(samples))
    return box(
        b"stbl",
        full_box(b"stsd", struct.pack(">I", len(entries)), *entries),
        full_box(b"stts", count, *(struct.pack(">II", 1, 1) for _ in samples)),
        full_box(b"ctts", count, *(struct.pack(">II", 1, shift) for shift in shifts)),
        full_box(
            b"stss",
            struct.pack(">I", sum(sample.is_key for sample in samples)),
            *(struct.pack(">I", number) for number, sample in enumerate(samples, 1) if sample.is_key),
        ),
        full_box(
            b"stsc",
            count,
            *(struct.pack(">III", number, 1, sample.description) for number, sample in enumerate(samples, 1)),
        ),
        full_box(b"stsz", struct.pack(">I", 0), count, *(struct.pack(">I", len(sample.data)) for sample in samples)),
        full_box(b"stco", count, *(struct.pack(">I", offset) for offset in offsets)),
    )


def _track(
    stream: Stream, *, edits: Sequence[tuple[int, int]], duration: int, num_samples: int, sample_table: bytes
) -> bytes:
    """Build the trak box."""
    track_header = full_box(
        b"tkhd",
        struct.pack(">5I", 0, 0, 1, 0, duration),
        bytes(16),
        _MATRIX,
        struct.pack(">II", stream.width << 16, stream.height << 16),
        flags=7,
    )
    edit_list = full_box(
        b"elst",
        struct.pack(">I", len(edits)),
        *(struct.pack(">IiI", length, first, 1 << 16) for length, first in edits),
    )
    media = box(
        b"mdia",
        full_box(b"mdhd", struct.pack(">4I", 0, 0, TIMESCALE, num_samples), struct.pack(">HH", 0x55C4, 0)),
        full_box(b"hdlr", bytes(4), b"vide", bytes(13)),
        box(
            b"minf",
            full_box(b"vmhd", bytes(8), flags=1),
            box(b"dinf", full_box(b"dref", struct.pack(">I", 1), full_box(b"url ", flags=1))),
            sample_table,
        ),
    )
    return box(b"trak", track_header, box(b"edts", edit_list) if edits else b"", media)


def _fragment(stream: Stream, number: int, tick: int, sample_numbers: Sequence[int]) -> bytes:
    """Build the moof and mdat boxes of a fragment."""
    samples = [stream.samples[sample_number] for sample_number in sample_numbers]
    min_shift = min(sample.shift for sample in stream.samples)

    def movie_fragment(data_offset: int) -> bytes:
        entries = [
            struct.pack(
                ">4I",
                1,
                len(sample.data),
                0x02000000 if sample.is_key else 0x01010000,
                sample.shift - min_shift,
            )
            for sample in samples
        ]
        run = full_box(b"trun", struct.pack(">Ii", len(samples), data_offset), *entries, flags=0xF01)
        track = box(
            b"traf",
            full_box(b"tfhd", struct.pack(">I", 1), flags=0x20000),
            full_box(b"tfdt", struct.pack(">I", tick)),
            run,
        )
        return box(b"moof", full_box(b"mfhd", struct.pack(">I", number)), track)

    return movie_fragment(len(movie_fragment(0)) + 8) + box(b"mdat", *(sample.data for sample in samples))
