"""Read the headers of AV1 frames: type, whether one is shown or has its own size, and whether frames are missing."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.decode.bitstream.bit_reader import BitReader
from pipelines.decode.bitstream.vpx import DAMAGED

_OBU_SEQUENCE, _OBU_FRAMES = 1, (3, 6)
_KEY_FRAME, _INTRA_FRAME, _SWITCH_FRAME = 0, 2, 3  # frame_type


class TemporalUnit(NamedTuple):
    """The headers of all frames of a packet."""

    is_key: bool  # it begins with a key frame that is shown
    num_shown: int  # frames that it shows
    problem: str = ""  # why the headers prove nothing


class Av1Decoder:
    """The state of a decoder that the headers of frames depend on: the sequence header and the reference slots.

    The sequence header is the one in `extradata`, until a packet holds another.
    """

    def __init__(self, extradata: bytes):
        try:
            sequence_headers = [payload for kind, _, payload in _read_obus(extradata) if kind == _OBU_SEQUENCE]
        except IndexError:
            sequence_headers = []
        self.has_stored_header = bool(sequence_headers)  # otherwise each key frame must come with one
        self.has_header_in_packets = False
        self.sequence_header = b""
        self.fields = _NO_FIELDS
        self.order_hints = [0] * 8  # of the frames in the slots
        self.hidden_key_slots = 0  # bit mask of the slots with a key frame that was not shown yet
        self.last_shown_hint: int | None = None  # order hint of the last shown frame; None: any may follow
        if sequence_headers:
            self.set_sequence_header(sequence_headers[0])

    def set_sequence_header(self, header: bytes) -> None:
        """Use a sequence header from now on. Raises ValueError if it is truncated."""
        self.sequence_header, self.fields = header, _read_sequence_header(BitReader(header))

    def add_frame(self, frame: Av1Frame) -> bool:
        """Store a frame in its slots; return False if it is shown but is not the next in order (7.20, 7.21)."""
        hint_bits = self.fields.hint_bits
        hint, slots, is_key = frame.order_hint, frame.refreshed_slots, frame.is_key
        if frame.shows_existing:
            hint, is_key = self.order_hints[frame.shown_slot], bool(self.hidden_key_slots >> frame.shown_slot & 1)
            slots = 0xFF if is_key else 0
        if slots == 0xFF:
            self.order_hints = [hint] * 8
        elif slots:
            self.order_hints = [
                hint if slots >> slot & 1 else old_hint for slot, old_hint in enumerate(self.order_hints)
            ]
        is_hidden_key = is_key and not frame.is_shown
        self.hidden_key_slots = self.hidden_key_slots | slots if is_hidden_key else self.hidden_key_slots & ~slots
        if not (frame.is_shown and hint_bits):
            return True
        is_next = is_key or self.last_shown_hint is None or hint == (self.last_shown_hint + 1) % (1 << hint_bits)
        self.last_shown_hint = hint
        return is_next


class _SequenceFields(NamedTuple):
    """The fields of a sequence header on which the headers of its frames depend."""

    is_reduced: int = 0  # a still picture with a short header
    time_bits: int = 0  # of a frame's presentation time, where it has one
    screen_content: int = 0  # 0: its tools are never allowed, 1: always, 2: each frame says so
    integer_mv: int = 0  # integer motion vectors: likewise
    id_bits: int = 0  # of a frame's number
    hint_bits: int = 0  # of a frame's order hint, its place in presentation order
    has_model: int = 0  # there is a model of the decoder's buffers, and frames may state when theirs is free


_NO_FIELDS = _SequenceFields()


def _read_sequence_header(bits: BitReader) -> _SequenceFields:
    """Read a sequence header (5.5.1). Raises ValueError if it is truncated."""
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
        return _SequenceFields(is_reduced=is_reduced, screen_content=2, integer_mv=2)
    bits.read(4)  # inter tools
    has_hints = bits.read()
    if has_hints:
        bits.read(2)  # tools that use the order hints
    screen_content = 2 if bits.read() else bits.read()
    integer_mv = 2 if not screen_content or bits.read() else bits.read()
    hint_bits = bits.read(3) + 1 if has_hints else 0
    return _SequenceFields(
        is_reduced=is_reduced,
        time_bits=time_bits,
        screen_content=screen_content,
        integer_mv=integer_mv,
        id_bits=id_bits,
        hint_bits=hint_bits,
        has_model=has_model,
    )


def _skip_operating_points(bits: BitReader) -> tuple[int, int]:
    """Skip timing and operating points of a sequence header.

    Returns whether it has a model of the decoder, and the number of bits of a shown frame's time.
    """
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
    """The header of a frame."""

    is_key: bool
    is_shown: bool
    shows_existing: bool = False
    has_own_size: bool = False  # it may differ from the sequence's
    shown_slot: int = 0  # of the existing frame that is shown
    order_hint: int = 0
    refreshed_slots: int = 0xFF  # bit mask of the slots in which it is stored
    problem: str = ""  # why the header proves nothing


def _read_frame(data: bytes, fields: _SequenceFields) -> Av1Frame:
    """Read an uncompressed header (5.9.2) up to refresh_frame_flags. Raises IndexError or ValueError if truncated."""
    if fields.is_reduced:
        return Av1Frame(is_key=True, is_shown=True)
    first = data[0]
    if first & 0x80:
        return Av1Frame(is_key=False, is_shown=True, shows_existing=True, shown_slot=first >> 4 & 7)
    kind, is_shown = first >> 5 & 3, bool(first & 0x10)
    if kind == _SWITCH_FRAME:
        return Av1Frame(is_key=False, is_shown=is_shown, has_own_size=True)
    # Shifts of one number are faster than a BitReader, and this runs for every frame of a data set.
    value, left = int.from_bytes(data[:16], "big"), 8 * min(len(data), 16) - 4
    left -= fields.time_bits if is_shown else 1  # presentation time, or showable_frame
    is_shown_key = kind == _KEY_FRAME and is_shown
    left -= not is_shown_key
    is_error_resilient = is_shown_key or value >> left & 1
    left -= 2 if fields.screen_content == 2 else 1
    allows_tools = value >> left & 1 if fields.screen_content == 2 else fields.screen_content
    left -= bool(allows_tools and fields.integer_mv == 2) + fields.id_bits + 1
    has_own_size = bool(value >> left & 1)
    left -= fields.hint_bits
    order_hint = value >> left & (1 << fields.hint_bits) - 1
    if not (is_error_resilient or kind == _KEY_FRAME or kind == _INTRA_FRAME):
        left -= 3  # primary_ref_frame
    left -= fields.has_model
    if fields.has_model and value >> left & 1:
        return Av1Frame(is_key=kind == _KEY_FRAME, is_shown=is_shown, problem="times of the decoder's buffers")
    left -= 0 if is_shown_key else 8
    return Av1Frame(
        is_key=kind == _KEY_FRAME,
        is_shown=is_shown,
        has_own_size=has_own_size,
        order_hint=order_hint,
        refreshed_slots=0xFF if is_shown_key else value >> left & 0xFF,
    )


def read_temporal_unit(data: bytes, decoder: Av1Decoder) -> TemporalUnit:
    """Read the headers of a temporal unit's frames, and update the decoder's state."""
    is_key, num_shown, num_frames, problem, has_header = False, 0, 0, "", decoder.has_stored_header
    try:
        for kind, layer, payload in _read_obus(data):
            if kind == _OBU_SEQUENCE:
                if payload != decoder.sequence_header:
                    problem = "parameter sets that change midway" if decoder.has_header_in_packets else problem
                    decoder.set_sequence_header(payload)
                    decoder.has_stored_header = False
                has_header = decoder.has_header_in_packets = True
            elif kind in _OBU_FRAMES:
                frame = _read_frame(payload, decoder.fields)
                if layer:
                    problem = "several layers"
                elif frame.has_own_size:
                    problem = "frames of a size of their own"
                elif frame.problem or not decoder.add_frame(frame):
                    problem = frame.problem or "frames that are missing"
                if not num_frames and frame.is_shown and has_header:
                    is_key = frame.is_key
                num_shown += frame.is_shown
                num_frames += 1
    except (IndexError, ValueError):
        return TemporalUnit(is_key=False, num_shown=num_shown, problem=DAMAGED)
    if num_shown != 1:
        problem = problem or f"temporal units of {num_shown} frames"
    return TemporalUnit(is_key=is_key, num_shown=num_shown, problem=problem)


def _read_obus(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return type, spatial layer and payload of the open bitstream units that are sequence headers or frames.

    The payload of a frame is only its first 64 bytes. Raises IndexError for a truncated unit.
    """
    units, offset = [], 0
    while offset < len(data):
        header = data[offset]
        kind, has_extension, has_size = header >> 3 & 15, header >> 2 & 1, header >> 1 & 1
        layer = data[offset + 1] >> 3 & 3 if has_extension else 0
        offset += 1 + has_extension
        size = len(data) - offset
        if has_size:
            size = shift = 0
            while True:
                byte = data[offset]
                offset += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        if offset + size > len(data):
            raise IndexError("an open bitstream unit is truncated")
        if kind in _OBU_FRAMES:
            units.append((kind, layer, data[offset : offset + min(size, 64)]))
        elif kind == _OBU_SEQUENCE:
            units.append((kind, layer, data[offset : offset + size]))
        offset += size
    return units
