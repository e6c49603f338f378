"""Open one video file, read its packets, and predict from them which packet gives which frame."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from types import TracebackType

import av
import numpy as np

from pipelines import storage
from pipelines.av_input import open_for_av
from pipelines.decode.bitstream.container_signs import ContainerSigns, inspect_container
from pipelines.decode.bitstream.mpeg4 import split_packed_packets
from pipelines.decode.container import open_container, read_packets, video_stream
from pipelines.decode.frame_table import FrameTable, StoredTable, unpack_frame_table
from pipelines.decode.mp4_table import SampleTable, open_decoder, read_sample_table
from pipelines.decode.predict import predict_frame_table

CHANGED = "the file has changed since it was indexed"
_PACKETS_PER_TIMEOUT_CHECK = 16
# Kinds of side data with which a packet must not be decoded as it is.
_SIDE_DATA_FOR_DECODER = {"new_extradata", "param_change", "skip_samples"}
_FORMATS_WITHOUT_TIMES = {"avi", "h264", "hevc", "m4v", "mpegvideo"}


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
        self.first_frame: av.VideoFrame | None = None  # decoded by the container's own decoder, to prove the table
        self.raw_packets: list[av.Packet] = []
        self._packets: list[av.Packet] = []
        self._container: av.container.InputContainer | None = None
        self._decoder: av.VideoCodecContext | None = None
        if stored and stored.sample_table:
            self._open_by_sample_table(stored, stored.sample_table)
        else:
            self._open_by_demuxer(stored)

    def _open_by_sample_table(self, stored: StoredTable, sample_table: SampleTable) -> None:
        """Read which bytes are which packet, without FFmpeg's demuxer."""
        try:
            (content,) = self.read_ranges([(sample_table.start, sample_table.start + sample_table.size)])
            packet_table = read_sample_table(content, sample_table)
        except ValueError as error:
            reason = str(error).removeprefix(f"{self.name}: ")
            raise ValueError(f"{self.name}: {reason if 'no such file' in reason else CHANGED}") from None
        self._decoder = open_decoder(packet_table)
        self.codec = self._decoder.codec.canonical_name
        self.width, self.height = stored.frame_size
        self.byte_ranges = packet_table.byte_ranges
        self.frame_table = self._check_stored(stored)

    def _open_by_demuxer(self, stored: StoredTable | None) -> None:
        """Open the container, and read all packets unless the stored table lists their byte ranges."""
        reads_all = not (stored and stored.has_byte_ranges)
        self._container = self._open(reads_all)
        try:
            self.codec = self.stream.codec_context.codec.canonical_name
            self.width, self.height = self.stream.codec_context.width, self.stream.codec_context.height
            if stored:
                self.width, self.height = stored.frame_size
            self.byte_ranges = self._container_index()  # before demuxing, which may add entries to the index
            if reads_all:
                self.raw_packets = self._demux()
            if reads_all and not self.raw_packets or not self.width or not self.height:
                raise ValueError(f"{self.name}: the video stream has no packets or no frame size")
            # A raw packet of MPEG-4 part 2 may hold several pictures; each of these holds one.
            self._packets = split_packed_packets(self.raw_packets) if self.codec == "mpeg4" else self.raw_packets
            self.is_unpacked = len(self._packets) != len(self.raw_packets) or any(
                packet is not raw for packet, raw in zip(self._packets, self.raw_packets, strict=True)
            )
            self.frame_table = self._check_stored(stored) if stored else self._predict()
        except BaseException:
            self.close()
            raise

    @property
    def container(self) -> av.container.InputContainer:
        """The open container; decoding by a stored table may never need it."""
        if self._container is None:
            self._container = self._open(reads_all=False)
        return self._container

    @functools.cached_property
    def stream(self) -> av.VideoStream:
        """The video stream of the container."""
        return video_stream(self.container, self.name)

    def first_packet(self) -> list[av.Packet]:
        """Return a list of the first packet."""
        return self._packets[:1]

    def close(self) -> None:
        """Close the container."""
        if self._container is not None:
            self._container.close()

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
        self.is_fragmented = signs.is_fragmented
        if signs.is_encrypted:
            raise ValueError(f"{self.name}: encrypted")
        context = self.stream.codec_context
        self._packet_times = [packet.pts for packet in self._packets]  # packets() overwrites pts with ranks
        is_timed = self.container.format.name not in _FORMATS_WITHOUT_TIMES
        side_data = {data.data_type for packet in self.raw_packets for data in packet.iter_sidedata()}
        self.has_side_data = bool(side_data)
        prediction = predict_frame_table(self._packets, context, is_timed=is_timed, is_unpacked=self.is_unpacked)
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
        with self.random_reads() as read:
            return inspect_container(self.container.format.name, read, self.stream.metadata, self.stream.id)

    @contextlib.contextmanager
    def random_reads(self) -> Iterator[Callable[[int, int], bytes]]:
        """Yield a function that returns the bytes of the file in a range."""
        content = self._content
        if content is not None:
            yield lambda start, end: content[start:end]
            return
        with storage.random_reads(self.name) as read:
            yield read

    def packets(self, numbers: Sequence[int] | np.ndarray) -> list[av.Packet]:
        """Return packets by number, ascending, one picture each; pts is the rank in the frame table."""
        if self._packets:
            packets = [self._packets[number] for number in numbers]
        else:
            contents = self.read_ranges([self.byte_ranges[number] for number in numbers])
            self.check_timeout()
            packets = [av.Packet(len(content)) for content in contents]
            for packet, content in zip(packets, contents, strict=True):
                packet.update(content)  # av.Packet(content) would lack the zero padding that decoders read past the end
        for number, packet in zip(numbers, packets, strict=True):
            packet.pts = int(self.frame_table.rank[number])  # not every container stores one
            packet.is_keyframe = bool(self.frame_table.is_random_access[number])
        return packets

    def read_content(self) -> bytes:
        """Return the bytes of the whole file."""
        return storage.read_bytes(self.name) if self._content is None else self._content

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes [start, end) of each range of the file."""
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
        context = context or self._decoder or self.stream.codec_context
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
        with self._open(reads_all=True) as container:
            yield container, video_stream(container, self.name)

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

    def _open(self, reads_all: bool) -> av.container.InputContainer:
        in_memory = self._content is not None
        file = io.BytesIO(self._content or b"") if in_memory else open_for_av(self.name, reads_all)
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
        self.close()
