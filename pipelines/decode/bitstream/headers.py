"""Read from packet headers which packet gives a frame, the order of the frames, and which packets are references.

This module reads VP8, VP9, AV1 and MJPEG; `nal_headers` reads H.264 and HEVC, and `mpeg4` reads MPEG-4 part 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.decode.bitstream.av1 import Av1Decoder, read_temporal_unit
from pipelines.decode.bitstream.vpx import PLAIN_INTER, read_vp8_frame, read_vp9_packet

HIDDEN_FRAMES = "hidden frames"
SIZE_CHANGES = "the frame size changes"
_SOI = b"\xff\xd8\xff"  # start of image, followed by the first byte of another marker
_SOS, _DQT, _DHT = 0xDA, 0xDB, 0xC4  # markers: start of scan, quantization and Huffman tables
_TABLES = "tables that are not in every packet"
_SOF = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame


class StreamHeaders(NamedTuple):
    """The facts that a codec's own syntax states about each packet, in decode order; arrays (N,)."""

    is_random_access: np.ndarray  # bool: decoding can begin at this packet
    is_closed: np.ndarray  # bool: no later packet in decode order depends on an earlier one
    is_reference: np.ndarray  # bool: another picture may be predicted from this one
    is_output: np.ndarray  # bool: the decoder outputs a frame for this packet
    order: np.ndarray | None  # int64: ascending in presentation order, equal for fields of a frame; None: unknown
    irregularity: str = ""  # why packets and frames do not correspond one to one, as a decoder that counts them assumes
    doubt: str = ""  # why the headers do not prove which frames a decoder gives
    changes_parameter_sets: bool = False  # midway, so a decoder that begins later may use other sets than the stream's


def read_vp8(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the frame tag of each packet (RFC 6386, 9.1)."""
    del extradata
    frames = [read_vp8_frame(packet) for packet in packets]
    return _in_decode_order(
        is_key=[frame.is_key for frame in frames],
        is_output=[frame.is_shown for frame in frames],
        sizes=[frame.size for frame in frames],
        problems=[frame.problem for frame in frames],
    )


def read_vp9(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the uncompressed headers of each packet (VP9 bitstream specification, 6.2, 7.2 and annex B)."""
    del extradata
    is_key, is_shown, problems = [], [], []
    sizes: set[tuple[int, int]] = set()
    irregularity = ""
    for packet in packets:
        frames = read_vp9_packet(packet)
        is_key.append(frames[0].is_key)
        if frames is PLAIN_INTER:
            is_shown.append(True)
            continue
        num_shown = sum(frame.is_shown for frame in frames)
        is_shown.append(num_shown > 0)
        sizes.update(frame.size for frame in frames)
        problems += [frame.problem for frame in frames] + ["packets of several frames"] * (num_shown > 1)
        if len(frames) > 1 or frames[0].shows_existing:
            irregularity = HIDDEN_FRAMES
    headers = _in_decode_order(is_key=is_key, is_output=is_shown, sizes=sizes, problems=problems)
    return headers._replace(irregularity=irregularity or headers.irregularity)


def read_av1(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the frame headers of each packet (AV1 bitstream specification, 5.3 to 5.9)."""
    av1c_header_size = 4 if extradata[:1] == b"\x81" else 0
    decoder = Av1Decoder(extradata[av1c_header_size:])
    units = [read_temporal_unit(packet, decoder) for packet in packets]
    headers = _in_decode_order(
        is_key=[unit.is_key for unit in units],
        is_output=[unit.num_shown > 0 for unit in units],
        sizes=[],
        problems=[unit.problem for unit in units],
    )
    if any(unit.num_shown != 1 for unit in units):
        headers = headers._replace(irregularity=HIDDEN_FRAMES)
    return headers


def read_mjpeg(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the segments of each packet, which should be one JPEG image with all its tables (ITU-T T.81, annex B)."""
    del extradata
    images: list[_JpegImage] = []
    image_head = b"no image"
    for packet in packets:
        has_same_head = packet.startswith(image_head) and packet.find(_SOI, len(image_head)) < 0
        images.append(images[-1] if has_same_head else _read_jpeg(packet))
        image_head = packet[: images[-1].head_size] or b"no image"
    always = [True] * len(images)
    headers = _in_decode_order(
        is_key=always,
        is_output=always,
        sizes=[image.size for image in images],
        problems=[image.problem for image in images],
    )
    if len({image.huffman for image in images}) > 1:
        headers = headers._replace(doubt=headers.doubt or _TABLES)
    return headers


class _JpegImage(NamedTuple):
    """The header of a JPEG image."""

    size: tuple[int, int]  # width, height
    huffman: frozenset[int]  # classes and numbers of the Huffman tables in it; the standard's replace missing ones
    problem: str  # why the image cannot be decoded by itself
    head_size: int  # bytes before the start of scan; 0 if there is a problem


def _read_jpeg(data: bytes) -> _JpegImage:
    """Read the segments of an image before its start of scan."""
    offset, size, problem = 2, (0, 0), ""
    quantization: set[int] = set()
    huffman: set[int] = set()
    quantization_in_use: set[int] = set()
    while offset + 9 <= len(data) and data[offset] == 0xFF and data[offset + 1] != _SOS:
        kind, end = data[offset + 1], offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if kind == 0xFF:  # a fill byte
            offset += 1
            continue
        if kind in _SOF:
            size = (
                int.from_bytes(data[offset + 7 : offset + 9], "big"),
                int.from_bytes(data[offset + 5 : offset + 7], "big"),
            )
            quantization_in_use.update(data[offset + 12 : end : 3])
        elif kind == _DQT or kind == _DHT:
            (quantization if kind == _DQT else huffman).update(_table_numbers(data[offset + 4 : end], kind == _DQT))
        offset = end
    if data[:2] != b"\xff\xd8" or data[offset : offset + 2] != bytes([0xFF, _SOS]) or not all(size):
        problem = "packets that are no JPEG images"
    elif data.find(_SOI, offset) >= 0:
        problem = "packets of several images"
    elif not quantization_in_use <= quantization:
        problem = _TABLES
    return _JpegImage(size, frozenset(huffman), problem, 0 if problem else offset + 2)


def _table_numbers(segment: bytes, is_quantization: bool) -> list[int]:
    """Return the numbers of the tables in a segment (B.2.4.1), for Huffman tables together with the class (B.2.4.2)."""
    numbers, offset = [], 0
    while offset < len(segment):
        if is_quantization:
            numbers.append(segment[offset] & 15)
            offset += 129 if segment[offset] >> 4 else 65
        else:
            numbers.append(segment[offset])
            offset += 17 + sum(segment[offset + 1 : offset + 17])
    return numbers


def _in_decode_order(
    *, is_key: Sequence[bool], is_output: Sequence[bool], sizes: Iterable[tuple[int, int]], problems: Iterable[str]
) -> StreamHeaders:
    """Return the headers of a codec that shows frames in decode order; (0, 0) in `sizes` means unknown."""
    count = len(is_key)
    doubt = next(filter(None, problems), "")
    if len({size for size in sizes if any(size)}) > 1:
        doubt = doubt or SIZE_CHANGES
    return StreamHeaders(
        is_random_access=np.array(is_key, bool),
        is_closed=np.ones(count, bool),
        is_reference=np.ones(count, bool),
        is_output=np.array(is_output, bool),
        order=np.arange(count),
        irregularity="" if all(is_output) else HIDDEN_FRAMES,
        doubt=doubt,
    )
