"""Read what the headers of a stream's packets say: which packet gives a frame, in which order, what refers to what.

Here are VP8, VP9, AV1 and MJPEG; `nal_headers` reads H.264 and HEVC, `mpeg4` MPEG-4 part 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.decode.bitstream.av1 import Av1Sequence, av1_temporal_unit
from pipelines.decode.bitstream.vpx import PLAIN_INTER, vp8_frame, vp9_packet

HIDDEN_FRAMES = "hidden frames"
SIZE_CHANGES = "the frame size changes"
_SOI = b"\xff\xd8\xff"  # start of image, and of the next marker
_SOS, _DQT, _DHT = 0xDA, 0xDB, 0xC4  # markers: start of scan, quantization and Huffman tables
_TABLES = "tables that are not in every packet"
_SOF = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame


class StreamHeaders(NamedTuple):
    """What a codec's own syntax says of each packet, in decode order; arrays (N,)."""

    is_random_access: np.ndarray  # bool: decoding can begin there
    is_closed: np.ndarray  # bool: nothing after it in decode order needs anything before it
    is_reference: np.ndarray  # bool: another picture may be predicted from it
    is_output: np.ndarray  # bool: a decoder gives a frame once it has it
    order: np.ndarray | None  # int64: frames are shown in ascending order, fields of a frame are equal; None: unknown
    irregularity: str = ""  # why not every packet is one frame, which a decoder that counts packets relies on
    doubt: str = ""  # why the headers do not prove which frames a decoder gives
    changes_sets: bool = False  # parameter sets change midway: who begins later may have others than the stream's


def read_vp8(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """RFC 6386, 9.1."""
    del extradata
    frames = [vp8_frame(packet) for packet in packets]
    return _in_decode_order([frame.is_key for frame in frames], [frame.is_shown for frame in frames],
                            [frame.size for frame in frames], [frame.problem for frame in frames])  # fmt: skip


def read_vp9(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """VP9 bitstream specification, 6.2, 7.2 and annex B."""
    del extradata
    is_key, is_shown, problems = [], [], []
    sizes: set[tuple[int, int]] = set()
    irregularity = ""
    for packet in packets:
        frames = vp9_packet(packet)
        is_key.append(frames[0].is_key)
        if frames is PLAIN_INTER:
            is_shown.append(True)
            continue
        shown = sum(frame.is_shown for frame in frames)
        is_shown.append(shown > 0)
        sizes.update(frame.size for frame in frames)
        problems += [frame.problem for frame in frames] + ["packets of several frames"] * (shown > 1)
        if len(frames) > 1 or frames[0].shows_existing:
            irregularity = HIDDEN_FRAMES
    headers = _in_decode_order(is_key, is_shown, sizes, problems)
    return headers._replace(irregularity=irregularity or headers.irregularity)


def read_av1(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """AV1 bitstream specification, 5.3 to 5.9."""
    sequence = Av1Sequence(extradata[4:] if extradata[:1] == b"\x81" else extradata)  # behind the head of an av1C box
    units = [av1_temporal_unit(packet, sequence) for packet in packets]
    headers = _in_decode_order([unit.is_key for unit in units], [unit.shown > 0 for unit in units], [],
                               [unit.problem for unit in units])  # fmt: skip
    if any(unit.shown != 1 for unit in units):
        headers = headers._replace(irregularity=HIDDEN_FRAMES)
    return headers


def read_mjpeg(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Every packet is a JPEG image (ITU-T T.81, annex B), and has the tables that it needs."""
    del extradata
    images: list[_Jpeg] = []
    head = b"no image"
    for packet in packets:
        is_like_last = packet.startswith(head) and packet.find(_SOI, len(head)) < 0
        images.append(images[-1] if is_like_last else _jpeg(packet))
        head = packet[: images[-1].head_size] or b"no image"
    always = [True] * len(images)
    headers = _in_decode_order(always, always, [image.size for image in images], [image.problem for image in images])
    if len({image.huffman for image in images}) > 1:
        headers = headers._replace(doubt=headers.doubt or _TABLES)
    return headers


class _Jpeg(NamedTuple):
    size: tuple[int, int]  # width, height
    huffman: frozenset[int]  # classes and numbers of the tables that it brings; of those it does not, the standard's
    problem: str
    head_size: int  # bytes up to the start of scan


def _jpeg(data: bytes) -> _Jpeg:
    """Read the segments of an image up to its start of scan."""
    at, size, problem = 2, (0, 0), ""
    quantization: set[int] = set()
    huffman: set[int] = set()
    used: set[int] = set()
    while at + 9 <= len(data) and data[at] == 0xFF and data[at + 1] != _SOS:
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        if kind in _SOF:
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
            used.update(data[at + 12 : end : 3])
        elif kind == _DQT or kind == _DHT:
            (quantization if kind == _DQT else huffman).update(_table_numbers(data[at + 4 : end], kind == _DQT))
        at = end
    if data[:2] != b"\xff\xd8" or data[at : at + 2] != bytes([0xFF, _SOS]) or not all(size):
        problem = "packets that are no JPEG images"
    elif data.find(_SOI, at) >= 0:
        problem = "packets of several images"
    elif not used <= quantization:
        problem = _TABLES
    return _Jpeg(size, frozenset(huffman), problem, 0 if problem else at + 2)


def _table_numbers(segment: bytes, is_quantization: bool) -> list[int]:
    """The numbers of the tables of a segment (B.2.4.1), of Huffman tables with their class (B.2.4.2)."""
    numbers, at = [], 0
    while at < len(segment):
        if is_quantization:
            numbers.append(segment[at] & 15)
            at += 129 if segment[at] >> 4 else 65
        else:
            numbers.append(segment[at])
            at += 17 + sum(segment[at + 1 : at + 17])
    return numbers


def _in_decode_order(
    is_key: Sequence[bool], is_output: Sequence[bool], sizes: Iterable[tuple[int, int]], problems: Iterable[str]
) -> StreamHeaders:
    """Headers of a codec that shows its frames as they come; (0, 0) among `sizes` is unknown."""
    count = len(is_key)
    doubt = next(filter(None, problems), "")
    if len({size for size in sizes if any(size)}) > 1:
        doubt = doubt or SIZE_CHANGES
    return StreamHeaders(
        np.array(is_key, bool), np.ones(count, bool), np.ones(count, bool), np.array(is_output, bool),
        np.arange(count), "" if all(is_output) else HIDDEN_FRAMES, doubt,
    )  # fmt: skip
