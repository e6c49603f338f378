"""What each picture of a video is to the others, from its packets alone; as a short text, so that an index can keep it.

Frame numbers are positions in presentation order, from 0. Pictures are numbered in decode order, as they lie in the
file. A picture is an *entry* when decoding can begin there, *closed* when nothing after it in decode order needs
anything before it, a *reference* when another picture may be predicted from it, *shown* when the decoder outputs it.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np

from pipelines.parameter_sets import nal_length_size, nal_units

_H264_IDR, _H264_SLICES = 5, range(1, 6)
_HEVC_RASL, _HEVC_BLA, _HEVC_IRAP, _HEVC_CRA = (8, 9), (16, 17, 18), range(16, 24), 21
_CLOSED_CODECS = {"vp8", "vp9", "av1", "mjpeg", "png", "ffv1"}  # a key frame resets every reference
_FLAGS = ("entry", "closed", "reference", "shown")
_HEAD = struct.Struct("<IQ")  # pictures, bytes of them all


@dataclass(frozen=True)
class Pictures:
    """What is known of each picture, in decode order; every array is (N,)."""

    pts: np.ndarray  # int64, presentation time in units of the stream's time base
    entry: np.ndarray  # bool
    closed: np.ndarray  # bool
    reference: np.ndarray  # bool
    shown: np.ndarray  # bool
    # Why a packet is not one frame that is shown, which a decoder that counts packets relies on; empty: each is one.
    # Known of packets alone, and not kept by pack().
    irregularity: str = ""

    @property
    def frames(self) -> np.ndarray:
        """(F,) the decode-order number of each frame, by frame number."""
        order = np.argsort(self.pts, kind="stable")
        return order[self.shown[order]]

    @property
    def keyframes(self) -> np.ndarray:
        """(K,) frame numbers of the shown entries, ascending."""
        return np.flatnonzero(self.entry[self.frames])


def of_packets(packets: Sequence[av.Packet], codec: str, extradata: bytes) -> Pictures:
    """What each packet of a stream is to the others; `extradata` is its codec's."""
    keyframe = np.array([p.is_keyframe for p in packets])
    times = [p.pts if p.pts is not None else p.dts for p in packets]
    pts = np.array(range(len(packets)) if None in times else times, np.int64)
    shown = np.array([not p.is_discard for p in packets])  # an edit list may start after some pictures
    entry, closed = keyframe.copy(), np.full(len(packets), codec in _CLOSED_CODECS)
    reference = np.ones(len(packets), bool)
    irregularity = _irregularity(packets, codec)
    if codec == "h264":
        size = nal_length_size(codec, extradata)
        for i, packet in enumerate(packets):
            headers = [h[0] for h in _nal_headers(bytes(packet), size) if h[0] & 31 in _H264_SLICES]
            # A recovery point that is no IDR is no entry: what a decoder does with the pictures around it, and with
            # the gap in frame_num before it, differs between decoders.
            entry[i] = closed[i] = any(h & 31 == _H264_IDR for h in headers)
            reference[i] = any(h >> 5 & 3 for h in headers) or not headers
            if not headers:
                irregularity = "packets without a picture"
        if not closed[0]:
            irregularity = irregularity or "no IDR picture at its start"
    elif codec == "hevc":
        size = nal_length_size(codec, extradata)
        slices = [[h for h in _nal_headers(bytes(p), size) if h[0] >> 1 & 63 < 32] for p in packets]
        kinds = [s[0][0] >> 1 & 63 if s else -1 for s in slices]
        layers = [s[0][1] & 7 if s else 0 for s in slices]
        entry = np.array([k in _HEVC_IRAP for k in kinds])
        closed = np.array([k in _HEVC_IRAP and k != _HEVC_CRA for k in kinds])
        reference = np.array(
            [not (0 <= k < 16 and k % 2 == 0 and t == max(layers)) for k, t in zip(kinds, layers, strict=True)]
        )
        if -1 in kinds:
            irregularity = "packets without a picture"
        starts_broken = True  # leading pictures of the first entry, or of a splice (BLA), are never output
        for i, kind in enumerate(kinds):
            if entry[i]:
                starts_broken = i == 0 or kind in _HEVC_BLA
            elif kind in _HEVC_RASL and starts_broken:
                shown[i] = False
    entry[0] = True
    return Pictures(pts, entry, closed, reference, shown, irregularity)


def _irregularity(packets: Sequence[av.Packet], codec: str) -> str:
    """Return `Pictures.irregularity` of codecs without NAL units, from a few bits of each packet."""
    check = {"vp8": _vp8_is_hidden, "vp9": _vp9_is_hidden, "mpeg4": _mpeg4_is_packed}.get(codec)
    if check and any(check(bytes(packet)) for packet in packets):
        return "packed B-frames" if codec == "mpeg4" else "hidden frames"
    return ""


def _vp8_is_hidden(data: bytes) -> bool:
    """Tell whether a frame is for reference alone (RFC 6386, 9.1: show_frame)."""
    return not data[0] >> 4 & 1


def _vp9_is_hidden(data: bytes) -> bool:
    """Tell whether a packet holds several frames, of which one is shown, or none of its own (VP9 bitstream
    specification, annex B and 6.2): a superframe, a frame that is not shown, or an earlier frame that is shown now."""
    if data[-1] >> 5 == 0b110:
        return True
    profile = data[0] >> 5 & 1 | data[0] >> 3 & 2
    show_existing, show = (data[0] >> 2 & 1, data[0] & 1) if profile == 3 else (data[0] >> 3 & 1, data[0] >> 1 & 1)
    return bool(show_existing or not show)


def _mpeg4_is_packed(data: bytes) -> bool:
    """Tell whether a packet holds two pictures, or the few bytes that stand for one that came before it."""
    return data.count(b"\0\0\1\xb6") != 1 or len(data) < 8


def _nal_headers(data: bytes, length_size: int) -> list[bytes]:
    """The first two bytes of each NAL unit of a packet."""
    return [unit[:2] for unit in nal_units(data, length_size) if len(unit) >= 2]


def pack(pictures: Pictures, size: int) -> str:
    """Pictures as a text of some 100 characters; `size`: bytes of them all, by which unpack() tells another file.

    Times are kept as their ranks.
    """
    count = len(pictures.pts)
    rank = np.empty(count, np.int32)
    rank[np.argsort(pictures.pts, kind="stable")] = np.arange(count)
    flags = sum(getattr(pictures, name).astype(np.uint8) << bit for bit, name in enumerate(_FLAGS))
    content = (rank - np.arange(count)).astype("<i4").tobytes() + np.asarray(flags, np.uint8).tobytes()
    return base64.b85encode(_HEAD.pack(count, size) + zlib.compress(content, 9)).decode()


def unpack(table: str) -> tuple[Pictures, int]:
    """-> what pack() was given. Raises ValueError for what it did not make."""
    try:
        data = base64.b85decode(table)
        count, size = _HEAD.unpack_from(data)
        content = zlib.decompress(data[_HEAD.size :])
        rank = np.frombuffer(content, "<i4", count).astype(np.int64) + np.arange(count)
        flags = np.frombuffer(content, np.uint8, count, 4 * count)
    except (ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"a damaged table of pictures: {error}") from None
    return Pictures(rank, *(flags >> bit & 1 == 1 for bit in range(len(_FLAGS)))), size
