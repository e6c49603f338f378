"""Read the headers of VP8 and VP9 frames: type, size, and whether the frame is shown."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.decode.bitstream.bit_reader import BitReader

DAMAGED = "frame headers that cannot be read"


class VpxFrame(NamedTuple):
    """The header of a VP8 or VP9 frame; `size` is (width, height), or (0, 0) if it is that of a reference frame."""

    is_key: bool
    is_shown: bool
    size: tuple[int, int] = (0, 0)
    shows_existing: bool = False
    problem: str = ""  # why the header proves nothing


_SHOWN_INTER = VpxFrame(is_key=False, is_shown=True)
_DAMAGED_FRAME = VpxFrame(is_key=False, is_shown=False, problem=DAMAGED)
PLAIN_INTER = [_SHOWN_INTER]  # the frames of most VP9 packets, always this same list


def read_vp8_frame(data: bytes) -> VpxFrame:
    """Read a frame tag (RFC 6386, 9.1)."""
    if data[0] & 0x11 == 0x11 and len(data) > 3:
        return _SHOWN_INTER
    is_key, is_shown = not data[0] & 1, bool(data[0] >> 4 & 1)
    if not is_key:
        return VpxFrame(is_key=False, is_shown=is_shown, problem="" if len(data) > 3 else DAMAGED)
    if len(data) < 10 or data[3:6] != b"\x9d\x01\x2a":
        return VpxFrame(is_key=True, is_shown=is_shown, problem=DAMAGED)
    width, height = (int.from_bytes(data[offset : offset + 2], "little") & 0x3FFF for offset in (6, 8))
    return VpxFrame(is_key=True, is_shown=is_shown, size=(width, height))


def read_vp9_packet(data: bytes) -> list[VpxFrame]:
    """Read the headers of the frames of a packet: several in a superframe (annex B), otherwise one."""
    marker = data[-1]
    if data[0] == 0x86 and marker >> 5 != 0b110 and len(data) > 4 and data[3] & 2:
        return PLAIN_INTER  # the usual case: a shown inter frame of profile 0, of the size of its reference
    if marker >> 5 == 0b110:
        count, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = len(data) - 2 - count * size_bytes
        if index >= 0 and data[index] == marker:
            frames, start = [], 0
            for number in range(count):
                offset = index + 1 + number * size_bytes
                size = int.from_bytes(data[offset : offset + size_bytes], "little")
                if size:
                    frames.append(_read_vp9_frame(data[start : start + min(size, 16)]))
                start += size
            if frames and start <= index:
                return frames
        return [_DAMAGED_FRAME]
    return [_read_vp9_frame(data)]


def _read_vp9_frame(data: bytes) -> VpxFrame:
    """Read an uncompressed header (6.2) up to the frame's size."""
    bits = BitReader(data[:16])
    try:
        marker, low, high = bits.read(2), bits.read(), bits.read()
        profile = high << 1 | low
        if marker != 0b10 or profile == 3 and bits.read():
            return _DAMAGED_FRAME
        if bits.read():
            return VpxFrame(is_key=False, is_shown=True, shows_existing=True)
        is_inter, is_shown, is_error_resilient = bits.read(), bool(bits.read()), bits.read()
        is_intra_only = 0 if is_shown or not is_inter else bits.read()
        if is_inter and not is_error_resilient:
            bits.read(2)  # reset_frame_context
        if is_inter and not is_intra_only:
            bits.read(8 + 3 * 4)  # refreshed slots, references
            if bits.read() or bits.read() or bits.read():  # it has the size of one of its three references
                return VpxFrame(is_key=False, is_shown=is_shown)
        else:
            if bits.read(24) != 0x498342:
                return VpxFrame(is_key=not is_inter, is_shown=is_shown, problem=DAMAGED)
            if not is_intra_only or profile:
                _skip_color(bits, profile)
            if is_intra_only:
                bits.read(8)  # refreshed slots
        return VpxFrame(is_key=not is_inter, is_shown=is_shown, size=(bits.read(16) + 1, bits.read(16) + 1))
    except ValueError:
        return _DAMAGED_FRAME


def _skip_color(bits: BitReader, profile: int) -> None:
    if profile >= 2:
        bits.read()  # depth
    if bits.read(3) != 7:  # not RGB
        bits.read()  # range
        if profile & 1:
            bits.read(3)
    elif profile & 1:
        bits.read()
