"""Read the first bits of AV1 frames, which say whether one is a key frame, whether it is shown, and of what size."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.bit_reader import BitReader
from pipelines.vpx import DAMAGED

_OBU_SEQUENCE, _OBU_FRAMES = 1, (3, 6)
_KEY_FRAME, _SWITCH_FRAME = 0, 3  # frame_type


class TemporalUnit(NamedTuple):
    """Of AV1: whether it begins with a key frame that is shown, and how many frames it shows."""

    is_key: bool
    shown: int
    problem: str = ""


class Av1Sequence:
    """The sequence header of a stream: the one beside its packets, until one of them holds another."""

    def __init__(self, extradata: bytes):
        try:
            headers = [payload for kind, _, payload in _obus(extradata) if kind == _OBU_SEQUENCE]
        except IndexError:
            headers = []
        self.is_stored = bool(headers)  # else each key frame has to come with it
        self.is_of_packet = False
        self.header = b""
        self.fields = _NO_FIELDS
        if headers:
            self.change(headers[0])

    def change(self, header: bytes) -> None:
        """Take another header from here on. Raises ValueError for one that is cut short."""
        self.header, self.fields = header, _sequence_fields(BitReader(header))


class _Av1Fields(NamedTuple):
    """What a sequence header says of the headers of its frames."""

    is_reduced: int = 0  # a still picture with a short header
    time_bits: int = 0  # of a frame's time, where it has one
    screen_content: int = 0  # 2: each frame says whether its tools are allowed, else they are for all or for none
    integer_mv: int = 0  # likewise
    id_bits: int = 0  # of a frame's number


_NO_FIELDS = _Av1Fields()


def _sequence_fields(bits: BitReader) -> _Av1Fields:
    """Read a sequence header (5.5.1)."""
    bits.read(4)  # profile, still picture
    is_reduced, time_bits = bits.read(), 0
    if is_reduced:
        bits.read(5)
    else:
        time_bits = _skip_operating_points(bits)
    for side_bits in [bits.read(4) + 1, bits.read(4) + 1]:
        bits.read(side_bits)
    id_bits = 0
    if not is_reduced and bits.read():
        id_bits = bits.read(4) + 2
        id_bits += bits.read(3) + 1
    bits.read(3)  # superblocks, intra tools
    if is_reduced:
        return _Av1Fields(is_reduced, screen_content=2, integer_mv=2)
    bits.read(4)  # inter tools
    if bits.read():
        bits.read(2)  # tools that need the order of frames
    screen_content = 2 if bits.read() else bits.read()
    integer_mv = 2 if not screen_content or bits.read() else bits.read()
    return _Av1Fields(is_reduced, time_bits, screen_content, integer_mv, id_bits)


def _skip_operating_points(bits: BitReader) -> int:
    """Read timing and operating points of a sequence header; return how many bits the time of a shown frame has."""
    has_model = time_bits = delay_bits = 0
    if bits.read():
        bits.read(64)  # the clock
        has_equal_intervals = bits.read()
        if has_equal_intervals:
            bits.golomb()
        has_model = bits.read()
        if has_model:
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5)
            presentation_bits = bits.read(5) + 1
            time_bits = 0 if has_equal_intervals else presentation_bits
    has_delay = bits.read()
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # the level
            bits.read()
        if has_model and bits.read():
            bits.read(2 * delay_bits + 1)
        if has_delay and bits.read():
            bits.read(4)
    return time_bits


class _Av1Frame(NamedTuple):
    is_key: bool
    is_shown: bool
    shows_existing: bool = False
    has_own_size: bool = False  # it may differ from the sequence's


def _av1_frame(data: bytes, fields: _Av1Fields) -> _Av1Frame:
    """Read an uncompressed header (5.9.2) up to what says of the frame's size. Raises ValueError if it is cut short."""
    if fields.is_reduced:
        return _Av1Frame(True, True)
    bits = BitReader(data[:16])
    if bits.read():
        return _Av1Frame(False, True, shows_existing=True)
    kind, is_shown = bits.read(2), bits.read()
    bits.read(fields.time_bits if is_shown else 1)  # whether it can be shown later
    if kind == _SWITCH_FRAME:
        return _Av1Frame(False, bool(is_shown), has_own_size=True)
    if not (kind == _KEY_FRAME and is_shown):
        bits.read()  # whether it is resilient to errors
    bits.read()
    allows_tools = bits.read() if fields.screen_content == 2 else fields.screen_content
    if allows_tools and fields.integer_mv == 2:
        bits.read()
    bits.read(fields.id_bits)
    return _Av1Frame(kind == _KEY_FRAME, bool(is_shown), has_own_size=bool(bits.read()))


def av1_temporal_unit(data: bytes, sequence: Av1Sequence) -> TemporalUnit:
    """Read the headers of a temporal unit's frames."""
    is_key, shown, frames, problem, has_sequence = False, 0, 0, "", sequence.is_stored
    try:
        for kind, layer, payload in _obus(data):
            if kind == _OBU_SEQUENCE:
                if payload != sequence.header:
                    problem = "parameter sets that change midway" if sequence.is_of_packet else problem
                    sequence.change(payload)
                    sequence.is_stored = False
                has_sequence = sequence.is_of_packet = True
            elif kind in _OBU_FRAMES:
                frame = _av1_frame(payload, sequence.fields)
                if layer:
                    problem = "several layers"
                elif frame.has_own_size:
                    problem = "frames of a size of their own"
                if not frames and frame.is_shown and has_sequence:
                    is_key = frame.is_key
                shown += frame.is_shown
                frames += 1
    except (IndexError, ValueError):
        return TemporalUnit(False, shown, DAMAGED)
    if shown != 1:
        problem = problem or f"temporal units of {shown} frames"
    return TemporalUnit(is_key, shown, problem)


def _obus(data: bytes) -> list[tuple[int, int, bytes]]:
    """The open bitstream units of a packet: type, spatial layer, up to 64 bytes of payload (all of a sequence header).

    Raises IndexError for one that is cut short.
    """
    units, at = [], 0
    while at < len(data):
        head = data[at]
        kind, has_extension, has_size = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        layer = data[at + 1] >> 3 & 3 if has_extension else 0
        at += 1 + has_extension
        size = len(data) - at
        if has_size:
            size = shift = 0
            while True:
                byte = data[at]
                at += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        if at + size > len(data):
            raise IndexError("an open bitstream unit is cut short")
        units.append((kind, layer, data[at : at + (size if kind == _OBU_SEQUENCE else min(size, 64))]))
        at += size
    return units
