"""Read the slice headers of an H.264 or HEVC stream into `headers.StreamHeaders`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipelines.decode.bitstream.bit_reader import BatchBitReader
from pipelines.decode.bitstream.headers import StreamHeaders
from pipelines.decode.bitstream.nal_units import DAMAGED, FirstSlices, NalStream
from pipelines.decode.bitstream.parameter_sets import SequenceParameters

NO_PICTURE = "packets without a picture"
_SEVERAL = "packets of several pictures"
_GAPS = "pictures that are missing"
_H264_IDR = 5
_HEVC_RASL, _HEVC_LEADING, _HEVC_BLA, _HEVC_IDR, _HEVC_CRA = (8, 9), (6, 7, 8, 9), (16, 17, 18), (19, 20), 21
# Up to these builds x264 had bugs, in direct prediction and in 4:4:4, that FFmpeg works around once it knows the build.
# Only the first packet states the build, so a decoder that begins later does not know it.
_LAST_X264_WITH_DIRECT_BUG, _LAST_X264_WITH_444_BUG = 33, 150
_PERIOD = 1 << 40  # exceeds every picture order count between two pictures that restart the count


class _PictureOrderCounter:
    """A counter that completes picture order counts from their low bits (H.264, 8.2.1.1; HEVC, 8.3.1)."""

    def __init__(self) -> None:
        self.period, self.high, self.low = 0, 0, 0

    def restart(self) -> None:
        self.period, self.high, self.low = self.period + 1, 0, 0

    def next(self, low: int, bits: int, is_base: bool) -> int:
        """Return the position of a picture among all; with `is_base` later pictures are counted from this one."""
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
    kinds, num_pictures, is_reference = map(np.array, (slices.kinds, slices.num_pictures, slices.is_reference))
    frame_nums, poc_lsb, is_field, is_readable = _read_h264_slices(slices, stream.sps)
    is_picture = (kinds >= 0) & is_readable
    is_second_field, awaits_second = _pair_fields(frame_nums, is_field, num_pictures)
    # Only IDR pictures are entry points. Decoders differ in what they do with the pictures around other recovery points
    # and with the gap in frame_num before them.
    is_idr = (kinds == _H264_IDR) & ~is_second_field
    if not is_picture.all():
        stream.irregularity = NO_PICTURE
    if (num_pictures > 1 + is_field).any():
        stream.add_doubt(_SEVERAL)
    if is_field.any():
        stream.add_doubt("field pictures")
    elif stream.sps and _has_gaps(frame_nums[kinds >= 0], kinds[kinds >= 0], is_reference[kinds >= 0], stream.sps):
        stream.add_doubt(_GAPS)
    if (
        slices.x264_build <= _LAST_X264_WITH_DIRECT_BUG
        or slices.x264_build <= _LAST_X264_WITH_444_BUG
        and stream.sps
        and stream.sps.chroma == 3
    ):
        stream.add_doubt("an encoder whose bugs the decoder works around")
    if not is_idr[0]:
        stream.irregularity = stream.irregularity or "no IDR picture at its start"
    has_order = stream.sps is not None and stream.sps.poc_type != 1
    if not has_order:
        stream.add_doubt("pictures whose order is not in their headers")
    poc_bits = stream.sps.poc_bits if stream.sps and not stream.sps.poc_type else 0
    order = _h264_presentation_order(
        is_idr=is_idr,
        is_second_field=is_second_field,
        is_reference=is_reference,
        poc_lsb=np.where(is_picture, poc_lsb, -1),
        poc_bits=poc_bits,
    )
    return StreamHeaders(
        is_random_access=is_idr,
        is_closed=is_idr,
        is_reference=is_reference | is_field,
        is_output=is_picture & ~awaits_second,
        order=order if has_order else None,
        irregularity=stream.irregularity,
        doubt=stream.doubt or stream.irregularity,
        changes_parameter_sets=stream.changes_parameter_sets,
    )


def _pair_fields(
    frame_nums: np.ndarray, is_field: np.ndarray, num_pictures: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) bool: packets of a second field, and packets of a first field whose second is in a later packet."""
    is_second, awaits_second = np.zeros(len(is_field), bool), np.zeros(len(is_field), bool)
    for number in np.flatnonzero(is_field).tolist():
        is_second[number] = number and awaits_second[number - 1] and frame_nums[number - 1] == frame_nums[number]
        awaits_second[number] = not is_second[number] and num_pictures[number] == 1
    return is_second, awaits_second


def _h264_presentation_order(
    *, is_idr: np.ndarray, is_second_field: np.ndarray, is_reference: np.ndarray, poc_lsb: np.ndarray, poc_bits: int
) -> np.ndarray:
    """Return (N,) positions in presentation order, from pic_order_cnt_lsb of `poc_bits` bits (-1: unknown).

    With `poc_bits` 0 pictures are shown as they are decoded.
    """
    order = np.cumsum(is_idr) * _PERIOD + np.arange(len(is_idr))
    if poc_bits:
        counter = _PictureOrderCounter()
        pictures = zip(is_idr.tolist(), is_second_field.tolist(), is_reference.tolist(), poc_lsb.tolist(), strict=True)
        for number, (restarts, is_second, is_base, low) in enumerate(pictures):
            if restarts:
                counter.restart()
            if low >= 0 and not is_second:
                order[number] = counter.next(low, poc_bits, is_base)
    for number in np.flatnonzero(is_second_field).tolist():
        order[number] = order[number - 1]
    return order


def _has_gaps(frame_nums: np.ndarray, kinds: np.ndarray, is_reference: np.ndarray, sps: SequenceParameters) -> bool:
    """Return whether frame_num skips a reference picture or restarts without an IDR picture (7.4.3)."""
    last = np.maximum.accumulate(np.where(is_reference, np.arange(len(kinds)), -1))[
        :-1
    ]  # the last reference before each but the first
    expected = (frame_nums[last] + 1) % (1 << sps.frame_num_bits)
    return bool(((kinds[1:] != _H264_IDR) & (last >= 0) & (frame_nums[1:] != expected)).any())


def _read_h264_slices(
    slices: FirstSlices, sps: SequenceParameters | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return frame_num, pic_order_cnt_lsb, whether it is a field and whether it is readable, of each slice; (N,)."""
    if sps is None:
        zeros = np.zeros(len(slices.kinds), np.int64)
        return zeros, zeros, zeros.astype(bool), zeros.astype(bool)
    bits = BatchBitReader(slices.headers)
    for _ in ("first_mb_in_slice", "slice_type", "pic_parameter_set_id"):
        bits.golomb()
    if sps.separate_planes:
        bits.read(2)
    frame_nums = bits.read(sps.frame_num_bits)
    is_field = bits.read() if sps.interlaced else np.zeros(len(slices.kinds), np.int64)
    if sps.interlaced:
        bits.read(is_field)  # bottom_field_flag
    bits.golomb(np.array(slices.kinds) == _H264_IDR)  # idr_pic_id
    poc_lsb = bits.read(sps.poc_bits) if not sps.poc_type else np.zeros(len(slices.kinds), np.int64)
    is_readable = bits.is_readable
    return frame_nums, poc_lsb, is_field.astype(bool) & is_readable, is_readable


def read_hevc(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the first slice segment of each picture (HEVC, 7.3.6.1)."""
    stream = NalStream("hevc", extradata)
    slices = FirstSlices(stream, packets)
    kinds = np.array(slices.kinds)
    temporal_ids = (np.array(slices.unit_headers) & 7) - 1
    order = _hevc_presentation_order(slices, stream, temporal_ids)
    if max(slices.num_pictures) > 1:
        stream.add_doubt(_SEVERAL)
    positions = np.sort(order)
    intervals = np.diff(positions)[np.diff((positions + _PERIOD // 2) // _PERIOD) == 0]
    if len(intervals) and intervals.min() != intervals.max():
        stream.add_doubt(_GAPS)  # FFmpeg gives no frame for a picture that refers to a missing one
    if (kinds < 0).any():
        stream.irregularity = NO_PICTURE
    is_irap = (kinds >= 16) & (kinds < 24)
    is_unreferenced = (kinds >= 0) & (kinds < 16) & (kinds % 2 == 0) & (temporal_ids == temporal_ids.max())
    return StreamHeaders(
        is_random_access=is_irap,
        is_closed=is_irap & (kinds != _HEVC_CRA),
        is_reference=~is_unreferenced,
        is_output=_hevc_output(slices.kinds),
        order=order if stream.sps else None,
        irregularity=stream.irregularity,
        doubt=stream.doubt or stream.irregularity,
        changes_parameter_sets=stream.changes_parameter_sets,
    )


def _hevc_presentation_order(slices: FirstSlices, stream: NalStream, temporal_ids: np.ndarray) -> np.ndarray:
    """Return (N,) int64 positions in presentation order."""
    counter = _PictureOrderCounter()
    poc_lsb, is_readable = _read_hevc_slices(slices, stream)
    order = []
    for number, kind in enumerate(slices.kinds):
        if kind in _HEVC_IDR or kind in _HEVC_BLA:
            counter.restart()
        is_base = temporal_ids[number] == 0 and kind not in _HEVC_LEADING and (kind >= 16 or kind % 2 == 1)
        poc_bits = stream.sps.poc_bits if stream.sps and is_readable[number] else 0
        order.append(counter.next(poc_lsb[number], poc_bits, is_base) if poc_bits else counter.period * _PERIOD)
    return np.array(order, np.int64)


def _hevc_output(kinds: list[int]) -> np.ndarray:
    """Return (N,) bool: False for packets without a picture and for leading pictures that a decoder never outputs.

    These are the RASL pictures of the first entry point, and those of a splice (BLA).
    """
    is_output = np.array(kinds) >= 0
    drops_leading = True
    for number, kind in enumerate(kinds):
        if 16 <= kind < 24:
            drops_leading = number == 0 or kind in _HEVC_BLA
        elif kind in _HEVC_RASL and drops_leading:
            is_output[number] = False
    return is_output


def _read_hevc_slices(slices: FirstSlices, stream: NalStream) -> tuple[list[int], list[bool]]:
    """Return slice_pic_order_cnt_lsb of each slice, and whether the slice is readable."""
    kinds, sps = np.array(slices.kinds), stream.sps
    if sps is None:
        return [0] * len(kinds), [False] * len(kinds)
    bits = BatchBitReader(slices.headers)
    bits.read()  # first_slice_segment_in_pic_flag
    hides_earlier = bits.read(((kinds >= 16) & (kinds < 24)).astype(np.int64))  # no_output_of_prior_pics_flag
    pps_ids = bits.golomb().tolist()
    pps_of_slices = [stream.pps.get(pps_id) for pps_id in pps_ids]
    bits.read(np.array([pps.extra_bits if pps else 0 for pps in pps_of_slices]))
    bits.golomb()  # slice_type
    has_output_flag = np.array([bool(pps and pps.has_output_flag) for pps in pps_of_slices])
    is_hidden = has_output_flag & (bits.read(has_output_flag.astype(np.int64)) == 0)
    if hides_earlier[1:].any() or is_hidden.any():
        stream.add_doubt("pictures that are not output")
    if sps.separate_planes:
        bits.read(2)
    poc_lsb = bits.read(np.where(np.isin(kinds, _HEVC_IDR), 0, sps.poc_bits))
    is_readable = bits.is_readable & np.array([pps is not None for pps in pps_of_slices])
    if not is_readable[kinds >= 0].all():
        stream.add_doubt(DAMAGED)
    return poc_lsb.tolist(), is_readable.tolist()
