"""One video file, not decoded: its packets, and what each picture is to the others (`pipelines.pictures`)."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import struct
import time
from collections.abc import Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any, NamedTuple

import av
import numpy as np

from pipelines import places
from pipelines.parameter_sets import read_sps
from pipelines.pictures import of_packets, pack, unpack

logging.getLogger("libav").setLevel(logging.CRITICAL)  # damage is reported as a ValueError, once, with the path
av.logging.set_level(av.logging.PANIC)

# Titles in other encodings than UTF-8 are no reason to refuse a video; PyAV 19 no longer asks.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
CHANGED = "it has changed since it was indexed"
_COMPARED = 32  # packets at a time
# Of AVColorSpace: RGB, unspecified, and what has BT.601's matrix; those whose matrix is known; all others are "other".
_COLORSPACES = {0: "", 2: "", 5: "", 6: "", 1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020"}
_TIMELESS = {"avi", "h264", "hevc", "m4v", "mpegvideo"}


class FirstFrame(NamedTuple):
    """What the first frame of a video, and the parameter set that it was decoded with, say of all."""

    turns: int  # quarter turns, anticlockwise, by which a player turns the frames
    pix_fmt: str
    interlaced: bool
    coded_size: tuple[int, int]  # width, height; (0, 0) if unknown
    crop_offset: tuple[int, int]  # left, top
    colorspace: str  # as `Row.colorspace`


class Video:
    """An open file: its `pictures`, their packets, and the container's codec context.

    `source` is a path (`pipelines.places`) or the bytes of a file. It is demuxed whole, unless `table` says what an
    earlier demuxing found: then only the packets that packets() is asked for are read, and the times of `pictures` are
    ranks. Raises ValueError with the path and the reason for anything that cannot be read as video: missing, empty,
    another kind of file, no video stream, no pictures, not the file that `table` is of; and where more than `seconds`
    have passed since it was opened, here or in in_time().
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, seconds: float = math.inf, table: str = ""):
        self.seconds, self._opened = seconds, time.monotonic()
        self.name = f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source)
        self._whole = source if isinstance(source, bytes) else None  # the file, where it is in memory
        self.container = self._open(source, whole=not table)
        try:
            if not self.container.streams.video:
                kinds = ", ".join(sorted({s.type for s in self.container.streams})) or "no streams at all"
                raise ValueError(f"{self.name}: no video stream (the file has: {kinds})")
            pictures = av.stream.Disposition.attached_pic  # the cover of an album is no video
            moving = [s for s in self.container.streams.video if not s.disposition & pictures]
            self.stream = (moving or self.container.streams.video)[0]
            if self.stream.codec_context is None:
                raise ValueError(f"{self.name}: the video stream is of a codec that FFmpeg does not know")
            # FFmpeg else moves what is cropped at the left, so that rows begin at addresses that it likes.
            self.stream.codec_context.flags |= av.codec.context.Flags.unaligned
            self.codec = self.stream.codec_context.codec.canonical_name
            self.width, self.height = self.stream.codec_context.width, self.stream.codec_context.height
            self._ranges = self._indexed()  # before demuxing, which may find more than opening does
            self._packets = [] if table else self._demux()
            if not (self._packets or table) or not self.width or not self.height:
                raise ValueError(f"{self.name}: the video stream has no pictures")
            if table:
                self.pictures, size = unpack(table)
                if (len(self._ranges), sum(e - s for s, e in self._ranges)) != (len(self.pictures.pts), size):
                    raise ValueError(f"{self.name}: {CHANGED}")
            else:
                self.pictures = of_packets(self._packets, self.codec, self.stream.codec_context.extradata or b"")
        except BaseException:
            self.container.close()
            raise

    def packets(self, numbers: Sequence[int] | np.ndarray) -> list[av.Packet]:
        """Those of some pictures, ascending; their times are those of `pictures`."""
        if self._packets:
            chosen = [self._packets[number] for number in numbers]
        else:
            data = self._bytes([self._ranges[number] for number in numbers])
            self.in_time()
            chosen = [av.Packet(len(picture)) for picture in data]
            for packet, picture in zip(chosen, data, strict=True):
                packet.update(picture)  # a packet made of bytes has no zeros behind them, and decoders read on
        for number, packet in zip(numbers, chosen, strict=True):
            packet.pts = int(self.pictures.pts[number])  # not every container carries one
            packet.is_keyframe = bool(self.pictures.entry[number])
        return chosen

    def table(self) -> str:
        """What lets the file be opened without demuxing it; empty if its packets are not plain ranges of its bytes, or
        where they lie is not known until all of it is read."""
        packets, ranges = self._packets, self._ranges
        if not self.ordered or any(True for packet in packets for _ in packet.iter_sidedata()):
            return ""
        if [packet.size for packet in packets] != [end - start for start, end in ranges] or self._in_fragments():
            return ""
        for first in range(0, len(packets), _COMPARED):
            here = slice(first, first + _COMPARED)
            if any(bytes(p) != held for p, held in zip(packets[here], self._bytes(ranges[here]), strict=True)):
                return ""
        return pack(self.pictures, sum(packet.size for packet in packets))

    def content(self) -> bytes:
        """The whole file."""
        return places.read(self.name)[0] if self._whole is None else self._whole

    def _bytes(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._whole is None:
            return places.read(self.name, ranges)
        return [self._whole[start:end] for start, end in ranges]

    def _in_fragments(self) -> bool:
        """Of an MP4: whether its pictures are listed bit by bit all over the file (moof boxes)."""
        at = 0
        with contextlib.suppress(ValueError, struct.error):  # the end of the file
            while "mp4" in self.container.format.name:
                size, kind = struct.unpack(">I4s", self._bytes([(at, at + 8)])[0])
                if kind == b"moof":
                    return True
                if size == 1:
                    (size,) = struct.unpack(">Q", self._bytes([(at + 8, at + 16)])[0])
                if size < 8:  # it goes on to the end
                    break
                at += size
        return False

    def _indexed(self) -> list[tuple[int, int]]:
        """(start, end) of each packet in the file, as the container's own index has it."""
        head = 8 if self.container.format.name == "avi" else 0  # of a chunk, which its index points to
        return [(entry.pos + head, entry.pos + head + entry.size) for entry in self.stream.index_entries]

    @property
    def fps(self) -> Fraction:
        """Mean frames a second as the container states it; 0 if it does not."""
        return Fraction(self.stream.average_rate or 0)

    @property
    def ordered(self) -> bool:
        """Whether the packets tell in which order the pictures are shown. In AVI and raw streams those with B-frames do
        not: their times are made up, in decode order."""
        if self.container.format.name not in _TIMELESS and all(p.pts is not None for p in self._packets):
            return True
        in_order = (np.diff(self.pictures.pts) > 0).all()
        return not (in_order and self.stream.codec_context.reorder_depth)

    def first_frame(self) -> FirstFrame:
        """Decode the first picture, for what only a decoder knows. Where it does not decode, the container's word is
        taken: whether the file can be used shows when it is."""
        context = self.stream.codec_context
        context.thread_type, context.thread_count = "NONE", 1
        try:
            frames = [*context.decode(self._packets[0]), *context.decode(None)]
        except av.error.FFmpegError:
            frames = []
        sps = read_sps(self.codec, context.extradata or b"", bytes(self._packets[0]))
        if sps and sps.shown_size != (self.width, self.height):  # it is not the set that the frames are decoded with
            coded, offset = (0, 0), (0, 0)
        elif sps:
            coded, offset = (sps.coded_width, sps.coded_height), (sps.crop_left, sps.crop_top)
        else:  # only H.264 and HEVC are cropped by the decoder; without their SPS nothing is known of it
            coded = (0, 0) if self.codec in ("h264", "hevc") else (self.width, self.height)
            offset = (0, 0)
        if not frames:
            return FirstFrame(0, context.pix_fmt or "", bool(sps and sps.interlaced), coded, offset, "")
        frame = frames[0]
        return FirstFrame(
            turns=round(frame.rotation / 90) % 4,
            pix_fmt=frame.format.name,
            interlaced=sps.interlaced if sps else frame.interlaced_frame,
            coded_size=coded,
            crop_offset=offset,
            colorspace=_COLORSPACES.get(frame.colorspace, "other"),
        )

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

    def _open(self, source: str | os.PathLike[str] | bytes, whole: bool) -> av.container.InputContainer:
        if source == b"":
            raise ValueError(f"{self.name}: empty file")
        where = io.BytesIO(source) if isinstance(source, bytes) else places.source(self.name, whole)
        if isinstance(where, io.BytesIO):
            self._whole = where.getvalue()
        try:
            return av.open(where, "r", **_ANY_METADATA)
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.name}: not a readable video: {error.strerror}") from None
        except OSError as error:
            raise ValueError(f"{self.name}: {error.strerror}") from None

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
