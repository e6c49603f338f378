"""Read the parameter sets of H.264 and HEVC: sizes, and the fields that are needed to read slice headers.

Only fields that decide which decoder can take a stream, or the order of its frames, are read; FFmpeg handles the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipelines.decode.bitstream.bit_reader import BitReader, rbsp

_START_CODE = b"\0\0\1"
SPS = {"h264": 7, "hevc": 33}  # the type of its NAL unit
PPS = {"h264": 8, "hevc": 34}
PARAMETER_SETS = {"h264": (7, 8), "hevc": (32, 33, 34)}
# Profiles whose SPS states the chroma subsampling (H.264, 7.3.2.1.1).
_H264_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_SUBSAMPLING = {0: (1, 1), 1: (2, 2), 2: (2, 1), 3: (1, 1)}  # chroma_format_idc -> (horizontal, vertical)


class SequenceParameters(NamedTuple):
    """Fields of a sequence parameter set: sizes in luma samples, `crop_*` from each side of the coded picture.

    The fields after `interlaced` are needed to find frame_num and pic_order_cnt_lsb in a slice header.
    """

    coded_width: int
    coded_height: int
    crop_left: int
    crop_right: int
    crop_top: int
    crop_bottom: int
    interlaced: bool  # H.264: pictures may be coded as fields
    separate_planes: bool = False
    chroma: int = 1  # chroma_format_idc
    frame_num_bits: int = 0  # H.264
    poc_type: int = 0  # H.264: pic_order_cnt_type
    poc_bits: int = 0

    @property
    def visible_size(self) -> tuple[int, int]:
        """Width and height after cropping."""
        width = self.coded_width - self.crop_left - self.crop_right
        return width, self.coded_height - self.crop_top - self.crop_bottom


def read_sps(codec: str, extradata: bytes, packet: bytes = b"") -> SequenceParameters | None:
    """Read the first SPS in a codec's extradata, or in its first packet if the extradata has none.

    `codec` is FFmpeg's name. Returns None for a codec without an SPS and for an SPS that cannot be read.
    """
    if codec not in SPS:
        return None
    for units in (stored_units(codec, extradata), nal_units(packet, nal_length_size(codec, extradata))):
        for unit in units:
            if unit and nal_unit_type(codec, unit[0]) == SPS[codec]:
                return parse_sps(codec, unit)
    return None


def parse_sps(codec: str, unit: bytes) -> SequenceParameters | None:
    """Read an SPS from its NAL unit, including the header; None if it cannot be read."""
    try:
        return (_parse_h264_sps if codec == "h264" else _parse_hevc_sps)(BitReader(rbsp(unit), 8))
    except (LookupError, ValueError):  # it is truncated or has values that do not exist
        return None


class PictureParameters(NamedTuple):
    """Fields of an HEVC picture parameter set that slice headers depend on."""

    has_output_flag: bool
    extra_bits: int  # num_extra_slice_header_bits


def parse_hevc_pps(unit: bytes) -> tuple[int, PictureParameters] | None:
    """Read the number and the fields of an HEVC PPS (7.3.2.3.1); None if it cannot be read."""
    try:
        bits = BitReader(rbsp(unit), 8)
        bits.read(8)  # the second byte of the NAL unit's header
        number = bits.golomb()
        bits.golomb(), bits.read()  # number of its SPS, dependent slice segments
        return number, PictureParameters(has_output_flag=bool(bits.read()), extra_bits=bits.read(3))
    except (LookupError, ValueError):
        return None


def nal_unit_type(codec: str, first_byte: int) -> int:
    """Return the type of a NAL unit from the first byte of its header."""
    return first_byte & 31 if codec == "h264" else first_byte >> 1 & 63


def nal_length_size(codec: str, extradata: bytes) -> int:
    """Return the number of bytes of a NAL unit's length in a packet; 0: start codes separate the units (Annex B)."""
    offset = 4 if codec == "h264" else 21
    return (extradata[offset] & 3) + 1 if extradata[:1] == b"\1" and len(extradata) > offset else 0


def nal_units(data: bytes, length_size: int) -> Iterator[bytes]:
    """Yield the NAL units of a packet, without their lengths or start codes."""
    offset = 0
    if length_size:
        while offset + length_size < len(data):
            length = int.from_bytes(data[offset : offset + length_size], "big")
            yield data[offset + length_size : offset + length_size + length]
            offset += length_size + length
        return
    offset = data.find(_START_CODE)
    while offset >= 0:
        following = data.find(_START_CODE, offset + 3)
        yield data[offset + 3 : following if following >= 0 else len(data)]
        offset = following


def stored_units(codec: str, extradata: bytes) -> Iterator[bytes]:
    """Yield the NAL units in a codec's extradata.

    It is an avcC or hvcC box (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1), or separates the units by start codes.
    """
    if not nal_length_size(codec, extradata):
        yield from nal_units(extradata, 0)
        return
    if codec == "h264":
        counts, offset = (
            [extradata[5] & 31] if len(extradata) > 5 else [],
            6,
        )  # number of SPS; the number of PPS follows them
    else:
        counts, offset = [-1] * (extradata[22] if len(extradata) > 22 else 0), 23
    for count in counts:
        if count < 0:  # HEVC: an array begins with a type and the number of its units
            count, offset = int.from_bytes(extradata[offset + 1 : offset + 3], "big"), offset + 3
        for _ in range(count):
            length = int.from_bytes(extradata[offset : offset + 2], "big")
            yield extradata[offset + 2 : offset + 2 + length]
            offset += 2 + length
        if codec == "h264" and len(counts) == 1 and offset < len(extradata):
            counts.append(extradata[offset])
            offset += 1


def _parse_h264_sps(bits: BitReader) -> SequenceParameters:
    """Read an SPS of H.264 (7.3.2.1.1). Raises LookupError or ValueError if it is not valid."""
    profile = bits.read(8)
    bits.read(16)  # constraints, level
    bits.golomb()  # seq_parameter_set_id
    chroma, separate = 1, 0
    if profile in _H264_HIGH_PROFILES:
        chroma = bits.golomb()
        separate = bits.read() if chroma == 3 else 0
        bits.golomb(), bits.golomb(), bits.read()  # bit depths, lossless
        if bits.read():
            for number in range(12 if chroma == 3 else 8):
                if bits.read():
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    frame_num_bits = bits.golomb() + 4
    poc_type, poc_bits = bits.golomb(), 0
    if poc_type == 0:
        poc_bits = bits.golomb() + 4
    elif poc_type == 1:
        bits.read(), bits.signed_golomb(), bits.signed_golomb()
        cycle = bits.golomb()
        if cycle > 255:
            raise ValueError("num_ref_frames_in_pic_order_cnt_cycle is at most 255")
        for _ in range(cycle):
            bits.signed_golomb()
    bits.golomb(), bits.read()  # number of reference frames, gaps
    width, height = 16 * (bits.golomb() + 1), 16 * (bits.golomb() + 1)
    frames_only = bits.read()
    if not frames_only:
        bits.read()
    bits.read()
    crop = [bits.golomb() for _ in range(4)] if bits.read() else [0] * 4
    fields = 2 - frames_only  # per unit of height
    horizontal, vertical = _SUBSAMPLING[0 if separate else chroma]
    vertical *= fields
    return SequenceParameters(
        coded_width=width,
        coded_height=height * fields,
        crop_left=crop[0] * horizontal,
        crop_right=crop[1] * horizontal,
        crop_top=crop[2] * vertical,
        crop_bottom=crop[3] * vertical,
        interlaced=not frames_only,
        separate_planes=bool(separate),
        chroma=chroma,
        frame_num_bits=frame_num_bits,
        poc_type=poc_type,
        poc_bits=poc_bits,
    )


def _skip_scaling_list(bits: BitReader, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
            last = following or last


def _parse_hevc_sps(bits: BitReader) -> SequenceParameters:
    """Read an SPS of HEVC (7.3.2.2.1 and 7.3.3). Raises LookupError or ValueError if it is not valid."""
    bits.read(8 + 4)  # the second byte of the NAL unit's header, number of the video parameter set
    layers = bits.read(3)
    bits.read(1 + 88 + 8)  # nesting; profile, constraints and level of the whole stream
    sub_layers = [(bits.read(), bits.read()) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for has_profile, has_level in sub_layers:
        bits.read(88 * has_profile + 8 * has_level)
    bits.golomb()  # sps_seq_parameter_set_id
    chroma = bits.golomb()
    separate = bits.read() if chroma == 3 else 0
    width, height = bits.golomb(), bits.golomb()
    crop = [bits.golomb() for _ in range(4)] if bits.read() else [0] * 4
    horizontal, vertical = _SUBSAMPLING[0 if separate else chroma]
    bits.golomb(), bits.golomb()  # bit depths
    return SequenceParameters(
        coded_width=width,
        coded_height=height,
        crop_left=crop[0] * horizontal,
        crop_right=crop[1] * horizontal,
        crop_top=crop[2] * vertical,
        crop_bottom=crop[3] * vertical,
        interlaced=False,
        separate_planes=bool(separate),
        chroma=chroma,
        poc_bits=bits.golomb() + 4,
    )
