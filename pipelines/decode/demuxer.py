"""One video file, not decoded: its packets, and what they tell of its frames (`pipelines.decode.frame_table`)."""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import NamedTuple

import av
import numpy as np

from pipelines import storage
from pipelines.decode.bitstream.container_signs import ContainerSigns, inspect_container
from pipelines.decode.bitstream.mpeg4 import unpack as unpack_pictures
from pipelines.decode.bitstream.parameter_sets import read_sps
from pipelines.decode.container import moving_stream, open_container, stored_packets
from pipelines.decode.frame_table import FrameTable, pack, unpack
from pipelines.decode.predict import predict

CHANGED = "it has changed since it was indexed"
_LOOKS_AT_CLOCK = 16  # once in so many packets
_COMPARED = 1 << 22  # bytes at a time
# Of AVColorSpace: RGB, unspecified, and what has BT.601's matrix; those whose matrix is known; all others are "other".
_COLORSPACES = {0: "", 2: "", 5: "", 6: "", 1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020"}
_MEANINGFUL_SIDE_DATA = {
    "new_extradata",
    "param_change",
    "skip_samples",
}  # beside packets not to be decoded as they are
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
    """An open file: its packets, the container's codec context, and what is known of its frames.

    `source` is a path (`pipelines.storage`) or the bytes of a file. It is demuxed whole, unless `table` says what an
    earlier demuxing found and where its packets lie: then only the packets that packets() is asked for are read.
    Raises ValueError with the path and the reason for anything that cannot be read as video: missing, empty, another
    kind of file, encrypted, no video stream, no pictures, not the file that `table` is of; and where more than
    `seconds` have passed since it was opened, here or in in_time().
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, seconds: float = math.inf, table: str = ""):
        self.seconds, self._opened = seconds, time.monotonic()
        self.name = f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source)
        self._whole = source if isinstance(source, bytes) else None  # the file, where it is in memory
        try:
            stored = unpack(table) if table else None
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        in_ranges = bool(stored and stored.in_ranges)
        self.container = self._open(source, whole=not in_ranges)
        try:
            self.stream = moving_stream(self.container, self.name)
            self.codec = self.stream.codec_context.codec.canonical_name
            self.width, self.height = self.stream.codec_context.width, self.stream.codec_context.height
            if stored:
                self.width, self.height = stored.frame_size
            self._ranges = self._indexed()  # before demuxing, which may find more than opening does
            self.raw_packets = [] if in_ranges else self._demux()
            if not (self.raw_packets or in_ranges) or not self.width or not self.height:
                raise ValueError(f"{self.name}: the video stream has no pictures")
            # Of one picture each, where the raw ones are known to hold several.
            self._packets = unpack_pictures(self.raw_packets) if self.codec == "mpeg4" else self.raw_packets
            self._is_unpacked = len(self._packets) != len(self.raw_packets) or any(
                one is not other for one, other in zip(self._packets, self.raw_packets, strict=True)
            )
            self.decoded_times: Sequence[int | None] = ()  # of frames, where proving the table decoded them
            self.num_failed = 0  # packets that the decoder refused
            self.is_stored = bool(stored)  # whether the frame table is an earlier one's, that was proven
            self.changes_sets = False  # whether parameter sets change midway
            self.is_read = True  # whether the packets' headers leave no doubt, and only the container may
            self.doubt = ""  # why the frame table must not be trusted before it is proven (`pipelines.decode.prove`)
            if stored:
                self.frame_table = stored.table
                sizes = (
                    [end - start for start, end in self._ranges] if in_ranges else [p.size for p in self.raw_packets]
                )
                if (len(sizes), sum(sizes)) != (stored.num_packets, stored.size):
                    raise ValueError(f"{self.name}: {CHANGED}")
            else:
                self.frame_table = self._predict()
        except BaseException:
            self.container.close()
            raise

    def _predict(self) -> FrameTable:
        """The frame table as the packets have it; sets `doubt`."""
        signs = self._signs()
        self._in_fragments = signs.in_fragments
        if signs.is_encrypted:
            raise ValueError(f"{self.name}: encrypted")
        context = self.stream.codec_context
        self._packet_times = [packet.pts for packet in self._packets]  # those of the packets become ranks
        is_timed = self.container.format.name not in _TIMELESS
        side_data = {data.data_type for packet in self.raw_packets for data in packet.iter_sidedata()}
        self._has_side_data = bool(side_data)
        found = predict(self._packets, context, is_timed=is_timed, is_unpacked=self._is_unpacked)
        self.is_read, self.changes_sets = not found.stream_doubt, found.changes_sets
        self.doubt = found.stream_doubt or found.packet_doubt or signs.doubt
        if side_data.intersection(_MEANINGFUL_SIDE_DATA):
            self.doubt = self.doubt or "parameters that change midway"
            self.is_read, self.changes_sets = False, True
        if self.stream.frames and self.stream.frames != len(self.raw_packets):
            self.doubt = self.doubt or "another number of frames than the container says"
        return found.table

    def _signs(self) -> ContainerSigns:
        """What the container tells beside its packets."""
        facts = self.stream.metadata, self.stream.id
        if self._whole is None:
            with storage.random_reads(self.name) as read:
                return inspect_container(self.container.format.name, read, *facts)
        whole = self._whole
        return inspect_container(self.container.format.name, lambda start, end: whole[start:end], *facts)

    def packets(self, numbers: Sequence[int] | np.ndarray) -> list[av.Packet]:
        """Those of some pictures, ascending; their times are the ranks of the frame table."""
        if self._packets:
            chosen = [self._packets[number] for number in numbers]
        else:
            data = self._bytes([self._ranges[number] for number in numbers])
            self.in_time()
            chosen = [av.Packet(len(picture)) for picture in data]
            for packet, picture in zip(chosen, data, strict=True):
                packet.update(picture)  # a packet made of bytes has no zeros behind them, and decoders read on
        for number, packet in zip(numbers, chosen, strict=True):
            packet.pts = int(self.frame_table.rank[number])  # not every container carries one
            packet.is_keyframe = bool(self.frame_table.is_random_access[number])
        return chosen

    def table(self) -> str:
        """The proven frame table as a text, with which the file is opened without proving it again."""
        size = sum(packet.size for packet in self.raw_packets)
        return pack(self.frame_table, len(self.raw_packets), size, self._lies_in_ranges(), (self.width, self.height))

    def _lies_in_ranges(self) -> bool:
        """Whether the packets are plain ranges of the file, and where they lie is known when it is opened."""
        packets, ranges = self.raw_packets, self._ranges
        if self.frame_table.seek_points or self._is_unpacked or self._in_fragments or self._has_side_data:
            return False
        if [packet.size for packet in packets] != [end - start for start, end in ranges]:
            return False
        first = size = 0
        for last, packet in enumerate(packets, 1):
            size += packet.size
            if size >= _COMPARED or last == len(packets):
                held = self._bytes(ranges[first:last])
                if any(bytes(p) != data for p, data in zip(packets[first:last], held, strict=True)):
                    return False
                first, size = last, 0
        return True

    def content(self) -> bytes:
        """The whole file."""
        return storage.read(self.name)[0] if self._whole is None else self._whole

    def _bytes(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._whole is None:
            return storage.read(self.name, ranges)
        return [self._whole[start:end] for start, end in ranges]

    def _indexed(self) -> list[tuple[int, int]]:
        """(start, end) of each packet in the file, as the container's own index has it."""
        head = 8 if self.container.format.name == "avi" else 0  # of a chunk, which its index points to
        return [(entry.pos + head, entry.pos + head + entry.size) for entry in self.stream.index_entries]

    @property
    def fps(self) -> Fraction:
        """Mean frames a second as the container states it; 0 if it does not."""
        return Fraction(self.stream.average_rate or 0)

    def decode(
        self, packets: Iterable[av.Packet], context: av.VideoCodecContext | None = None
    ) -> Iterator[av.VideoFrame]:
        """Give the frames of packets as one thread of FFmpeg's decoder does; what is damaged is left out."""
        context = context or self.stream.codec_context
        if not context.is_open:
            context.thread_type, context.thread_count = "NONE", 1
        for packet in packets:
            self.in_time()
            try:
                yield from context.decode(packet)
            except av.error.FFmpegError:
                self.num_failed += 1
        with contextlib.suppress(av.error.FFmpegError):
            yield from context.decode(None)

    @contextlib.contextmanager
    def reopened(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        """The file opened once more: a decoder that has seen nothing yet."""
        source = self._whole if self._whole is not None else self.name
        with self._open(source, whole=True) as container:
            yield container, moving_stream(container, self.name)

    def first_frame(self, frame: av.VideoFrame | None = None) -> FirstFrame:
        """What the first frame says, decoded from the first packet unless it is given. Where none comes of that packet
        the container's word is taken, and the frame table is in doubt."""
        context = self.stream.codec_context
        if frame is None:
            frame = next(self.decode(self._packets[:1]), None)
            context.flush_buffers()
            if frame is None:
                self.doubt = self.doubt or "a first packet without a frame"
            elif frame.is_corrupt:
                self.doubt = self.doubt or "a damaged first frame"
            elif (frame.width, frame.height) != (self.width, self.height):
                self.doubt = self.doubt or "frames of another size than the container says"
        sps = read_sps(self.codec, context.extradata or b"", bytes(self.raw_packets[0]))
        if sps and sps.shown_size != (self.width, self.height):  # it is not the set that the frames are decoded with
            coded, offset = (0, 0), (0, 0)
        elif sps:
            coded, offset = (sps.coded_width, sps.coded_height), (sps.crop_left, sps.crop_top)
        else:  # only H.264 and HEVC are cropped by the decoder; without their SPS nothing is known of it
            coded = (0, 0) if self.codec in ("h264", "hevc") else (self.width, self.height)
            offset = (0, 0)
        if frame is None:
            return FirstFrame(0, context.pix_fmt or "", bool(sps and sps.interlaced), coded, offset, "")
        return FirstFrame(
            turns=round(frame.rotation / 90) % 4,
            pix_fmt=frame.format.name,
            interlaced=sps.interlaced if sps else frame.interlaced_frame,
            coded_size=coded,
            crop_offset=offset,
            colorspace=_COLORSPACES.get(frame.colorspace, "other"),
        )

    @property
    def frame_times(self) -> np.ndarray | None:
        """(F,) when each frame is shown, in units of the stream's time base; None if the file does not say so of
        all, one after the other. It must have been opened without a table."""
        if self.frame_table.seek_points:
            times = list(self.decoded_times)
        else:
            times = self.times_of(self.frame_table.frames)
        if None in times or (np.diff(np.array(times, np.int64)) <= 0).any():
            return None
        return np.array(times, np.int64)

    def times_of(self, numbers: np.ndarray) -> list[int | None]:
        """When the pictures of some packets are shown, as the container has it."""
        return [self._packet_times[number] for number in numbers]

    @property
    def variable_rate(self) -> bool:
        """Whether frames are shown for different times: by more than a tick, which rounding to the clock explains."""
        times = self.frame_times
        steps = np.diff(times) if times is not None else np.zeros(0)
        return bool(len(steps)) and int(steps.max() - steps.min()) > 1

    def in_time(self) -> None:
        """ValueError if the file has had its time."""
        if time.monotonic() - self._opened > self.seconds:
            raise ValueError(f"{self.name}: not read within {self.seconds:g} seconds")

    def _open(self, source: str | os.PathLike[str] | bytes, whole: bool) -> av.container.InputContainer:
        where = io.BytesIO(source) if isinstance(source, bytes) else storage.source(self.name, whole)
        if isinstance(where, io.BytesIO):
            self._whole = where.getvalue()
        return open_container(where, self.name)

    def _demux(self) -> list[av.Packet]:
        packets = []
        for packet in stored_packets(self.container, self.stream, self.name):
            packets.append(packet)
            if not len(packets) % _LOOKS_AT_CLOCK:
                self.in_time()
        return packets

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.container.close()
