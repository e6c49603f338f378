"""Open one video file, read its packets, and predict from them which packet gives which frame."""

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
from pipelines.decode.bitstream.mpeg4 import split_packed_packets
from pipelines.decode.bitstream.parameter_sets import read_sps
from pipelines.decode.container import open_container, read_packets, video_stream
from pipelines.decode.frame_table import FrameTable, StoredTable, pack_frame_table, unpack_frame_table
from pipelines.decode.predict import predict_frame_table

CHANGED = "the file has changed since it was indexed"
_PACKETS_PER_TIMEOUT_CHECK = 16
_BYTES_PER_COMPARISON = 1 << 22
# Names by AVColorSpace. RGB, unspecified and everything with BT.601's matrix have the empty name; a matrix that is not
# listed is "other".
_COLORSPACES = {0: "", 2: "", 5: "", 6: "", 1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020"}
# Kinds of side data with which a packet must not be decoded as it is.
_SIDE_DATA_FOR_DECODER = {"new_extradata", "param_change", "skip_samples"}
_FORMATS_WITHOUT_TIMES = {"avi", "h264", "hevc", "m4v", "mpegvideo"}


class FirstFrame(NamedTuple):
    """Properties of a video, read from its first frame and from the parameter set that this was decoded with."""

    rotation: int  # quarter turns, counterclockwise, by which a player turns the frames
    pix_fmt: str
    interlaced: bool
    coded_size: tuple[int, int]  # width, height; (0, 0) if unknown
    crop_offset: tuple[int, int]  # left, top
    colorspace: str  # as `VideoInfo.colorspace`


class VideoDemuxer:
    """An open video file: its packets, the container's codec context and the frame table.

    `source` is a path (`pipelines.storage`) or the bytes of a file. All packets are read, unless the packed frame table
    `table` of an earlier call lists their byte ranges: then packets() reads only the packets that it is asked for.

    Raises ValueError with the path and the reason if the source cannot be read as video (missing, empty, of another
    kind, encrypted, without a video stream or packets), if `table` belongs to another file, and if more than `timeout`
    seconds have passed since it was opened.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, *, timeout: float = math.inf, table: str = ""):
        self.timeout, self._opened_at = timeout, time.monotonic()
        self.name = f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source)
        self._content = source if isinstance(source, bytes) else None  # the whole file, if it is in memory
        try:
            stored = unpack_frame_table(table) if table else None
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        self.is_table_stored = bool(stored)  # the frame table was proven earlier
        self.decoded_times: Sequence[int | None] = ()  # of frames, if the file was decoded to prove the table
        self.num_refused_packets = 0  # packets that the decoder raised an error for
        self.changes_parameter_sets = False  # midway
        self.has_plain_headers = True  # the packets' headers prove the table, and only the container may cast doubt
        self.doubt = ""  # why the frame table must not be trusted before it is proven (`pipelines.decode.prove`)
        reads_all = not (stored and stored.has_byte_ranges)
        self.container = self._open(source, reads_all)
        try:
            self.stream = video_stream(self.container, self.name)
            self.codec = self.stream.codec_context.codec.canonical_name
            self.width, self.height = self.stream.codec_context.width, self.stream.codec_context.height
            if stored:
                self.width, self.height = stored.frame_size
            self.byte_ranges = self._container_index()  # before demuxing, which may add entries to the index
            self.raw_packets = self._demux() if reads_all else []
            if reads_all and not self.raw_packets or not self.width or not self.height:
                raise ValueError(f"{self.name}: the video stream has no packets or no frame size")
            # A raw packet of MPEG-4 part 2 may hold several pictures; each of these holds one.
            self._packets = split_packed_packets(self.raw_packets) if self.codec == "mpeg4" else self.raw_packets
            self._is_unpacked = len(self._packets) != len(self.raw_packets) or any(
                packet is not raw for packet, raw in zip(self._packets, self.raw_packets, strict=True)
            )
            self.frame_table = self._check_stored(stored) if stored else self._predict()
        except BaseException:
            self.container.close()
            raise

    def _check_stored(self, stored: StoredTable) -> FrameTable:
        """Return the table of an earlier call. Raises ValueError if the number or the size of packets has changed."""
        if stored.has_byte_ranges:
            sizes = [end - start for start, end in self.byte_ranges]
        else:
            sizes = [packet.size for packet in self.raw_packets]
        if (len(sizes), sum(sizes)) != (stored.num_packets, stored.num_bytes):
            raise ValueError(f"{self.name}: {CHANGED}")
        return stored.table

    def _predict(self) -> FrameTable:
        """Return the frame table that the packets suggest; set `doubt` if it may be wrong."""
        signs = self._inspect_container()
        self._is_fragmented = signs.is_fragmented
        if signs.is_encrypted:
            raise ValueError(f"{self.name}: encrypted")
        context = self.stream.codec_context
        self._packet_times = [packet.pts for packet in self._packets]  # packets() overwrites pts with ranks
        is_timed = self.container.format.name not in _FORMATS_WITHOUT_TIMES
        side_data = {data.data_type for packet in self.raw_packets for data in packet.iter_sidedata()}
        self._has_side_data = bool(side_data)
        prediction = predict_frame_table(self._packets, context, is_timed=is_timed, is_unpacked=self._is_unpacked)
        self.has_plain_headers = not prediction.stream_doubt
        self.changes_parameter_sets = prediction.changes_parameter_sets
        self.doubt = prediction.stream_doubt or prediction.packet_doubt or signs.doubt
        if side_data.intersection(_SIDE_DATA_FOR_DECODER):
            self.doubt = self.doubt or "parameters that change midway"
            self.has_plain_headers, self.changes_parameter_sets = False, True
        if self.stream.frames and self.stream.frames != len(self.raw_packets):
            self.doubt = self.doubt or "another number of frames than the container says"
        return prediction.table

    def _inspect_container(self) -> ContainerSigns:
        """Look for signs of trouble in the container that its packets do not show."""
        format_name, content = self.container.format.name, self._content
        if content is None:
            with storage.random_reads(self.name) as read:
                return inspect_container(format_name, read, self.stream.metadata, self.stream.id)
        return inspect_container(
            format_name, lambda start, end: content[start:end], self.stream.metadata, self.stream.id
        )

    def packets(self, numbers: Sequence[int] | np.ndarray) -> list[av.Packet]:
        """Return packets by number, ascending, one picture each; pts is the rank in the frame table."""
        if self._packets:
            packets = [self._packets[number] for number in numbers]
        else:
            contents = self._read_ranges([self.byte_ranges[number] for number in numbers])
            self.check_timeout()
            packets = [av.Packet(len(content)) for content in contents]
            for packet, content in zip(packets, contents, strict=True):
                packet.update(content)  # av.Packet(content) would lack the zero padding that decoders read past the end
        for number, packet in zip(numbers, packets, strict=True):
            packet.pts = int(self.frame_table.rank[number])  # not every container stores one
            packet.is_keyframe = bool(self.frame_table.is_random_access[number])
        return packets

    def packed_frame_table(self) -> str:
        """Return the proven frame table as a text, to open the file with later and not prove it again."""
        return pack_frame_table(
            StoredTable(
                table=self.frame_table,
                num_packets=len(self.raw_packets),
                num_bytes=sum(packet.size for packet in self.raw_packets),
                has_byte_ranges=self._has_byte_ranges(),
                frame_size=(self.width, self.height),
            )
        )

    def _has_byte_ranges(self) -> bool:
        """Return whether the packets are exactly the byte ranges of the file that the container's index lists."""
        packets, ranges = self.raw_packets, self.byte_ranges
        if self.frame_table.seek_points or self._is_unpacked or self._is_fragmented or self._has_side_data:
            return False
        if [packet.size for packet in packets] != [end - start for start, end in ranges]:
            return False
        first = num_bytes = 0
        for last, packet in enumerate(packets, 1):
            num_bytes += packet.size
            if num_bytes >= _BYTES_PER_COMPARISON or last == len(packets):
                contents = self._read_ranges(ranges[first:last])
                if any(bytes(p) != content for p, content in zip(packets[first:last], contents, strict=True)):
                    return False
                first, num_bytes = last, 0
        return True

    def read_content(self) -> bytes:
        """Return the bytes of the whole file."""
        return storage.read_bytes(self.name) if self._content is None else self._content

    def _read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._content is None:
            return storage.read_ranges(self.name, ranges)
        return [self._content[start:end] for start, end in ranges]

    def _container_index(self) -> list[tuple[int, int]]:
        """Return (start, end) of each packet in the file, as the container's own index lists them."""
        header = 8 if self.container.format.name == "avi" else 0  # bytes; an AVI's index points to chunk headers
        return [(entry.pos + header, entry.pos + header + entry.size) for entry in self.stream.index_entries]

    @property
    def fps(self) -> Fraction:
        """Mean frames per second as the container states it; 0 if it does not."""
        return Fraction(self.stream.average_rate or 0)

    def decode(
        self, packets: Iterable[av.Packet], context: av.VideoCodecContext | None = None
    ) -> Iterator[av.VideoFrame]:
        """Yield the frames of packets as FFmpeg's decoder gives them on one thread; skip packets that it refuses."""
        context = context or self.stream.codec_context
        if not context.is_open:
            context.thread_type, context.thread_count = "NONE", 1
        for packet in packets:
            self.check_timeout()
            try:
                yield from context.decode(packet)
            except av.error.FFmpegError:
                self.num_refused_packets += 1
        with contextlib.suppress(av.error.FFmpegError):
            yield from context.decode(None)

    @contextlib.contextmanager
    def reopen(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        """Open the file once more, with a decoder that has not decoded anything yet."""
        source = self._content if self._content is not None else self.name
        with self._open(source, reads_all=True) as container:
            yield container, video_stream(container, self.name)

    def read_first_frame(self, frame: av.VideoFrame | None = None) -> FirstFrame:
        """Return the properties of the first frame, which is decoded from the first packet unless it is passed.

        If the first packet gives no frame, the container's values are returned and the frame table is in doubt.
        """
        context = self.stream.codec_context
        if frame is None:
            frame = next(self.decode(self._packets[:1]), None)
            context.flush_buffers()
            self.doubt = self.doubt or self._doubt_of_first_frame(frame)
        sps = read_sps(self.codec, context.extradata or b"", bytes(self.raw_packets[0]))
        if sps and sps.visible_size != (self.width, self.height):  # the frames are decoded with another SPS
            coded_size, crop_offset = (0, 0), (0, 0)
        elif sps:
            coded_size, crop_offset = (sps.coded_width, sps.coded_height), (sps.crop_left, sps.crop_top)
        else:  # decoders crop only H.264 and HEVC, and only their SPS says by how much
            coded_size = (0, 0) if self.codec in ("h264", "hevc") else (self.width, self.height)
            crop_offset = (0, 0)
        if frame is None:
            return FirstFrame(
                rotation=0,
                pix_fmt=context.pix_fmt or "",
                interlaced=bool(sps and sps.interlaced),
                coded_size=coded_size,
                crop_offset=crop_offset,
                colorspace="",
            )
        return FirstFrame(
            rotation=round(frame.rotation / 90) % 4,
            pix_fmt=frame.format.name,
            interlaced=sps.interlaced if sps else frame.interlaced_frame,
            coded_size=coded_size,
            crop_offset=crop_offset,
            colorspace=_COLORSPACES.get(frame.colorspace, "other"),
        )

    def _doubt_of_first_frame(self, frame: av.VideoFrame | None) -> str:
        """Return the reason why a first frame casts doubt on the frame table; empty if it does not."""
        if frame is None:
            return "a first packet without a frame"
        if frame.is_corrupt:
            return "a damaged first frame"
        if (frame.width, frame.height) != (self.width, self.height):
            return "frames of another size than the container says"
        return ""

    @property
    def frame_times(self) -> np.ndarray | None:
        """(F,) presentation time of each frame in units of the stream's time base.

        None if the file does not state all of them or they do not ascend. Only for a video opened without a table.
        """
        if self.frame_table.seek_points:
            times = list(self.decoded_times)
        else:
            times = self.packet_times(self.frame_table.packet_of_frame)
        if None in times or (np.diff(np.array(times, np.int64)) <= 0).any():
            return None
        return np.array(times, np.int64)

    def packet_times(self, numbers: np.ndarray) -> list[int | None]:
        """Return the presentation times of packets as the container stores them."""
        return [self._packet_times[number] for number in numbers]

    @property
    def has_variable_frame_rate(self) -> bool:
        """True if frame durations differ by more than one tick, which rounding to the time base would explain."""
        times = self.frame_times
        durations = np.diff(times) if times is not None else np.zeros(0)
        return bool(len(durations)) and int(durations.max() - durations.min()) > 1

    def check_timeout(self) -> None:
        """Raise ValueError if the timeout has passed since the file was opened."""
        if time.monotonic() - self._opened_at > self.timeout:
            raise ValueError(f"{self.name}: not read within {self.timeout:g} seconds")

    def _open(self, source: str | os.PathLike[str] | bytes, reads_all: bool) -> av.container.InputContainer:
        file = io.BytesIO(source) if isinstance(source, bytes) else storage.open_for_av(self.name, reads_all)
        if isinstance(file, io.BytesIO):
            self._content = file.getvalue()
        return open_container(file, self.name)

    def _demux(self) -> list[av.Packet]:
        packets = []
        for packet in read_packets(self.container, self.stream, self.name):
            packets.append(packet)
            if len(packets) % _PACKETS_PER_TIMEOUT_CHECK == 0:
                self.check_timeout()
        return packets

    def __enter__(self) -> VideoDemuxer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.container.close()
