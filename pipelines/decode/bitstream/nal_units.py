"""Take packets of H.264 and HEVC apart: the first slice of each, and the parameter sets that come with it."""

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
    nal_type,
    parse_hevc_pps,
    parse_sps,
    stored_units,
)

NEW_SETS = "parameter sets that change midway"
DAMAGED = "slice headers that cannot be read"
_H264_SLICES, _H264_PARTITIONS = (1, 5), (2, 3, 4)
_HEVC_ENDS = (36, 37)  # of a sequence, of the bitstream
_HEADER_BYTES = 14  # of a slice behind its NAL unit's header, of which eight are read
_X264_SAYS = re.compile(rb"x264 - core (\d+)")
NO_BUILD = 1 << 30


class NalStream:
    """The parameter sets of a stream, and what was noticed of its packets."""

    def __init__(self, codec: str, extradata: bytes):
        self.codec, self.length_size = codec, nal_length_size(codec, extradata)
        self.sps: SequenceParameters | None = None
        self.pps: dict[int, PictureParameters] = {}
        self.known: set[bytes] = set()
        self.doubt = self.irregularity = ""
        self.changes_sets = False
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
                self.notice_new_sets()
            self.sps = parse_sps(self.codec, unit)
        elif self.codec == "hevc" and kind == PPS["hevc"] and (parsed := parse_hevc_pps(unit)):
            self.pps[parsed[0]] = parsed[1]

    def add_set_of_packet(self, unit: bytes) -> None:
        if unit.rstrip(b"\0") not in self.known:
            self.notice_new_sets()  # who begins behind this packet does not have it
            self.add_set(unit)

    def notice_new_sets(self) -> None:
        self.doubts(NEW_SETS)
        self.changes_sets = True

    def doubts(self, reason: str) -> None:
        self.doubt = self.doubt or reason

    def units(self, data: bytes) -> list[tuple[int, int]]:
        """Return where the NAL units of a packet begin and end."""
        found, size = [], len(data)
        if length_size := self.length_size:
            at = 0
            while at + length_size < size:
                start = at + length_size
                at = start + int.from_bytes(data[at:start], "big")
                found.append((start, at))
            if at != size:
                self.doubts(DAMAGED)
            return found
        at = data.find(b"\0\0\1")
        while at >= 0 and at + 3 < size:
            following = data.find(b"\0\0\1", at + 3)
            found.append((at + 3, following if following >= 0 else size))
            at = following
        return found

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
        add = self._add_h264 if h264 else self._add_hevc
        start = 5 if h264 else 6
        for data in packets:
            head = data[4] << 8 | data[5] if len(data) > 8 else 0
            # Most packets are one slice, which begins a picture.
            if four and not stream.has_ended and int.from_bytes(data[:4], "big") + 4 == len(data) and (
                head & 0x80 and head >> 8 & 31 in _H264_SLICES if h264
                else head < 0x4000 and not head & 0x1F8 and data[6] & 0x80
            ):  # fmt: skip
                self.kinds.append(head >> 8 & 31 if h264 else head >> 9)
                self.heads.append(head)
                self.rows.append(data[start : start + _HEADER_BYTES])
                self.pictures.append(1)
                self.is_referred_to.append(head & 0x6000 != 0)
            else:
                add(stream, data)
        self.rows = [rbsp(row) if b"\0\0\3" in row else row for row in self.rows]

    def _add(self, kind: int, head: int, row: bytes, pictures: int) -> None:
        self.kinds.append(kind)
        self.heads.append(head)
        self.rows.append(row)
        self.pictures.append(pictures)

    def _add_h264(self, stream: NalStream, data: bytes) -> None:
        kind, head, row, pictures, slices, referred = -1, 0, b"", 0, 0, 0
        if not self.kinds and (said := _X264_SAYS.search(data)):
            self.x264_build = int(said[1])
        for start, end in stream.units(data):
            unit_head = data[start]
            unit_kind = unit_head & 31
            if unit_kind == 1 or unit_kind == 5:
                if start + 2 >= min(end, len(data)):
                    continue
                slices, referred = slices + 1, referred | unit_head & 0x60
                if data[start + 1] & 0x80:  # it begins a picture
                    if not pictures:
                        kind, head = unit_kind, unit_head << 8 | data[start + 1]
                        row = data[start + 1 : min(end, start + 1 + _HEADER_BYTES)]
                    pictures += 1
            elif unit_kind == 7 or unit_kind == 8:
                stream.add_set_of_packet(data[start:end])
            elif unit_kind in _H264_PARTITIONS:
                stream.doubts("data partitions")
        self._add(kind, head, row, pictures)
        self.is_referred_to.append(bool(referred) or not slices)

    def _add_hevc(self, stream: NalStream, data: bytes) -> None:
        kind, head, row, pictures, slices = -1, 0, b"", 0, 0
        for start, end in stream.units(data):
            if start + 3 > min(end, len(data)):
                continue
            unit_head = data[start] << 8 | data[start + 1]
            unit_kind = unit_head >> 9
            if unit_kind < 32:
                if unit_head & 0x1F8:  # nuh_layer_id
                    stream.doubts("several layers")
                    continue
                slices += 1
                if data[start + 2] & 0x80:  # it begins a picture
                    if not pictures:
                        kind, head = unit_kind, unit_head
                        row = data[start + 2 : min(end, start + 2 + _HEADER_BYTES)]
                    pictures += 1
            elif unit_kind in PARAMETER_SETS["hevc"]:
                stream.add_set_of_packet(data[start:end])
            elif unit_kind in _HEVC_ENDS:
                stream.has_ended = True
        if stream.has_ended and slices:
            stream.doubts("several sequences")
        self._add(kind, head, row, pictures)
        self.is_referred_to.append(True)
