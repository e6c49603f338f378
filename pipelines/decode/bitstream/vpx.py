"""Read the first bits of VP8 and VP9 frames, which say whether one is a key frame and whether it is shown."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.decode.bitstream.bit_reader import BitReader

DAMAGED = "frame headers that cannot be read"


class VpxFrame(NamedTuple):
    """`size` is (width, height), (0, 0) of a frame that has that of another."""

    is_key: bool
    is_shown: bool
    size: tuple[int, int] = (0, 0)
    shows_existing: bool = False
    problem: str = ""


_SHOWN_INTER = VpxFrame(False, True)
PLAIN_INTER = [_SHOWN_INTER]


def vp8_frame(data: bytes) -> VpxFrame:
    """Read a frame tag (RFC 6386, 9.1)."""
    if data[0] & 0x11 == 0x11 and len(data) > 3:
        return _SHOWN_INTER
    is_key, is_shown = not data[0] & 1, bool(data[0] >> 4 & 1)
    if not is_key:
        return VpxFrame(False, is_shown, problem="" if len(data) > 3 else DAMAGED)
    if len(data) < 10 or data[3:6] != b"\x9d\x01\x2a":
        return VpxFrame(True, is_shown, problem=DAMAGED)
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
        return [VpxFrame(False, False, problem=DAMAGED)]
    return [_vp9_frame(data)]


def _vp9_frame(data: bytes) -> VpxFrame:
    """Read an uncompressed header (6.2) up to the frame's size."""
    bits = BitReader(data[:16])
    try:
        marker, low, high = bits.read(2), bits.read(), bits.read()
        profile = high << 1 | low
        if marker != 0b10 or profile == 3 and bits.read():
            return VpxFrame(False, False, problem=DAMAGED)
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
                return VpxFrame(not inter, shown, problem=DAMAGED)
            if not intra_only or profile:
                _skip_color(bits, profile)
            if intra_only:
                bits.read(8)  # which frames are refreshed
        return VpxFrame(not inter, shown, (bits.read(16) + 1, bits.read(16) + 1))
    except ValueError:
        return VpxFrame(False, False, problem=DAMAGED)


def _skip_color(bits: BitReader, profile: int) -> None:
    if profile >= 2:
        bits.read()  # depth
    if bits.read(3) != 7:  # not RGB
        bits.read()  # range
        if profile & 1:
            bits.read(3)
    elif profile & 1:
        bits.read()
