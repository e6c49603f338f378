"""Read what the slice headers of an H.264 or HEVC stream say of its packets: `bitstream.StreamHeaders`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipelines.bit_reader import BitColumns, rbsp
from pipelines.bitstream import StreamHeaders
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

NO_PICTURE = "packets without a picture"
NEW_SETS = "parameter sets that change midway"
_SEVERAL = "packets of several pictures"
_DAMAGED = "slice headers that cannot be read"
_H264_IDR, _H264_SLICES, _H264_PARTITIONS = 5, (1, 5), (2, 3, 4)
_HEVC_RASL, _HEVC_LEADING, _HEVC_BLA, _HEVC_IDR = (8, 9), (6, 7, 8, 9), (16, 17, 18), (19, 20)
_HEVC_CRA, _HEVC_SLICES, _HEVC_ENDS = 21, range(32), (36, 37)
_HEADER_BYTES = 14  # of a slice behind its NAL unit's header, of which eight are read
# Up to these builds x264 had faults that FFmpeg makes up for if it has seen which one coded the stream. That is said in
# the first packet alone, so who begins later does not see it. One was in direct prediction, the other in 4:4:4.
_X264_DIRECT, _X264_444 = 33, 150
_NO_BUILD = 1 << 30
_X264_SAYS = re.compile(rb"x264 - core (\d+)")
_PERIOD = 1 << 40  # more than pictures are counted to between two that restart the count


class _Unit(NamedTuple):
    kind: int  # nal_unit_type
    head: int  # its header's first byte
    start: int
    end: int


class _Stream:
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
                self.doubts(_DAMAGED)
            return
        at = data.find(b"\0\0\1")
        while at >= 0 and at + 3 < size:
            head, following = data[at + 3], data.find(b"\0\0\1", at + 3)
            yield _Unit(head >> 1 & 63 if hevc else head & 31, head, at + 3, following if following >= 0 else size)
            at = following

    def _is_of_another_layer(self, unit: bytes) -> bool:
        return self.codec == "hevc" and len(unit) > 1 and bool((unit[0] & 1) << 5 | unit[1] >> 3)


class _Slices:
    """Of each packet the header of its first slice; lists of one item a packet."""

    def __init__(self, stream: _Stream, packets: Iterable[bytes]):
        self.kinds: list[int] = []  # nal_unit_type; -1 without a slice that begins a picture
        self.heads: list[int] = []  # the two bytes of the NAL unit's header
        self.rows: list[bytes] = []  # what follows them
        self.pictures: list[int] = []  # how many slices begin one
        self.is_referred_to: list[bool] = []  # H.264: whether any slice has nal_ref_idc
        self.x264_build = _NO_BUILD
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

    def _add_units(self, stream: _Stream, data: bytes, h264: bool) -> None:
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


class _PictureOrder:
    """Picture order counts from their low bits (H.264, 8.2.1.1; HEVC, 8.3.1)."""

    def __init__(self) -> None:
        self.period, self.high, self.low = 0, 0, 0

    def restart(self) -> None:
        self.period, self.high, self.low = self.period + 1, 0, 0

    def next(self, low: int, bits: int, is_base: bool) -> int:
        """The place of a picture among all; `is_base`: the next ones count from it."""
        half, high = 1 << bits - 1, self.high
        if low < self.low and self.low - low >= half:
            high += 2 * half
        elif low > self.low and low - self.low > half:
            high -= 2 * half
        if is_base:
            self.high, self.low = high, low
        return self.period * _PERIOD + high + low


def read_h264(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the first slice of each picture (H.264, 7.3.3)."""
    stream, count = _Stream("h264", extradata), _PictureOrder()
    slices = _Slices(stream, packets)
    frame_nums, lows, is_field, is_readable = _h264_columns(slices, stream.sps)
    is_idr: list[bool] = []
    is_output: list[bool] = []
    order: list[int] = []
    waiting: int | None = None  # frame_num of a field whose second one is to come
    bits = stream.sps.poc_bits if stream.sps and not stream.sps.poc_type else 0
    for number, kind in enumerate(slices.kinds):
        is_picture = kind >= 0 and is_readable[number]
        is_second = is_field[number] and waiting == frame_nums[number]
        if kind == _H264_IDR and not is_second:
            count.restart()
        if is_second:
            place = order[-1]
        elif bits and is_picture:
            place = count.next(lows[number], bits, slices.is_referred_to[number])
        else:
            place = count.period * _PERIOD + number
        order.append(place)
        # A recovery point that is no IDR is no place to begin: what a decoder does with the pictures around it, and
        # with the gap in frame_num before it, differs between decoders.
        is_idr.append(kind == _H264_IDR and not is_second)
        waits = is_field[number] and not is_second and slices.pictures[number] == 1
        waiting = frame_nums[number] if waits else None
        is_output.append(is_picture and not waits)
        if not is_picture:
            stream.irregularity = NO_PICTURE
        if slices.pictures[number] > 1 + is_field[number]:
            stream.doubts(_SEVERAL)
    if any(is_field):
        stream.doubts("field pictures")
    if slices.x264_build <= _X264_DIRECT or slices.x264_build <= _X264_444 and stream.sps and stream.sps.chroma == 3:
        stream.doubts("a coder whose mistakes are made up for")
    if not is_idr[0]:
        stream.irregularity = stream.irregularity or "no IDR picture at its start"
    is_known = stream.sps is not None and stream.sps.poc_type != 1
    return StreamHeaders(
        is_random_access=np.array(is_idr),
        is_closed=np.array(is_idr),
        is_reference=np.array(slices.is_referred_to) | np.array(is_field),
        is_output=np.array(is_output),
        order=np.array(order, np.int64) if is_known else None,
        irregularity=stream.irregularity,
        doubt=stream.doubt or stream.irregularity,
    )


def _h264_columns(
    slices: _Slices, sps: SequenceParameters | None
) -> tuple[list[int], list[int], list[bool], list[bool]]:
    """Of each slice frame_num, pic_order_cnt_lsb, whether it is of a field, and whether it can be read."""
    if sps is None:
        none = [0] * len(slices.kinds)
        return none, none, [False] * len(none), [False] * len(none)
    bits = BitColumns(slices.rows)
    bits.golomb(), bits.golomb(), bits.golomb()  # first macroblock, type, picture parameter set
    if sps.separate_planes:
        bits.read(2)
    frame_nums = bits.read(sps.frame_num_bits)
    is_field = bits.read() if sps.interlaced else np.zeros(len(slices.kinds), np.int64)
    bits.read(is_field)  # which of the two
    bits.golomb(np.array(slices.kinds) == _H264_IDR)  # idr_pic_id
    lows = bits.read(0 if sps.poc_type else sps.poc_bits)
    is_readable = bits.is_readable
    return frame_nums.tolist(), lows.tolist(), (is_field.astype(bool) & is_readable).tolist(), is_readable.tolist()


def read_hevc(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the first slice segment of each picture (HEVC, 7.3.6.1)."""
    stream, count = _Stream("hevc", extradata), _PictureOrder()
    slices = _Slices(stream, packets)
    kinds = np.array(slices.kinds)
    temporal_ids = (np.array(slices.heads) & 7) - 1
    lows, is_readable = _hevc_columns(slices, stream)
    order = []
    for number, kind in enumerate(slices.kinds):
        if kind in _HEVC_IDR or kind in _HEVC_BLA:
            count.restart()
        is_base = temporal_ids[number] == 0 and kind not in _HEVC_LEADING and (kind >= 16 or kind % 2 == 1)
        poc_bits = stream.sps.poc_bits if stream.sps and is_readable[number] else 0
        order.append(count.next(lows[number], poc_bits, is_base) if poc_bits else count.period * _PERIOD)
    if max(slices.pictures) > 1:
        stream.doubts(_SEVERAL)
    if (kinds < 0).any():
        stream.irregularity = NO_PICTURE
    is_output = kinds >= 0
    starts_broken = True  # leading pictures of the first entry, or of a splice (BLA), are never output
    for number, kind in enumerate(slices.kinds):
        if 16 <= kind < 24:
            starts_broken = number == 0 or kind in _HEVC_BLA
        elif kind in _HEVC_RASL and starts_broken:
            is_output[number] = False
    is_irap = (kinds >= 16) & (kinds < 24)
    is_unreferenced = (kinds >= 0) & (kinds < 16) & (kinds % 2 == 0) & (temporal_ids == temporal_ids.max())
    return StreamHeaders(
        is_random_access=is_irap,
        is_closed=is_irap & (kinds != _HEVC_CRA),
        is_reference=~is_unreferenced,
        is_output=is_output,
        order=np.array(order, np.int64) if stream.sps else None,
        irregularity=stream.irregularity,
        doubt=stream.doubt or stream.irregularity,
    )


def _hevc_columns(slices: _Slices, stream: _Stream) -> tuple[list[int], list[bool]]:
    """Of each slice slice_pic_order_cnt_lsb, and whether it can be read."""
    kinds, sps = np.array(slices.kinds), stream.sps
    if sps is None:
        return [0] * len(kinds), [False] * len(kinds)
    bits = BitColumns(slices.rows)
    bits.read()
    hides_earlier = bits.read(((kinds >= 16) & (kinds < 24)).astype(np.int64))  # no_output_of_prior_pics_flag
    ids = bits.golomb().tolist()
    sets = [stream.pps.get(number) for number in ids]
    bits.read(np.array([pps.extra_bits if pps else 0 for pps in sets]))
    bits.golomb()  # type
    has_flag = np.array([bool(pps and pps.has_output_flag) for pps in sets])
    is_hidden = has_flag & (bits.read(has_flag.astype(np.int64)) == 0)
    if hides_earlier[1:].any() or is_hidden.any():
        stream.doubts("pictures that are not output")
    if sps.separate_planes:
        bits.read(2)
    lows = bits.read(np.where(np.isin(kinds, _HEVC_IDR), 0, sps.poc_bits))
    is_readable = bits.is_readable & np.array([pps is not None for pps in sets])
    if not is_readable[kinds >= 0].all():
        stream.doubts(_DAMAGED)
    return lows.tolist(), is_readable.tolist()
