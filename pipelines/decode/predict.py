"""Predict the frame table of a video from its packets, with the reasons why the prediction may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np

from pipelines.decode.bitstream.headers import StreamHeaders, read_av1, read_mjpeg, read_vp8, read_vp9
from pipelines.decode.bitstream.mpeg4 import PACKED, depends_on_codec_tag, read_mpeg4
from pipelines.decode.bitstream.nal_headers import read_h264, read_hevc
from pipelines.decode.frame_table import FrameTable

_HEADER_READERS = {
    "h264": read_h264,
    "hevc": read_hevc,
    "vp8": read_vp8,
    "vp9": read_vp9,
    "av1": read_av1,
    "mjpeg": read_mjpeg,
    "mpeg4": read_mpeg4,
}
_CLOSED_GOP_CODECS = {"png", "ffv1"}  # without a reader; their key frames reset every reference


class Prediction(NamedTuple):
    """A predicted frame table and the reasons to doubt it; a reason is empty if there is none."""

    table: FrameTable
    stream_doubt: str  # why the headers of the packets do not prove the table
    packet_doubt: str  # why the packets may not be those that are displayed
    changes_parameter_sets: bool = False  # as `StreamHeaders.changes_parameter_sets`


def predict_frame_table(
    packets: Sequence[av.Packet], context: av.VideoCodecContext, *, is_timed: bool, is_unpacked: bool
) -> Prediction:
    """Predict the frame table of a stream from its packets; `context` is the container's.

    `is_timed`: the file stores the packets' times; otherwise FFmpeg made them up in decode order. `is_unpacked`: the
    packets were split from raw packets of several pictures.
    """
    codec, extradata = context.codec.canonical_name, context.extradata or b""
    read_headers = _HEADER_READERS.get(codec)
    if read_headers is None:
        headers = _headers_from_keyframe_flags(packets, codec)
    else:
        headers = read_headers((bytes(packet) for packet in packets), extradata)
    rank, doubt = _presentation_ranks(packets, headers, is_timed)
    is_random_access = headers.is_random_access.copy()
    if not is_random_access[0]:
        doubt = doubt or "no key frame at its start"
        is_random_access[0] = True
    is_discarded = np.array([packet.is_discard for packet in packets])
    table = FrameTable(
        rank=rank,
        is_random_access=is_random_access,
        is_closed=headers.is_closed.copy(),
        is_reference=headers.is_reference,
        is_output=headers.is_output,
        is_displayed=headers.is_output & ~is_discarded,
        irregularity=PACKED if is_unpacked else headers.irregularity,
    )
    if is_unpacked:
        doubt = doubt or PACKED
    if codec in ("h264", "hevc") and not doubt and table.reorder_depth > context.reorder_depth:
        doubt = "frames that are reordered further than the stream says"
    if codec == "mpeg4" and depends_on_codec_tag(context.codec_tag, extradata + bytes(packets[0])):
        doubt = doubt or "a coder that only the container names"
    packet_doubt = "an edit list" if is_discarded.any() else ""
    if any([packet.is_corrupt for packet in packets]):
        packet_doubt = "damaged packets"
    return Prediction(
        table=table,
        stream_doubt=headers.doubt or doubt,
        packet_doubt=packet_doubt,
        changes_parameter_sets=headers.changes_parameter_sets,
    )


def _headers_from_keyframe_flags(packets: Sequence[av.Packet], codec: str) -> StreamHeaders:
    """Return what the container says about packets whose headers are not read."""
    always = np.ones(len(packets), bool)
    return StreamHeaders(
        is_random_access=np.array([packet.is_keyframe for packet in packets]),
        is_closed=always & (codec in _CLOSED_GOP_CODECS),
        is_reference=always,
        is_output=always,
        order=None,
        irregularity="",
        doubt=f"{codec}, whose packets are not read",
    )


def _presentation_ranks(packets: Sequence[av.Packet], headers: StreamHeaders, is_timed: bool) -> tuple[np.ndarray, str]:
    """Return the packets' ranks in presentation order, (N,), and why their times contradict the headers, or ""."""
    pts = [packet.pts for packet in packets]
    times = None if None in pts else np.array(pts, np.int64)
    order = headers.order
    if order is None:  # the table is in doubt anyway, so the times that FFmpeg makes up are good enough to be tried
        order = np.arange(len(packets)) if times is None else times
    rank = np.unique(order, return_inverse=True)[1].astype(np.int64)
    output_rank = rank[headers.is_output]
    if times is None or not is_timed:
        is_ascending = bool((np.diff(output_rank) > 0).all())
        return rank, "" if is_ascending else "packets without the times of their frames"
    intervals = np.diff(times[headers.is_output][np.argsort(output_rank, kind="stable")])
    return rank, "" if (intervals > 0).all() else "times that are not in the order of the frames"
