"""Take packets of H.264 and HEVC apart: the first slice of each, and the parameter sets that come with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipelines.bit_reader import rbsp
from pipelines.parameter_sets import (
    PARAMETER_SETS,
    PPS,
    SPS,
    PictureParameters,
    SequenceParameters,
    nal_length_size,
    nal_type,
    parse_hevc_pps,
    parse_sps,
    stored_units,
)

NEW_SETS = "parameter sets that change midway"
DAMAGED = "slice headers that cannot be read"
_H264_SLICES, _H264_PARTITIONS = (1, 5), (2, 3, 4)
_HEVC_SLICES, _HEVC_ENDS = range(32), (36, 37)
_HEADER_BYTES = 14  # of a slice behind its NAL unit's header, of which eight are read
_X264_SAYS = re.compile(rb"x264 - core (\d+)")
NO_BUILD = 1 << 30


class _Unit(NamedTuple):
    kind: int  # nal_unit_type
    head: int  # its header's first byte
    start: int
    end: int


class NalStream:
    """The parameter sets of a stream, and what was noticed of its packets."""

    def __init__(self, codec: str, extradata: bytes):
        self.codec, self.length_size = codec, nal_length_size(codec, extradata)
        self.sps: SequenceParameters | None = None
        self.pps: dict[int, PictureParameters] = {}
        self.known: set[bytes] = set()
        self.doubt = self.irregularity = ""
        self.has_ended = False  # HEVC: what follows is another sequence
        for unit in stored_units(codec, extradata):
            self.add_set(unit)

    def add_set(self, unit: bytes) -> None:
        """Take a parameter set; another of a kind that is known already may take its place from here on."""
        kind, content = nal_type(self.codec, unit[0]) if unit else -1, unit.rstrip(b"\0")
        if kind not in PARAMETER_SETS[self.codec] or content in self.known:
            return
        self.known.add(content)
        if kind == SPS[self.codec] and not self._is_of_another_layer(unit):
            if self.sps is not None:
                self.doubts(NEW_SETS)
            self.sps = parse_sps(self.codec, unit)
        elif self.codec == "hevc" and kind == PPS["hevc"] and (parsed := parse_hevc_pps(unit)):
            self.pps[parsed[0]] = parsed[1]

    def add_set_of_packet(self, unit: bytes) -> None:
        if unit.rstrip(b"\0") not in self.known:
            self.doubts(NEW_SETS)  # who begins behind this packet does not have it
            self.add_set(unit)

    def notice_end_or_partition(self, h264: bool) -> None:
        if h264:
            self.doubts("data partitions")
        self.has_ended = True

    def doubts(self, reason: str) -> None:
        self.doubt = self.doubt or reason

    def units(self, data: bytes) -> Iterator[_Unit]:
        """The NAL units of a packet."""
        hevc, size = self.codec == "hevc", len(data)
        if length_size := self.length_size:
            at = 0
            while at + length_size < size:
                start = at + length_size
                at = start + int.from_bytes(data[at:start], "big")
                head = data[start]
                yield _Unit(head >> 1 & 63 if hevc else head & 31, head, start, min(at, size))
            if at != size:
                self.doubts(DAMAGED)
            return
        at = data.find(b"\0\0\1")
        while at >= 0 and at + 3 < size:
            head, following = data[at + 3], data.find(b"\0\0\1", at + 3)
            yield _Unit(head >> 1 & 63 if hevc else head & 31, head, at + 3, following if following >= 0 else size)
            at = following

    def _is_of_another_layer(self, unit: bytes) -> bool:
        return self.codec == "hevc" and len(unit) > 1 and bool((unit[0] & 1) << 5 | unit[1] >> 3)


class FirstSlices:
    """Of each packet the header of its first slice; lists of one item a packet."""

    def __init__(self, stream: NalStream, packets: Iterable[bytes]):
        self.kinds: list[int] = []  # nal_unit_type; -1 without a slice that begins a picture
        self.heads: list[int] = []  # the two bytes of the NAL unit's header
        self.rows: list[bytes] = []  # what follows them
        self.pictures: list[int] = []  # how many slices begin one
        self.is_referred_to: list[bool] = []  # H.264: whether any slice has nal_ref_idc
        self.x264_build = NO_BUILD
        h264, four = stream.codec == "h264", stream.length_size == 4
        for data in packets:
            head = data[4] << 8 | data[5] if len(data) > 8 else 0
            # Most packets are one slice, which begins a picture.
            if four and not stream.has_ended and int.from_bytes(data[:4], "big") + 4 == len(data) and (
                head >> 8 & 31 in _H264_SLICES and head & 0x80 if h264
                else head >> 8 < 0x40 and not head & 0x1F8 and data[6] & 0x80
            ):  # fmt: skip
                start = 5 if h264 else 6
                self._add(head >> 8 & 31 if h264 else head >> 9, head, data[start : start + _HEADER_BYTES], 1)
                self.is_referred_to.append(head & 0x6000 != 0)
            else:
                self._add_units(stream, data, h264)

    def _add(self, kind: int, head: int, row: bytes, pictures: int) -> None:
        self.kinds.append(kind)
        self.heads.append(head)
        self.rows.append(rbsp(row))
        self.pictures.append(pictures)

    def _add_units(self, stream: NalStream, data: bytes, h264: bool) -> None:
        kind, head, row, pictures, slices, referred = -1, 0, b"", 0, 0, 0
        if not self.kinds and (said := _X264_SAYS.search(data)):
            self.x264_build = int(said[1])
        for unit in stream.units(data):
            if unit.kind in _H264_SLICES if h264 else unit.kind in _HEVC_SLICES:
                if unit.start + 3 > unit.end:
                    continue
                second = data[unit.start + 1]
                if not h264 and (unit.head & 1 or second >> 3):  # nuh_layer_id
                    stream.doubts("several layers")
                    continue
                slices, referred = slices + 1, referred | unit.head & 0x60
                start = unit.start + (1 if h264 else 2)
                if data[start] >> 7:  # it begins a picture
                    if not pictures:
                        kind, head = unit.kind, unit.head << 8 | second
                        row = data[start : min(unit.end, start + _HEADER_BYTES)]
                    pictures += 1
            elif unit.kind in PARAMETER_SETS[stream.codec]:
                stream.add_set_of_packet(data[unit.start : unit.end])
            elif unit.kind in _H264_PARTITIONS if h264 else unit.kind in _HEVC_ENDS:
                stream.notice_end_or_partition(h264)
        if stream.has_ended and slices:
            stream.doubts("several sequences")
        self._add(kind, head, row, pictures)
        self.is_referred_to.append(bool(referred) or not slices)
