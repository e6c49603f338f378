"""One video file, demuxed and not decoded: its packets, and what each picture is to the others.

Frame numbers are positions in presentation order, from 0. Pictures are numbered in decode order, as they lie in the
file. A picture is an *entry* when decoding can begin there, *closed* when nothing after it in decode order needs
anything before it, a *reference* when another picture may be predicted from it, *shown* when the decoder outputs it.
"""

from __future__ import annotations

import io
import logging
import math
import os
import time
from dataclasses import dataclass
from fractions import Fraction
from stat import S_ISDIR, S_ISREG
from types import TracebackType
from typing import Any

import av
import numpy as np

logging.getLogger("libav").setLevel(logging.CRITICAL)  # damage is reported as a ValueError, once, with the path
av.logging.set_level(av.logging.PANIC)

# Titles in other encodings than UTF-8 are no reason to refuse a video; PyAV 19 no longer asks.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_H264_IDR, _H264_SLICES = 5, range(1, 6)
_HEVC_RASL, _HEVC_BLA, _HEVC_IRAP, _HEVC_CRA = (8, 9), (16, 17, 18), range(16, 24), 21
_TIMELESS = {"avi", "h264", "hevc", "m4v", "mpegvideo"}
_CLOSED_CODECS = {"vp8", "vp9", "av1", "mjpeg", "png", "ffv1"}  # a key frame resets every reference


@dataclass(frozen=True)
class Pictures:
    """What is known of each picture, in decode order; every array is (N,)."""

    pts: np.ndarray  # int64, presentation time in units of the stream's time base
    entry: np.ndarray  # bool
    closed: np.ndarray  # bool
    reference: np.ndarray  # bool
    shown: np.ndarray  # bool

    @property
    def frames(self) -> np.ndarray:
        """(F,) the decode-order number of each frame, by frame number."""
        order = np.argsort(self.pts, kind="stable")
        return order[self.shown[order]]

    @property
    def keyframes(self) -> np.ndarray:
        """(K,) frame numbers of the shown entries, ascending."""
        return np.flatnonzero(self.entry[self.frames])


class Video:
    """An open file: `packets` (decode order), `pictures`, and the container's codec context.

    `source` is a path or the bytes of a file. Raises ValueError with the path and the reason for anything that cannot
    be read as video: missing, empty, another kind of file, no video stream, no pictures; and where more than `seconds`
    have passed since it was opened, here or in in_time().
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, seconds: float = math.inf):
        self.seconds, self._opened = seconds, time.monotonic()
        self.name = f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source)
        self.container = _open(source, self.name)
        try:
            if not self.container.streams.video:
                kinds = ", ".join(sorted({s.type for s in self.container.streams})) or "no streams at all"
                raise ValueError(f"{self.name}: no video stream (the file has: {kinds})")
            pictures = av.stream.Disposition.attached_pic  # the cover of an album is no video
            moving = [s for s in self.container.streams.video if not s.disposition & pictures]
            self.stream = (moving or self.container.streams.video)[0]
            if self.stream.codec_context is None:
                raise ValueError(f"{self.name}: the video stream is of a codec that FFmpeg does not know")
            self.codec = self.stream.codec_context.codec.canonical_name
            self.width, self.height = self.stream.codec_context.width, self.stream.codec_context.height
            self.packets = self._demux()
            if not self.packets or not self.width or not self.height:
                raise ValueError(f"{self.name}: the video stream has no pictures")
            self.pictures = _pictures(self.packets, self.codec, self.stream.codec_context.extradata or b"")
        except BaseException:
            self.container.close()
            raise

    @property
    def fps(self) -> Fraction:
        """Mean frames a second as the container states it; 0 if it does not."""
        return Fraction(self.stream.average_rate or 0)

    @property
    def ordered(self) -> bool:
        """Whether the packets tell in which order the pictures are shown. In AVI and raw streams those with B-frames do
        not: their times are made up, in decode order."""
        if self.container.format.name not in _TIMELESS and all(p.pts is not None for p in self.packets):
            return True
        in_order = (np.diff(self.pictures.pts) > 0).all()
        return not (in_order and self.stream.codec_context.reorder_depth)

    @property
    def quarter_turns(self) -> int:
        """By how many quarter turns, anticlockwise, a player turns the pictures (0-3); the first one is decoded for it.

        0 if it does not decode: whether the file can be used shows when it is.
        """
        context = self.stream.codec_context
        context.thread_type, context.thread_count = "NONE", 1
        try:
            frames = [*context.decode(self.packets[0]), *context.decode(None)]
        except av.error.FFmpegError:
            return 0
        return round(frames[0].rotation / 90) % 4 if frames else 0

    @property
    def variable_rate(self) -> bool:
        """Whether frames are shown for different times: by more than a tick, which rounding to the clock explains."""
        times = self.pictures.pts[self.pictures.frames]
        steps = np.diff(times)
        return bool(len(steps)) and int(steps.max() - steps.min()) > 1

    def in_time(self) -> None:
        """ValueError if the file has had its time."""
        if time.monotonic() - self._opened > self.seconds:
            raise ValueError(f"{self.name}: not read within {self.seconds:g} seconds")

    def _demux(self) -> list[av.Packet]:
        packets = []
        try:
            for packet in self.container.demux(self.stream):
                self.in_time()
                if packet.size:
                    packets.append(packet)
        except av.error.FFmpegError as error:
            if not packets:
                raise ValueError(f"{self.name}: unreadable: {error.strerror}") from None
        return packets  # a file cut short keeps the packets before the cut

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.container.close()


def _open(source: str | os.PathLike[str] | bytes, name: str) -> av.container.InputContainer:
    try:
        stat = None if isinstance(source, bytes) else os.stat(source)
        if stat and not S_ISREG(stat.st_mode):  # a pipe would be waited for
            raise ValueError(f"{name}: {'a folder' if S_ISDIR(stat.st_mode) else 'no regular file'}")
        if not (stat.st_size if stat else len(source)):  # type: ignore[arg-type]
            raise ValueError(f"{name}: empty file")
        where = io.BytesIO(source) if isinstance(source, bytes) else f"file:{name}"  # a:b.mp4 is no protocol
        return av.open(where, "r", **_ANY_METADATA)
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except av.error.FFmpegError as error:
        raise ValueError(f"{name}: not a readable video: {error.strerror}") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None


def _pictures(packets: list[av.Packet], codec: str, extradata: bytes) -> Pictures:
    keyframe = np.array([p.is_keyframe for p in packets])
    times = [p.pts if p.pts is not None else p.dts for p in packets]
    pts = np.array(range(len(packets)) if None in times else times, np.int64)
    shown = np.array([not p.is_discard for p in packets])  # an edit list may start after some pictures
    entry, closed = keyframe.copy(), np.full(len(packets), codec in _CLOSED_CODECS)
    reference = np.ones(len(packets), bool)
    if codec == "h264":
        size = (extradata[4] & 3) + 1 if extradata[:1] == b"\1" else 0
        for i, packet in enumerate(packets):
            headers = [h[0] for h in _nal_headers(bytes(packet), size) if h[0] & 31 in _H264_SLICES]
            # A recovery point that is no IDR is no entry: what a decoder does with the pictures around it, and with
            # the gap in frame_num before it, differs between decoders.
            entry[i] = closed[i] = any(h & 31 == _H264_IDR for h in headers)
            reference[i] = any(h >> 5 & 3 for h in headers) or not headers
    elif codec == "hevc":
        size = (extradata[21] & 3) + 1 if extradata[:1] == b"\1" else 0
        slices = [[h for h in _nal_headers(bytes(p), size) if h[0] >> 1 & 63 < 32] for p in packets]
        kinds = [s[0][0] >> 1 & 63 if s else -1 for s in slices]
        layers = [s[0][1] & 7 if s else 0 for s in slices]
        entry = np.array([k in _HEVC_IRAP for k in kinds])
        closed = np.array([k in _HEVC_IRAP and k != _HEVC_CRA for k in kinds])
        reference = np.array(
            [not (0 <= k < 16 and k % 2 == 0 and t == max(layers)) for k, t in zip(kinds, layers, strict=True)]
        )
        starts_broken = True  # leading pictures of the first entry, or of a splice (BLA), are never output
        for i, kind in enumerate(kinds):
            if entry[i]:
                starts_broken = i == 0 or kind in _HEVC_BLA
            elif kind in _HEVC_RASL and starts_broken:
                shown[i] = False
    entry[0] = True
    return Pictures(pts, entry, closed, reference, shown)


def _nal_headers(data: bytes, length_size: int) -> list[bytes]:
    """The first two bytes of each NAL unit of a packet; `length_size` 0 means Annex B start codes."""
    headers, at = [], 0
    if length_size:
        while at + length_size < len(data):
            length = int.from_bytes(data[at : at + length_size], "big")
            headers.append(data[at + length_size : at + length_size + 2])
            at += length_size + length
    else:
        while (at := data.find(b"\0\0\1", at)) >= 0:
            headers.append(data[at + 3 : at + 5])
            at += 3
    return [h for h in headers if len(h) == 2]
