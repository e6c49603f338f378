"""Read the parameter sets of H.264 and HEVC: sizes, and what is needed to read the headers of slices.

Only what decides which decoder can take a stream, and what orders its frames, is read; all else is FFmpeg's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipelines.decode.bitstream.bit_reader import BitReader, rbsp

_START_CODE = b"\0\0\1"
SPS = {"h264": 7, "hevc": 33}  # the type of the NAL unit that holds one
PPS = {"h264": 8, "hevc": 34}
PARAMETER_SETS = {"h264": (7, 8), "hevc": (32, 33, 34)}
# Profiles whose SPS says how chroma is sampled (H.264, 7.3.2.1.1).
_H264_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_SUBSAMPLING = {0: (1, 1), 1: (2, 2), 2: (2, 1), 3: (1, 1)}  # chroma_format_idc -> (horizontal, vertical)


class SequenceParameters(NamedTuple):
    """Sizes and offsets in luma samples, `crop_*` from each side of the coded picture.

    The others say how many bits a slice's header has for frame_num and pic_order_cnt_lsb, and what stands before them.
    """

    coded_width: int
    coded_height: int
    crop_left: int
    crop_right: int
    crop_top: int
    crop_bottom: int
    interlaced: bool  # H.264: whether pictures may be coded as fields
    separate_planes: bool = False
    chroma: int = 1  # chroma_format_idc
    frame_num_bits: int = 0  # H.264
    poc_type: int = 0  # H.264: pic_order_cnt_type
    poc_bits: int = 0

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
    for units in (stored_units(codec, extradata), nal_units(packet, nal_length_size(codec, extradata))):
        for unit in units:
            if unit and nal_type(codec, unit[0]) == SPS[codec]:
                return parse_sps(codec, unit)
    return None


def parse_sps(codec: str, unit: bytes) -> SequenceParameters | None:
    """Read an SPS, a NAL unit with its header; None if it cannot be read."""
    try:
        return (_h264 if codec == "h264" else _hevc)(BitReader(rbsp(unit), 8))
    except (LookupError, ValueError):  # it is cut short, or says what there is not
        return None


class PictureParameters(NamedTuple):
    """What of an HEVC picture parameter set stands in the header of a slice."""

    has_output_flag: bool
    extra_bits: int  # num_extra_slice_header_bits


def parse_hevc_pps(unit: bytes) -> tuple[int, PictureParameters] | None:
    """Read the number of an HEVC PPS and what it says (7.3.2.3.1); None if it cannot be read."""
    try:
        bits = BitReader(rbsp(unit), 8)
        bits.read(8)  # the header's second byte
        number = bits.golomb()
        bits.golomb(), bits.read()  # its SPS, dependent slice segments
        return number, PictureParameters(bool(bits.read()), bits.read(3))
    except (LookupError, ValueError):
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


def stored_units(codec: str, extradata: bytes) -> Iterator[bytes]:
    """Yield the NAL units of a codec's extradata: of an avcC or hvcC box (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1), or
    behind start codes."""
    if not nal_length_size(codec, extradata):
        yield from nal_units(extradata, 0)
        return
    if codec == "h264":
        counts, at = [extradata[5] & 31] if len(extradata) > 5 else [], 6  # of SPS; behind them, of PPS
    else:
        counts, at = [-1] * (extradata[22] if len(extradata) > 22 else 0), 23
    for count in counts:
        if count < 0:  # an array of HEVC: type, number of units
            count, at = int.from_bytes(extradata[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            length = int.from_bytes(extradata[at : at + 2], "big")
            yield extradata[at + 2 : at + 2 + length]
            at += 2 + length
        if codec == "h264" and len(counts) == 1 and at < len(extradata):
            counts.append(extradata[at])
            at += 1


def _h264(bits: BitReader) -> SequenceParameters:
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
    frame_num_bits = bits.golomb() + 4
    order, poc_bits = bits.golomb(), 0
    if order == 0:
        poc_bits = bits.golomb() + 4
    elif order == 1:
        bits.read(), bits.signed_golomb(), bits.signed_golomb()
        cycle = bits.golomb()
        if cycle > 255:
            raise ValueError("num_ref_frames_in_pic_order_cnt_cycle is at most 255")
        for _ in range(cycle):
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
        width, height * fields, crop[0] * across, crop[1] * across, crop[2] * down, crop[3] * down, not frames_only,
        bool(separate), chroma, frame_num_bits, order, poc_bits,
    )  # fmt: skip


def _skip_scaling_list(bits: BitReader, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
            last = following or last


def _hevc(bits: BitReader) -> SequenceParameters:
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
    bits.golomb(), bits.golomb()  # bit depths
    return SequenceParameters(
        width, height, crop[0] * across, crop[1] * across, crop[2] * down, crop[3] * down, False,
        bool(separate), chroma, poc_bits=bits.golomb() + 4,
    )  # fmt: skip
