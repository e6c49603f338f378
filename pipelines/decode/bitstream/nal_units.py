"""Split packets of H.264 and HEVC into NAL units: the first slice of each packet, and parameter sets within it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipelines.decode.bitstream.bit_reader import rbsp
from pipelines.decode.bitstream.parameter_sets import (
    PARAMETER_SETS,
    PPS,
    SPS,
    PictureParameters,
    SequenceParameters,
    nal_length_size,
    nal_unit_type,
    parse_hevc_pps,
    parse_sps,
    stored_units,
)

CHANGING_PARAMETER_SETS = "parameter sets that change midway"
DAMAGED = "slice headers that cannot be read"
_H264_SLICES, _H264_PARTITIONS = (1, 5), (2, 3, 4)
_HEVC_ENDS = (36, 37)  # end of sequence, end of bitstream
_SLICE_HEADER_BYTES = 14  # that are kept after the NAL unit's header; the first eight without emulation bytes are read
_X264_BUILD = re.compile(rb"x264 - core (\d+)")
UNKNOWN_BUILD = 1 << 30


class NalStream:
    """The parameter sets of a stream, and the doubts that its packets raise."""

    def __init__(self, codec: str, extradata: bytes):
        self.codec, self.length_size = codec, nal_length_size(codec, extradata)
        self.sps: SequenceParameters | None = None
        self.pps: dict[int, PictureParameters] = {}
        self.known_sets: set[bytes] = set()
        self.doubt = self.irregularity = ""
        self.changes_parameter_sets = False
        self.has_ended = False  # HEVC: an end-of-sequence unit was read, so another sequence may follow
        for unit in stored_units(codec, extradata):
            self.add_set(unit)

    def add_set(self, unit: bytes) -> None:
        """Add a parameter set unless it is known; a second SPS replaces the first and is noted as a change."""
        kind, content = nal_unit_type(self.codec, unit[0]) if unit else -1, unit.rstrip(b"\0")
        if kind not in PARAMETER_SETS[self.codec] or content in self.known_sets:
            return
        self.known_sets.add(content)
        if kind == SPS[self.codec] and not self._is_of_another_layer(unit):
            if self.sps is not None:
                self._note_change()
            self.sps = parse_sps(self.codec, unit)
        elif self.codec == "hevc" and kind == PPS["hevc"] and (parsed := parse_hevc_pps(unit)):
            self.pps[parsed[0]] = parsed[1]

    def add_set_of_packet(self, unit: bytes) -> None:
        """Add a parameter set from within a packet; a new one is a change, unknown to decoders that begin later."""
        if unit.rstrip(b"\0") not in self.known_sets:
            self._note_change()
            self.add_set(unit)

    def _note_change(self) -> None:
        self.add_doubt(CHANGING_PARAMETER_SETS)
        self.changes_parameter_sets = True

    def add_doubt(self, reason: str) -> None:
        """Set `doubt` unless there is an earlier reason."""
        self.doubt = self.doubt or reason

    def units(self, data: bytes) -> list[tuple[int, int]]:
        """Return start and end of each NAL unit in a packet."""
        units, size = [], len(data)
        if length_size := self.length_size:
            offset = 0
            while offset + length_size < size:
                start = offset + length_size
                offset = start + int.from_bytes(data[offset:start], "big")
                units.append((start, offset))
            if offset != size:
                self.add_doubt(DAMAGED)
            return units
        offset = data.find(b"\0\0\1")
        while offset >= 0 and offset + 3 < size:
            following = data.find(b"\0\0\1", offset + 3)
            units.append((offset + 3, following if following >= 0 else size))
            offset = following
        return units

    def _is_of_another_layer(self, unit: bytes) -> bool:
        return self.codec == "hevc" and len(unit) > 1 and bool((unit[0] & 1) << 5 | unit[1] >> 3)


class FirstSlices:
    """The header of the first slice of each packet; lists with one item per packet."""

    def __init__(self, stream: NalStream, packets: Iterable[bytes]):
        self.kinds: list[int] = []  # nal_unit_type; -1 if no slice begins a picture
        self.unit_headers: list[int] = []  # the two bytes of the NAL unit's header
        self.headers: list[bytes] = []  # the bytes after them
        self.num_pictures: list[int] = []  # number of slices that begin a picture
        self.is_reference: list[bool] = []  # H.264: a slice has a nal_ref_idc above 0; HEVC: always True
        self.x264_build = UNKNOWN_BUILD
        is_h264, has_long_lengths = stream.codec == "h264", stream.length_size == 4
        add_packet = self._add_h264 if is_h264 else self._add_hevc
        start = 5 if is_h264 else 6
        for data in packets:
            unit_header = data[4] << 8 | data[5] if len(data) > 8 else 0
            # Fast path: most packets consist of one slice, which begins a picture.
            if (
                has_long_lengths
                and not stream.has_ended
                and int.from_bytes(data[:4], "big") + 4 == len(data)
                and (
                    unit_header & 0x80 and unit_header >> 8 & 31 in _H264_SLICES
                    if is_h264
                    else unit_header < 0x4000 and not unit_header & 0x1F8 and data[6] & 0x80
                )
            ):
                self.kinds.append(unit_header >> 8 & 31 if is_h264 else unit_header >> 9)
                self.unit_headers.append(unit_header)
                self.headers.append(data[start : start + _SLICE_HEADER_BYTES])
                self.num_pictures.append(1)
                self.is_reference.append(unit_header & 0x6000 != 0)
            else:
                add_packet(stream, data)
        self.headers = [rbsp(header) if b"\0\0\3" in header else header for header in self.headers]

    def _add(self, kind: int, unit_header: int, header: bytes, num_pictures: int) -> None:
        self.kinds.append(kind)
        self.unit_headers.append(unit_header)
        self.headers.append(header)
        self.num_pictures.append(num_pictures)

    def _add_h264(self, stream: NalStream, data: bytes) -> None:
        kind, first_unit_header, header, num_pictures, num_slices, reference_bits = -1, 0, b"", 0, 0, 0
        if not self.kinds and (match := _X264_BUILD.search(data)):
            self.x264_build = int(match[1])
        for start, end in stream.units(data):
            unit_header = data[start]
            unit_kind = unit_header & 31
            if unit_kind == 1 or unit_kind == 5:
                if start + 2 >= min(end, len(data)):
                    continue
                num_slices, reference_bits = num_slices + 1, reference_bits | unit_header & 0x60
                if data[start + 1] & 0x80:  # first_mb_in_slice is 0: the slice begins a picture
                    if not num_pictures:
                        kind, first_unit_header = unit_kind, unit_header << 8 | data[start + 1]
                        header = data[start + 1 : min(end, start + 1 + _SLICE_HEADER_BYTES)]
                    num_pictures += 1
            elif unit_kind == 7 or unit_kind == 8:
                stream.add_set_of_packet(data[start:end])
            elif unit_kind in _H264_PARTITIONS:
                stream.add_doubt("data partitions")
        self._add(kind, first_unit_header, header, num_pictures)
        self.is_reference.append(bool(reference_bits) or not num_slices)

    def _add_hevc(self, stream: NalStream, data: bytes) -> None:
        kind, first_unit_header, header, num_pictures, num_slices = -1, 0, b"", 0, 0
        for start, end in stream.units(data):
            if start + 3 > min(end, len(data)):
                continue
            unit_header = data[start] << 8 | data[start + 1]
            unit_kind = unit_header >> 9
            if unit_kind < 32:
                if unit_header & 0x1F8:  # nuh_layer_id
                    stream.add_doubt("several layers")
                    continue
                num_slices += 1
                if data[start + 2] & 0x80:  # first_slice_segment_in_pic_flag
                    if not num_pictures:
                        kind, first_unit_header = unit_kind, unit_header
                        header = data[start + 2 : min(end, start + 2 + _SLICE_HEADER_BYTES)]
                    num_pictures += 1
            elif unit_kind in PARAMETER_SETS["hevc"]:
                stream.add_set_of_packet(data[start:end])
            elif unit_kind in _HEVC_ENDS:
                stream.has_ended = True
        if stream.has_ended and num_slices:
            stream.add_doubt("several sequences")
        self._add(kind, first_unit_header, header, num_pictures)
        self.is_reference.append(True)
