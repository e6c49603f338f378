"""Map frames to packets, tell which packets a frame depends on, and pack that map into a short text for an index.

Frame numbers are positions in presentation order, from 0. Packet numbers are positions in decode order, as in the file.
"""

from __future__ import annotations

import base64
import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pipelines.decode.mp4_table import SampleTable

_PROOFS = ("bitstream", "decoded", "sequential")
_FLAGS = ("is_random_access", "is_closed", "is_reference", "is_output", "is_displayed")
# Proof, bit field (see below), number of packets, bytes of all packets, number of frames, width, height.
_HEADER = struct.Struct("<BBIQIII")
_IS_COUNTED, _HAS_BYTE_RANGES, _IS_REMUXABLE, _HAS_SAMPLE_TABLE = 1, 2, 4, 8
_SAMPLE_TABLE = struct.Struct("<QIII")
_MAX_REORDER_DEPTH = 16  # frames, in H.264 and HEVC
_MAX_LAG = 64  # packets; above it, comparing every lag takes longer than sorted insertion
COUNTED = "frames that have to be counted"
NOT_REMUXABLE = "packets that cannot be remuxed"


def _no_flags() -> np.ndarray:
    return np.zeros(0, bool)


@dataclass(frozen=True)
class FrameTable:
    """Flags and presentation rank of each packet in decode order, arrays (N,); or, with `seek_points`, none of them.

    `proof` is "bitstream" if the headers of all packets prove the table, "decoded" if it was compared with a decode of
    the whole file, and "sequential" if the video must be decoded from its first packet and its frames counted.
    """

    rank: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # in presentation order; equal for fields
    is_random_access: np.ndarray = field(default_factory=_no_flags)  # decoding can begin at this packet
    is_closed: np.ndarray = field(default_factory=_no_flags)  # later packets depend on nothing before this one
    is_reference: np.ndarray = field(default_factory=_no_flags)  # another picture may be predicted from this one
    is_output: np.ndarray = field(default_factory=_no_flags)  # the decoder outputs a frame for this packet
    is_displayed: np.ndarray = field(default_factory=_no_flags)  # and that frame is part of the video
    seek_points: tuple[tuple[int, int], ...] = ()  # (packet, number of the first frame when decoding begins there)
    num_counted: int = 0  # number of frames, if there are `seek_points`
    # Why packets and displayed frames do not correspond one to one, as a decoder that counts packets assumes. It is
    # not part of the packed text.
    irregularity: str = ""
    proof: str = "bitstream"
    is_remuxable: bool = True  # a subset of the packets can be written as a video

    @cached_property
    def num_frames(self) -> int:
        return self.num_counted if self.seek_points else int(self.is_displayed.sum())

    @cached_property
    def packet_of_frame(self) -> np.ndarray:
        """(F,) packet number of each frame, by frame number."""
        order = np.argsort(self.rank, kind="stable")
        return order[self.is_displayed[order]]

    @property
    def keyframes(self) -> np.ndarray:
        """(K,) frame numbers at which decoding can begin, ascending."""
        if self.seek_points:
            return np.unique([frame for _, frame in self.seek_points])
        return np.flatnonzero(self.is_random_access[self.packet_of_frame])

    @property
    def reorder_depth(self) -> int:
        """The largest number of frames that precede a frame in decode order and follow it in presentation order.

        Above 16, which no codec allows, the number is only a lower bound.
        """
        position = np.argsort(np.argsort(self.rank[self.is_output], kind="stable"))
        delay = np.arange(len(position)) - position
        depth = np.zeros(len(position), np.int64)
        max_lag = int(delay.max(initial=0) - delay.min(initial=0))  # frames further apart never change their order
        if max_lag > _MAX_LAG:
            return _reorder_depth_by_insertion(position.tolist())
        for lag in range(1, max_lag + 1):
            depth[lag:] += position[:-lag] > position[lag:]
        return int(depth.max(initial=0))

    def limit_entry_points(self, max_count: int) -> FrameTable:
        """Return the table with evenly spaced entry points, at most `max_count` of them."""
        entries = np.flatnonzero(self.is_random_access)
        if len(entries) <= max_count:
            return self
        is_entry = np.zeros(len(self.rank), bool)
        is_entry[entries[:: -(-len(entries) // max_count)]] = True
        return replace(self, is_random_access=is_entry)


def _reorder_depth_by_insertion(positions: Sequence[int]) -> int:
    """Return the reorder depth of presentation positions in decode order; stop once it exceeds what codecs allow."""
    decoded_positions: list[int] = []  # ascending
    max_depth = 0
    for position in positions:
        num_earlier = bisect_right(decoded_positions, position)
        max_depth = max(max_depth, len(decoded_positions) - num_earlier)
        if max_depth > _MAX_REORDER_DEPTH:
            break
        decoded_positions.insert(num_earlier, position)
    return max_depth


def frame_packets(table: FrameTable, frames: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the packet number of each requested frame, (len(frames),); past the end means the last frame."""
    return table.packet_of_frame[clamp_frame_numbers(table, frames)]


def clamp_frame_numbers(table: FrameTable, frames: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return frame numbers, (len(frames),) int64, with those past the end replaced by the last frame's.

    Raises ValueError for a negative number, for an empty list and for a table without frames.
    """
    numbers = np.asarray(frames, np.int64)
    if numbers.size == 0 or numbers.min() < 0:
        raise ValueError(f"frames {numbers.tolist()}: expected at least one, none below 0")
    if not table.num_frames:
        raise ValueError("the video has no displayed frames")
    return np.minimum(numbers, table.num_frames - 1)


def required_packets(table: FrameTable, frames: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the packets that must be decoded for the requested frames, (K,) ascending, and the frames' positions.

    `positions` (len(frames),) int32 are frame numbers in a stream that consists of these packets alone.
    """
    requested = frame_packets(table, frames)
    entries = np.flatnonzero(table.is_random_access)
    ends = np.append(entries[1:], len(table.rank))
    last_packet = _last_packet_per_group(table, requested, entries, ends)
    is_kept = np.zeros(len(table.rank), bool)
    for group, last in last_packet.items():
        group_packets = np.arange(entries[group], last + 1)
        is_useful = table.is_reference[group_packets]
        if group - 1 not in last_packet and not table.is_closed[entries[group]]:
            # The group that its leading pictures are predicted from is not decoded, so they are left out.
            is_useful = is_useful & (table.rank[group_packets] >= table.rank[entries[group]])
        is_kept[group_packets[is_useful]] = True
    is_kept[requested] = True
    kept = np.flatnonzero(is_kept)
    # A picture that the source decodes but does not show (before the start of an edit list) is shown by the small file.
    output = kept[table.is_output[kept]]
    position = np.zeros(len(table.rank), np.int32)
    position[output[np.argsort(table.rank[output], kind="stable")]] = np.arange(len(output))
    return kept, position[requested]


def _last_packet_per_group(
    table: FrameTable, requested: np.ndarray, entries: np.ndarray, ends: np.ndarray
) -> dict[int, int]:
    """Return the groups of pictures to decode, and the last packet of each that must be decoded.

    `requested` are packet numbers; `entries` and `ends` are the first packet of each group and the one after its last.
    """
    last_packet: dict[int, int] = {}
    groups = np.searchsorted(entries, requested, "right") - 1
    for packet, group in zip(requested.tolist(), groups.tolist(), strict=True):
        last_packet[group] = max(last_packet.get(group, -1), packet)
        if table.rank[packet] < table.rank[entries[group]] and not table.is_closed[entries[group]] and group > 0:
            last_packet[group - 1] = int(ends[group - 1]) - 1  # leading pictures of an open group need the group before
    for group in sorted(last_packet):
        earlier_groups = [g for g in last_packet if g < group]
        if earlier_groups and not table.is_closed[entries[group]]:  # only a closed group may follow a gap
            for between in range(max(earlier_groups), group):
                last_packet[between] = int(ends[between]) - 1
    return last_packet


def count_decoded(table: FrameTable, frames: Sequence[int] | np.ndarray) -> int:
    """Return how many packets are decoded for the requested frames; with `seek_points`, how many frames."""
    if not table.seek_points:
        return len(required_packets(table, frames)[0])
    numbers = clamp_frame_numbers(table, frames)
    first_frames = np.array([frame for _, frame in table.seek_points])
    group = np.searchsorted(first_frames, numbers, "right") - 1
    return sum(int(numbers[group == g].max() - first_frames[g]) + 1 for g in np.unique(group))


class StoredTable(NamedTuple):
    """A frame table as an index keeps it."""

    table: FrameTable
    num_packets: int
    num_bytes: int  # of all packets; another value means that the file has changed
    has_byte_ranges: bool  # the packets are exactly the byte ranges that the container's index lists
    frame_size: tuple[int, int]  # width, height
    sample_table: SampleTable | None = None  # of an MP4 that need not be opened with FFmpeg's demuxer


def pack_frame_table(stored: StoredTable) -> str:
    """Return a table as a text of about 100 characters."""
    table = stored.table
    bits = (
        _IS_COUNTED * bool(table.seek_points)
        | _HAS_BYTE_RANGES * stored.has_byte_ranges
        | _IS_REMUXABLE * table.is_remuxable
        | _HAS_SAMPLE_TABLE * bool(stored.sample_table)
    )
    proof = _PROOFS.index(table.proof)
    header = _HEADER.pack(proof, bits, stored.num_packets, stored.num_bytes, table.num_frames, *stored.frame_size)
    if stored.sample_table:
        header += _SAMPLE_TABLE.pack(*stored.sample_table)
    if table.seek_points:
        content = np.array(table.seek_points, "<u4").tobytes()
    else:
        flags = sum(getattr(table, name).astype(np.uint8) << bit for bit, name in enumerate(_FLAGS))
        content = (table.rank - np.arange(len(table.rank))).astype("<i4").tobytes()
        content += np.asarray(flags, np.uint8).tobytes()
    return base64.b85encode(header + zlib.compress(content, 9)).decode()


def unpack_frame_table(text: str) -> StoredTable:
    """Return the table that pack_frame_table() packed. Raises ValueError for any other text."""
    try:
        data = base64.b85decode(text)
        proof, bits, num_packets, num_bytes, num_frames, width, height = _HEADER.unpack_from(data)
        size, sample_table = _HEADER.size, None
        if bits & _HAS_SAMPLE_TABLE:
            sample_table = SampleTable(*_SAMPLE_TABLE.unpack_from(data, size))
            size += _SAMPLE_TABLE.size
        content = zlib.decompress(data[size:])
        if bits & _IS_COUNTED:
            points = np.frombuffer(content, "<u4").reshape(-1, 2).tolist()
            table = FrameTable(
                seek_points=tuple((packet, frame) for packet, frame in points),
                num_counted=num_frames,
                irregularity=COUNTED,
                proof=_PROOFS[proof],
            )
        else:
            count = len(content) // 5
            rank = np.frombuffer(content, "<i4", count).astype(np.int64) + np.arange(count)
            flags = np.frombuffer(content, np.uint8, count, 4 * count)
            columns = {name: flags >> bit & 1 == 1 for bit, name in enumerate(_FLAGS)}
            table = FrameTable(rank, **columns, proof=_PROOFS[proof], is_remuxable=bool(bits & _IS_REMUXABLE))
    except (ValueError, struct.error, zlib.error, IndexError) as error:
        raise ValueError(f"a damaged frame table: {error}") from None
    return StoredTable(
        table=table,
        num_packets=num_packets,
        num_bytes=num_bytes,
        has_byte_ranges=bool(bits & _HAS_BYTE_RANGES),
        frame_size=(width, height),
        sample_table=sample_table,
    )
