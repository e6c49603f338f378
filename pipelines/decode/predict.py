"""Predict the frame table of a video from its packets, and say what keeps the prediction from being trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np

from pipelines.decode.bitstream.headers import StreamHeaders, read_av1, read_mjpeg, read_vp8, read_vp9
from pipelines.decode.bitstream.mpeg4 import PACKED, depends_on_name, read_mpeg4
from pipelines.decode.bitstream.nal_headers import read_h264, read_hevc
from pipelines.decode.frame_table import FrameTable

_READERS = {
    "h264": read_h264, "hevc": read_hevc, "vp8": read_vp8, "vp9": read_vp9, "av1": read_av1, "mjpeg": read_mjpeg,
    "mpeg4": read_mpeg4,
}  # fmt: skip
_CLOSED = {"png", "ffv1"}  # of the codecs whose packets are not read: a key frame resets every reference


class Prediction(NamedTuple):
    """A frame table; the doubts are empty if there are none."""

    table: FrameTable
    stream_doubt: str  # why the headers of the packets do not prove it
    packet_doubt: str  # why the packets may not be those that are shown
    changes_sets: bool = False  # as `StreamHeaders.changes_sets`


def predict(
    packets: Sequence[av.Packet], context: av.VideoCodecContext, *, is_timed: bool, is_unpacked: bool
) -> Prediction:
    """Predict the frame table of a stream, and say what casts a doubt on it; `context` is the container's.

    `is_timed`: whether the packets' times were stored with them, and not made up in decode order. `is_unpacked`: the
    packets were made of others, that held several pictures.
    """
    codec, extradata = context.codec.canonical_name, context.extradata or b""
    reader = _READERS.get(codec)
    if reader is None:
        headers = _of_flags(packets, codec)
    else:
        headers = reader((bytes(packet) for packet in packets), extradata)
    rank, doubt = _ranks(packets, headers, is_timed)
    is_random_access, is_closed = headers.is_random_access.copy(), headers.is_closed.copy()
    if not is_random_access[0]:
        doubt = doubt or "no key frame at its start"
        is_random_access[0] = True
    is_discarded = np.array([packet.is_discard for packet in packets])
    table = FrameTable(
        rank, is_random_access, is_closed, headers.is_reference, headers.is_output,
        headers.is_output & ~is_discarded, irregularity=PACKED if is_unpacked else headers.irregularity,
    )  # fmt: skip
    if is_unpacked:
        doubt = doubt or PACKED
    if codec in ("h264", "hevc") and not doubt and table.depth > context.reorder_depth:
        doubt = "frames that are reordered further than the stream says"
    if codec == "mpeg4" and depends_on_name(context.codec_tag, extradata + bytes(packets[0])):
        doubt = doubt or "a coder that only the container names"
    packet_doubt = "an edit list" if is_discarded.any() else ""
    if any([packet.is_corrupt for packet in packets]):
        packet_doubt = "damaged packets"
    return Prediction(table, headers.doubt or doubt, packet_doubt, headers.changes_sets)


def _of_flags(packets: Sequence[av.Packet], codec: str) -> StreamHeaders:
    """What the container says of a codec whose packets are not read."""
    always = np.ones(len(packets), bool)
    is_key = np.array([packet.is_keyframe for packet in packets])
    return StreamHeaders(
        is_key, always & (codec in _CLOSED), always, always, None, "", f"{codec}, whose packets are not read"
    )


def _ranks(packets: Sequence[av.Packet], headers: StreamHeaders, is_timed: bool) -> tuple[np.ndarray, str]:
    """(N,) ranks in presentation order, and what of the times contradicts the bitstream or is missing."""
    pts = [packet.pts for packet in packets]
    times = None if None in pts else np.array(pts, np.int64)
    order = headers.order
    if order is None:  # in doubt, so what FFmpeg makes up is good enough to be tried
        order = np.arange(len(packets)) if times is None else times
    rank = np.unique(order, return_inverse=True)[1].astype(np.int64)
    shown = rank[headers.is_output]
    if times is None or not is_timed:
        in_order = bool((np.diff(shown) > 0).all())
        return rank, "" if in_order else "packets without the times of their frames"
    steps = np.diff(times[headers.is_output][np.argsort(shown, kind="stable")])
    return rank, "" if (steps > 0).all() else "times that are not in the order of the frames"
