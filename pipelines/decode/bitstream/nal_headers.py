"""Read what the slice headers of an H.264 or HEVC stream say of its packets: `bitstream.StreamHeaders`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipelines.decode.bitstream.bit_reader import BitColumns
from pipelines.decode.bitstream.headers import StreamHeaders
from pipelines.decode.bitstream.nal_units import DAMAGED, FirstSlices, NalStream
from pipelines.decode.bitstream.parameter_sets import SequenceParameters

NO_PICTURE = "packets without a picture"
_SEVERAL = "packets of several pictures"
_GAPS = "pictures that are missing"
_H264_IDR = 5
_HEVC_RASL, _HEVC_LEADING, _HEVC_BLA, _HEVC_IDR, _HEVC_CRA = (8, 9), (6, 7, 8, 9), (16, 17, 18), (19, 20), 21
# Up to these builds x264 had faults that FFmpeg makes up for if it has seen which one coded the stream. That is said in
# the first packet alone, so who begins later does not see it. One was in direct prediction, the other in 4:4:4.
_X264_DIRECT, _X264_444 = 33, 150
_PERIOD = 1 << 40  # more than pictures are counted to between two that restart the count


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
    stream = NalStream("h264", extradata)
    slices = FirstSlices(stream, packets)
    kinds, pictures, is_referred_to = map(np.array, (slices.kinds, slices.pictures, slices.is_referred_to))
    frame_nums, lows, is_field, is_readable = _h264_columns(slices, stream.sps)
    is_picture = (kinds >= 0) & is_readable
    is_second, waits = _field_pairs(frame_nums, is_field, pictures)
    # A recovery point that is no IDR is no place to begin: what a decoder does with the pictures around it, and with
    # the gap in frame_num before it, differs between decoders.
    is_idr = (kinds == _H264_IDR) & ~is_second
    if not is_picture.all():
        stream.irregularity = NO_PICTURE
    if (pictures > 1 + is_field).any():
        stream.doubts(_SEVERAL)
    if is_field.any():
        stream.doubts("field pictures")
    elif stream.sps and _has_gaps(frame_nums[kinds >= 0], kinds[kinds >= 0], is_referred_to[kinds >= 0], stream.sps):
        stream.doubts(_GAPS)
    if slices.x264_build <= _X264_DIRECT or slices.x264_build <= _X264_444 and stream.sps and stream.sps.chroma == 3:
        stream.doubts("a coder whose mistakes are made up for")
    if not is_idr[0]:
        stream.irregularity = stream.irregularity or "no IDR picture at its start"
    is_known = stream.sps is not None and stream.sps.poc_type != 1
    if not is_known:
        stream.doubts("pictures whose order is not in their headers")
    poc_bits = stream.sps.poc_bits if stream.sps and not stream.sps.poc_type else 0
    order = _h264_order(is_idr, is_second, is_referred_to, np.where(is_picture, lows, -1), poc_bits)
    return StreamHeaders(
        is_random_access=is_idr,
        is_closed=is_idr,
        is_reference=is_referred_to | is_field,
        is_output=is_picture & ~waits,
        order=order if is_known else None,
        irregularity=stream.irregularity,
        doubt=stream.doubt or stream.irregularity,
        changes_sets=stream.changes_sets,
    )


def _field_pairs(frame_nums: np.ndarray, is_field: np.ndarray, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell of each packet whether it is the second field of a frame, and whether a first one whose second is to come.

    Both are (N,) bool."""
    is_second, waits = np.zeros(len(is_field), bool), np.zeros(len(is_field), bool)
    for number in np.flatnonzero(is_field).tolist():
        is_second[number] = number and waits[number - 1] and frame_nums[number - 1] == frame_nums[number]
        waits[number] = not is_second[number] and pictures[number] == 1
    return is_second, waits


def _h264_order(
    is_idr: np.ndarray, is_second: np.ndarray, is_referred_to: np.ndarray, lows: np.ndarray, bits: int
) -> np.ndarray:
    """Return (N,) places in presentation order, from pic_order_cnt_lsb of `bits` bits (-1: unknown), or as decoded."""
    order = np.cumsum(is_idr) * _PERIOD + np.arange(len(is_idr))
    if bits:
        count = _PictureOrder()
        facts = zip(is_idr.tolist(), is_second.tolist(), is_referred_to.tolist(), lows.tolist(), strict=True)
        for number, (restarts, second, is_base, low) in enumerate(facts):
            if restarts:
                count.restart()
            if low >= 0 and not second:
                order[number] = count.next(low, bits, is_base)
    for number in np.flatnonzero(is_second).tolist():
        order[number] = order[number - 1]
    return order


def _has_gaps(frame_nums: np.ndarray, kinds: np.ndarray, is_reference: np.ndarray, sps: SequenceParameters) -> bool:
    """Tell whether frame_num shows that a reference picture is missing, or restarts without an IDR picture (7.4.3)."""
    last = np.maximum.accumulate(np.where(is_reference, np.arange(len(kinds)), -1))[:-1]  # before each but the first
    expected = (frame_nums[last] + 1) % (1 << sps.frame_num_bits)
    return bool(((kinds[1:] != _H264_IDR) & (last >= 0) & (frame_nums[1:] != expected)).any())


def _h264_columns(
    slices: FirstSlices, sps: SequenceParameters | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each slice frame_num, pic_order_cnt_lsb, whether it is of a field, and whether it can be read."""
    if sps is None:
        none = np.zeros(len(slices.kinds), np.int64)
        return none, none, none.astype(bool), none.astype(bool)
    bits = BitColumns(slices.rows)
    for _ in ("first macroblock", "type", "picture parameter set"):
        bits.golomb()
    if sps.separate_planes:
        bits.read(2)
    frame_nums = bits.read(sps.frame_num_bits)
    is_field = bits.read() if sps.interlaced else np.zeros(len(slices.kinds), np.int64)
    if sps.interlaced:
        bits.read(is_field)  # which of the two
    bits.golomb(np.array(slices.kinds) == _H264_IDR)  # idr_pic_id
    lows = bits.read(sps.poc_bits) if not sps.poc_type else np.zeros(len(slices.kinds), np.int64)
    is_readable = bits.is_readable
    return frame_nums, lows, is_field.astype(bool) & is_readable, is_readable


def read_hevc(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the first slice segment of each picture (HEVC, 7.3.6.1)."""
    stream, count = NalStream("hevc", extradata), _PictureOrder()
    slices = FirstSlices(stream, packets)
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
    places = np.sort(np.array(order, np.int64))
    steps = np.diff(places)[np.diff((places + _PERIOD // 2) // _PERIOD) == 0]
    if len(steps) and steps.min() != steps.max():
        stream.doubts(_GAPS)  # FFmpeg gives no frame for a picture that refers to a missing one
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
        changes_sets=stream.changes_sets,
    )


def _hevc_columns(slices: FirstSlices, stream: NalStream) -> tuple[list[int], list[bool]]:
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
        stream.doubts(DAMAGED)
    return lows.tolist(), is_readable.tolist()
