"""Read the first bits of VP8, VP9 and AV1 frames, which say whether one is a key frame and whether it is shown."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.bit_reader import BitReader

_DAMAGED = "frame headers that cannot be read"
_OBU_SEQUENCE, _OBU_FRAMES = 1, (3, 6)
_SWITCH_FRAME = 3  # frame_type


class VpxFrame(NamedTuple):
    """`size` is (width, height), (0, 0) of a frame that has that of another."""

    is_key: bool
    is_shown: bool
    size: tuple[int, int] = (0, 0)
    shows_existing: bool = False
    problem: str = ""


PLAIN_INTER = [VpxFrame(False, True)]


def vp8_frame(data: bytes) -> VpxFrame:
    """Read a frame tag (RFC 6386, 9.1)."""
    is_key, is_shown = not data[0] & 1, bool(data[0] >> 4 & 1)
    if not is_key:
        return VpxFrame(False, is_shown, problem="" if len(data) > 3 else _DAMAGED)
    if len(data) < 10 or data[3:6] != b"\x9d\x01\x2a":
        return VpxFrame(True, is_shown, problem=_DAMAGED)
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return VpxFrame(True, is_shown, (width, height))


def vp9_packet(data: bytes) -> list[VpxFrame]:
    """Read the frames of a packet: those of a superframe (annex B), or the one."""
    marker = data[-1]
    if data[0] == 0x86 and marker >> 5 != 0b110 and len(data) > 4 and data[3] & 2:
        return PLAIN_INTER  # as most are: an inter frame of profile 0 that is shown, of the size of its reference
    if marker >> 5 == 0b110:
        count, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = len(data) - 2 - count * size_bytes
        if index >= 0 and data[index] == marker:
            frames, start = [], 0
            for number in range(count):
                at = index + 1 + number * size_bytes
                size = int.from_bytes(data[at : at + size_bytes], "little")
                if size:
                    frames.append(_vp9_frame(data[start : start + min(size, 16)]))
                start += size
            if frames and start <= index:
                return frames
        return [VpxFrame(False, False, problem=_DAMAGED)]
    return [_vp9_frame(data)]


def _vp9_frame(data: bytes) -> VpxFrame:
    """Read an uncompressed header (6.2) up to the frame's size."""
    bits = BitReader(data[:16])
    try:
        marker, low, high = bits.read(2), bits.read(), bits.read()
        profile = high << 1 | low
        if marker != 0b10 or profile == 3 and bits.read():
            return VpxFrame(False, False, problem=_DAMAGED)
        if bits.read():
            return VpxFrame(False, True, shows_existing=True)
        inter, shown, resilient = bits.read(), bool(bits.read()), bits.read()
        intra_only = 0 if shown or not inter else bits.read()
        if inter and not resilient:
            bits.read(2)  # which contexts are reset
        if inter and not intra_only:
            bits.read(8 + 3 * 4)  # which frames are refreshed, referred to
            if bits.read() or bits.read() or bits.read():  # its size is that of one of them
                return VpxFrame(False, shown)
        else:
            if bits.read(24) != 0x498342:
                return VpxFrame(not inter, shown, problem=_DAMAGED)
            if not intra_only or profile:
                _skip_color(bits, profile)
            if intra_only:
                bits.read(8)  # which frames are refreshed
        return VpxFrame(not inter, shown, (bits.read(16) + 1, bits.read(16) + 1))
    except ValueError:
        return VpxFrame(False, False, problem=_DAMAGED)


def _skip_color(bits: BitReader, profile: int) -> None:
    if profile >= 2:
        bits.read()  # depth
    if bits.read(3) != 7:  # not RGB
        bits.read()  # range
        if profile & 1:
            bits.read(3)
    elif profile & 1:
        bits.read()


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
        self.header = headers[0] if headers else b""
        self.is_stored = bool(headers)  # else each key frame has to come with it
        self.is_of_packet = False


def av1_temporal_unit(data: bytes, sequence: Av1Sequence) -> TemporalUnit:
    """Read the headers of a temporal unit's frames (5.9.2)."""
    is_key, shown, frames, problem, has_sequence = False, 0, 0, "", sequence.is_stored
    try:
        for kind, layer, payload in _obus(data):
            if kind == _OBU_SEQUENCE:
                if payload != sequence.header:
                    problem = "parameter sets that change midway" if sequence.is_of_packet else problem
                    sequence.header, sequence.is_stored = payload, False
                has_sequence = sequence.is_of_packet = True
            elif kind in _OBU_FRAMES:
                if layer:
                    problem = "several layers"
                is_reduced = sequence.header[0] >> 3 & 1
                shows_existing = 0 if is_reduced else payload[0] >> 7
                if not is_reduced and not shows_existing and payload[0] >> 5 & 3 == _SWITCH_FRAME:
                    problem = "frames of a size of their own"
                is_shown = is_reduced or shows_existing or payload[0] >> 4 & 1
                if not frames and not shows_existing and is_shown and has_sequence:
                    is_key = bool(is_reduced) or payload[0] >> 5 & 3 == 0
                shown += bool(is_shown)
                frames += 1
    except IndexError:
        return TemporalUnit(False, shown, _DAMAGED)
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
