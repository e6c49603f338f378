"""MP4 files built box by box (ISO/IEC 14496-12), for what no muxer writes: odd edit lists, descriptions, fragments."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av

TIMESCALE = 30  # a frame is one tick


@dataclass(frozen=True)
class Sample:
    """One packet: shown `shift` ticks after it is decoded; `description` counts from 1."""

    data: bytes
    is_key: bool
    shift: int = 0
    description: int = 1


@dataclass(frozen=True)
class Stream:
    """The samples of an encoded video, and its sample entry, as a muxer wrote it."""

    samples: list[Sample]
    entry: bytes
    width: int
    height: int


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def encode(
    frames: Sequence, codec: str = "libx264", options: dict[str, str] | None = None, pix_fmt: str = "yuv420p",
    gop: int = 12, bframes: int = 0,
) -> Stream:  # fmt: skip
    """Encode RGB frames at 30 frames a second, and take the file apart."""
    file = io.BytesIO()
    height, width = frames[0].shape[:2]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, pix_fmt, Fraction(1, 30)
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, bframes
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = file.getvalue()
    at = data.index(b"stsd") + 12
    entry = data[at : at + int.from_bytes(data[at : at + 4], "big")]
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        ticks = [round(float((packet.pts - packets[0].pts) * packet.time_base) * TIMESCALE) for packet in packets]
    samples = [
        Sample(bytes(p), p.is_keyframe, tick - number)
        for number, (p, tick) in enumerate(zip(packets, ticks, strict=True))
    ]
    return Stream(samples, entry, width, height)


def mp4(
    stream: Stream,
    edits: Sequence[tuple[int, int]] = (),
    entries: Sequence[bytes] = (),
    fragments: Sequence[tuple[int, Sequence[int]]] = (),
) -> bytes:
    """An MP4 of a stream. `edits`: (duration, first tick of the media or -1 for an empty edit). `entries`: sample
    entries, if not the stream's own. `fragments`: (tick of the first sample, numbers of samples) of each, none in moov.
    """
    samples = stream.samples if not fragments else []
    head = box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso2avc1mp41")
    media = box(b"mdat", *(sample.data for sample in samples))
    offset = len(head) + 8
    shifts = [sample.shift - min(s.shift for s in stream.samples) for sample in samples]
    offsets = []
    for sample in samples:
        offsets.append(offset)
        offset += len(sample.data)
    own = entries or [stream.entry]
    table = box(
        b"stbl",
        full_box(b"stsd", struct.pack(">I", len(own)), *own),
        full_box(b"stts", struct.pack(">I", len(samples)), *(struct.pack(">II", 1, 1) for _ in samples)),
        full_box(b"ctts", struct.pack(">I", len(samples)), *(struct.pack(">II", 1, shift) for shift in shifts)),
        full_box(b"stss", struct.pack(">I", sum(s.is_key for s in samples)),
                 *(struct.pack(">I", n) for n, s in enumerate(samples, 1) if s.is_key)),
        full_box(b"stsc", struct.pack(">I", len(samples)),
                 *(struct.pack(">III", n, 1, s.description) for n, s in enumerate(samples, 1))),
        full_box(b"stsz", struct.pack(">II", 0, len(samples)), *(struct.pack(">I", len(s.data)) for s in samples)),
        full_box(b"stco", struct.pack(">I", len(samples)), *(struct.pack(">I", place) for place in offsets)),
    )  # fmt: skip
    duration = sum(length for length, _ in edits) or len(samples)
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    track = box(
        b"trak",
        full_box(b"tkhd", struct.pack(">5I", 0, 0, 1, 0, duration), bytes(16), matrix,
                 struct.pack(">II", stream.width << 16, stream.height << 16), flags=7),
        box(b"edts", full_box(b"elst", struct.pack(">I", len(edits)),
                              *(struct.pack(">IiI", length, first, 1 << 16) for length, first in edits)))
        if edits else b"",
        box(b"mdia",
            full_box(b"mdhd", struct.pack(">4I", 0, 0, TIMESCALE, len(samples)), struct.pack(">HH", 0x55C4, 0)),
            full_box(b"hdlr", bytes(4), b"vide", bytes(13)),
            box(b"minf", full_box(b"vmhd", bytes(8), flags=1),
                box(b"dinf", full_box(b"dref", struct.pack(">I", 1), full_box(b"url ", flags=1))), table)),
    )  # fmt: skip
    header = full_box(b"mvhd", struct.pack(">4I", 0, 0, TIMESCALE, duration), struct.pack(">IH", 1 << 16, 256),
                      bytes(10), matrix, bytes(24), struct.pack(">I", 2))  # fmt: skip
    extends = box(b"mvex", full_box(b"trex", struct.pack(">5I", 1, 1, 1, 0, 0))) if fragments else b""
    return head + media + box(b"moov", header, track, extends) + b"".join(
        _fragment(stream, number, *fragment) for number, fragment in enumerate(fragments, 1)
    )  # fmt: skip


def _fragment(stream: Stream, number: int, tick: int, numbers: Sequence[int]) -> bytes:
    samples = [stream.samples[sample] for sample in numbers]
    least = min(sample.shift for sample in stream.samples)

    def head(offset: int) -> bytes:
        run = full_box(b"trun", struct.pack(">Ii", len(samples), offset), *(
            struct.pack(">4I", 1, len(s.data), 0x02000000 if s.is_key else 0x01010000, s.shift - least)
            for s in samples
        ), flags=0xF01)  # fmt: skip
        track = box(b"traf", full_box(b"tfhd", struct.pack(">I", 1), flags=0x20000),
                    full_box(b"tfdt", struct.pack(">I", tick)), run)  # fmt: skip
        return box(b"moof", full_box(b"mfhd", struct.pack(">I", number)), track)

    return head(len(head(0)) + 8) + box(b"mdat", *(sample.data for sample in samples))
