"""Read the first bits of AV1 frames: whether one is a key frame, is shown, has a size of its own; and whether all are
there."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.decode.bitstream.bit_reader import BitReader
from pipelines.decode.bitstream.vpx import DAMAGED

_OBU_SEQUENCE, _OBU_FRAMES = 1, (3, 6)
_KEY_FRAME, _INTRA_FRAME, _SWITCH_FRAME = 0, 2, 3  # frame_type


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
        self.hints = [0] * 8  # order hints of the frames in the decoder's slots
        self.key_slots = 0  # bits: which of the slots hold a key frame that was not shown yet
        self.last_shown: int | None = None  # order hint of the frame that was shown last; None: any may follow
        if headers:
            self.change(headers[0])

    def change(self, header: bytes) -> None:
        """Take another header from here on. Raises ValueError for one that is cut short."""
        self.header, self.fields = header, _sequence_fields(BitReader(header))

    def follow(self, frame: Av1Frame) -> bool:
        """Put a frame into the decoder's slots; tell whether one that is shown comes next in order (7.20, 7.21)."""
        bits = self.fields.hint_bits
        hint, slots, is_key = frame.hint, frame.refreshed, frame.is_key
        if frame.shows_existing:
            hint, is_key = self.hints[frame.slot], bool(self.key_slots >> frame.slot & 1)
            slots = 0xFF if is_key else 0
        if slots == 0xFF:
            self.hints = [hint] * 8
        elif slots:
            self.hints = [hint if slots >> slot & 1 else held for slot, held in enumerate(self.hints)]
        waits = is_key and not frame.is_shown
        self.key_slots = self.key_slots | slots if waits else self.key_slots & ~slots
        if not (frame.is_shown and bits):
            return True
        follows = is_key or self.last_shown is None or hint == (self.last_shown + 1) % (1 << bits)
        self.last_shown = hint
        return follows


class _Av1Fields(NamedTuple):
    """What a sequence header says of the headers of its frames."""

    is_reduced: int = 0  # a still picture with a short header
    time_bits: int = 0  # of a frame's time, where it has one
    screen_content: int = 0  # 2: each frame says whether its tools are allowed, else they are for all or for none
    integer_mv: int = 0  # likewise
    id_bits: int = 0  # of a frame's number
    hint_bits: int = 0  # of its place in presentation order
    has_model: int = 0  # of the decoder's buffers, so that frames may say when theirs is free


_NO_FIELDS = _Av1Fields()


def _sequence_fields(bits: BitReader) -> _Av1Fields:
    """Read a sequence header (5.5.1)."""
    bits.read(4)  # profile, still picture
    is_reduced, has_model, time_bits = bits.read(), 0, 0
    if is_reduced:
        bits.read(5)
    else:
        has_model, time_bits = _skip_operating_points(bits)
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
    has_hints = bits.read()
    if has_hints:
        bits.read(2)  # tools that need the order of frames
    screen_content = 2 if bits.read() else bits.read()
    integer_mv = 2 if not screen_content or bits.read() else bits.read()
    hint_bits = bits.read(3) + 1 if has_hints else 0
    return _Av1Fields(is_reduced, time_bits, screen_content, integer_mv, id_bits, hint_bits, has_model)


def _skip_operating_points(bits: BitReader) -> tuple[int, int]:
    """Read timing and operating points of a sequence header; return whether it has a model of the decoder, and how many
    bits the time of a shown frame has."""
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
    return has_model, time_bits


class Av1Frame(NamedTuple):
    is_key: bool
    is_shown: bool
    shows_existing: bool = False
    has_own_size: bool = False  # it may differ from the sequence's
    slot: int = 0  # of the one that is shown again
    hint: int = 0  # order_hint
    refreshed: int = 0xFF  # bits: slots of the decoder that it goes to
    problem: str = ""


def _av1_frame(data: bytes, fields: _Av1Fields) -> Av1Frame:
    """Read an uncompressed header (5.9.2) up to the slots that the frame goes to; ValueError if it is cut short."""
    if fields.is_reduced:
        return Av1Frame(True, True)
    first = data[0]
    if first & 0x80:
        return Av1Frame(False, True, shows_existing=True, slot=first >> 4 & 7)
    kind, is_shown = first >> 5 & 3, bool(first & 0x10)
    if kind == _SWITCH_FRAME:
        return Av1Frame(False, is_shown, has_own_size=True)
    # One number and shifts: this is done for every frame of a data set.
    value, left = int.from_bytes(data[:16], "big"), 8 * min(len(data), 16) - 4
    left -= fields.time_bits if is_shown else 1  # its time, or whether it can be shown later
    is_entry = kind == _KEY_FRAME and is_shown
    left -= not is_entry
    is_resilient = is_entry or value >> left & 1
    left -= 2 if fields.screen_content == 2 else 1
    allows_tools = value >> left & 1 if fields.screen_content == 2 else fields.screen_content
    left -= bool(allows_tools and fields.integer_mv == 2) + fields.id_bits + 1
    has_own_size = bool(value >> left & 1)
    left -= fields.hint_bits
    hint = value >> left & (1 << fields.hint_bits) - 1
    if not (is_resilient or kind == _KEY_FRAME or kind == _INTRA_FRAME):
        left -= 3  # the frame whose contexts it begins with
    left -= fields.has_model
    if fields.has_model and value >> left & 1:
        return Av1Frame(kind == _KEY_FRAME, is_shown, problem="times of the decoder's buffers")
    left -= 0 if is_entry else 8
    refreshed = 0xFF if is_entry else value >> left & 0xFF
    return Av1Frame(kind == _KEY_FRAME, is_shown, False, has_own_size, 0, hint, refreshed)


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
                elif frame.problem or not sequence.follow(frame):
                    problem = frame.problem or "frames that are missing"
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
    """The open bitstream units of a packet that are sequence headers or frames: type, spatial layer, payload (of frames
    the first 64 bytes).

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
        if kind in _OBU_FRAMES:
            units.append((kind, layer, data[at : at + min(size, 64)]))
        elif kind == _OBU_SEQUENCE:
            units.append((kind, layer, data[at : at + size]))
        at += size
    return units
