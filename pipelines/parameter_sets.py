"""Read the sequence parameter set (SPS) of H.264 and HEVC: the size that is coded, the part of it that is shown.

Only what decides which decoder can take a stream is read; the rest of the set, and everything else, is FFmpeg's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_START_CODE = b"\0\0\1"
SPS = {"h264": 7, "hevc": 33}  # the type of the NAL unit that holds one
# Profiles whose SPS says how chroma is sampled (H.264, 7.3.2.1.1).
_H264_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_SUBSAMPLING = {0: (1, 1), 1: (2, 2), 2: (2, 1), 3: (1, 1)}  # chroma_format_idc -> (horizontal, vertical)


class SequenceParameters(NamedTuple):
    """Sizes and offsets in luma samples, `crop_*` from each side of the coded picture."""

    coded_width: int
    coded_height: int
    crop_left: int
    crop_right: int
    crop_top: int
    crop_bottom: int
    interlaced: bool  # H.264: whether pictures may be coded as fields

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height of what is left after cropping."""
        across, down = self.crop_left + self.crop_right, self.crop_top + self.crop_bottom
        return self.coded_width - across, self.coded_height - down


def read_sps(codec: str, extradata: bytes, packet: bytes = b"") -> SequenceParameters | None:
    """Read the first SPS of a codec's extradata, or of its first packet where the extradata holds none.

    `codec` is FFmpeg's name. Returns None for a codec without an SPS and for one that cannot be read.
    """
    if codec not in SPS:
        return None
    length_size = nal_length_size(codec, extradata)
    stored = _stored_sets(codec, extradata) if length_size else nal_units(extradata, 0)
    for units in (stored, nal_units(packet, length_size)):
        for unit in units:
            if unit and nal_type(codec, unit[0]) == SPS[codec]:
                try:
                    return (_h264 if codec == "h264" else _hevc)(_Bits(unit))
                except LookupError:  # it is cut short, or says what there is not
                    return None
    return None


def nal_type(codec: str, first_byte: int) -> int:
    """Return the type of a NAL unit from the first byte of its header."""
    return first_byte & 31 if codec == "h264" else first_byte >> 1 & 63


def nal_length_size(codec: str, extradata: bytes) -> int:
    """Return how many bytes state the length of a NAL unit in a packet; 0 means Annex B start codes."""
    place = 4 if codec == "h264" else 21
    return (extradata[place] & 3) + 1 if extradata[:1] == b"\1" and len(extradata) > place else 0


def nal_units(data: bytes, length_size: int) -> Iterator[bytes]:
    """Yield the NAL units of a packet, without their lengths or start codes."""
    at = 0
    if length_size:
        while at + length_size < len(data):
            length = int.from_bytes(data[at : at + length_size], "big")
            yield data[at + length_size : at + length_size + length]
            at += length_size + length
        return
    at = data.find(_START_CODE)
    while at >= 0:
        following = data.find(_START_CODE, at + 3)
        yield data[at + 3 : following if following >= 0 else len(data)]
        at = following


def _stored_sets(codec: str, extradata: bytes) -> Iterator[bytes]:
    """Yield the parameter sets of an avcC or hvcC box (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1)."""
    if codec == "h264":
        counts, at = [extradata[5] & 31] if len(extradata) > 5 else [], 6
    else:
        counts, at = [-1] * (extradata[22] if len(extradata) > 22 else 0), 23
    for count in counts:
        if count < 0:  # an array of HEVC: type, number of units
            count, at = int.from_bytes(extradata[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            length = int.from_bytes(extradata[at : at + 2], "big")
            yield extradata[at + 2 : at + 2 + length]
            at += 2 + length


class _Bits:
    """The bits of a NAL unit after its header's first byte, without emulation prevention; IndexError at the end."""

    def __init__(self, unit: bytes):
        self.data, self.at = unit.replace(b"\0\0\3", b"\0\0"), 8

    def read(self, count: int = 1) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self.data[self.at >> 3] >> (7 - (self.at & 7)) & 1
            self.at += 1
        return value

    def golomb(self) -> int:
        """Read an unsigned Exp-Golomb number, ue(v)."""
        zeros = 0
        while not self.read():
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed_golomb(self) -> int:
        """Read a signed Exp-Golomb number, se(v)."""
        number = self.golomb()
        return (number + 1) // 2 if number % 2 else -number // 2


def _h264(bits: _Bits) -> SequenceParameters:
    """H.264, 7.3.2.1.1."""
    profile = bits.read(8)
    bits.read(16)  # constraints, level
    bits.golomb()  # seq_parameter_set_id
    chroma, separate = 1, 0
    if profile in _H264_HIGH:
        chroma = bits.golomb()
        separate = bits.read() if chroma == 3 else 0
        bits.golomb(), bits.golomb(), bits.read()  # bit depths, lossless
        if bits.read():
            for number in range(12 if chroma == 3 else 8):
                if bits.read():
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    bits.golomb()  # log2_max_frame_num
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(), bits.signed_golomb(), bits.signed_golomb()
        for _ in range(bits.golomb()):
            bits.signed_golomb()
    bits.golomb(), bits.read()  # number of references, gaps
    width, height = 16 * (bits.golomb() + 1), 16 * (bits.golomb() + 1)
    frames_only = bits.read()
    if not frames_only:
        bits.read()
    bits.read()
    crop = [bits.golomb() for _ in range(4)] if bits.read() else [0] * 4
    fields = 2 - frames_only
    across, down = _SUBSAMPLING[0 if separate else chroma]
    down *= fields
    return SequenceParameters(
        width, height * fields, crop[0] * across, crop[1] * across, crop[2] * down, crop[3] * down, not frames_only
    )


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
            last = following or last


def _hevc(bits: _Bits) -> SequenceParameters:
    """HEVC, 7.3.2.2.1 and 7.3.3."""
    bits.read(8 + 4)  # the header's second byte, video parameter set
    layers = bits.read(3)
    bits.read(1 + 88 + 8)  # nesting; profile, constraints and level of the whole
    present = [(bits.read(), bits.read()) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    bits.golomb()  # sps_seq_parameter_set_id
    chroma = bits.golomb()
    separate = bits.read() if chroma == 3 else 0
    width, height = bits.golomb(), bits.golomb()
    crop = [bits.golomb() for _ in range(4)] if bits.read() else [0] * 4
    across, down = _SUBSAMPLING[0 if separate else chroma]
    return SequenceParameters(width, height, crop[0] * across, crop[1] * across, crop[2] * down, crop[3] * down, False)
