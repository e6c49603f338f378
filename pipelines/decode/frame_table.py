"""Which packets of a video give which frames, and what of them a frame needs; as a short text, for an index to keep.

Frame numbers are positions in presentation order, from 0. Packets are numbered in decode order, as in the file.
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

_PROOFS = ("bitstream", "decoded", "sequential")
_FLAGS = ("is_random_access", "is_closed", "is_reference", "is_output", "is_displayed")
_HEAD = struct.Struct("<BBIQIII")  # proof, bits as below; packets, bytes of them all; frames, width, height
_IS_COUNTED, _IN_RANGES, _IS_REMUXABLE = 1, 2, 4
_MOST_REORDERED = 16  # frames, in H.264 and HEVC
_MOST_LAGS = 64
COUNTED = "frames that have to be counted"
UNFIT = "packets that make no file of their own"


def _no_flags() -> np.ndarray:
    return np.zeros(0, bool)


@dataclass(frozen=True)
class FrameTable:
    """What is known of each packet, in decode order: arrays (N,). Or, with `seek_points`, from where to count frames.

    `proof` says how the table was proven: "bitstream", from the headers of all packets; "decoded", compared with a
    decode of the whole file; "sequential": it is decoded from its first packet, and its frames are counted.
    """

    rank: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # in presentation order; of fields: equal
    is_random_access: np.ndarray = field(default_factory=_no_flags)  # decoding can begin there
    is_closed: np.ndarray = field(default_factory=_no_flags)  # what follows it needs nothing before it
    is_reference: np.ndarray = field(default_factory=_no_flags)  # another picture may be predicted from it
    is_output: np.ndarray = field(default_factory=_no_flags)  # a decoder gives a frame once it has it
    is_displayed: np.ndarray = field(default_factory=_no_flags)  # and that frame is one of the video
    seek_points: tuple[tuple[int, int], ...] = ()  # (packet, number of the first frame that comes of decoding there)
    num_counted: int = 0  # frames, with `seek_points`
    # Why not every packet is one frame that is shown, as a decoder that counts packets believes; not kept by pack().
    irregularity: str = ""
    proof: str = "bitstream"
    is_remuxable: bool = True  # whether some of the packets make a video of their own

    @cached_property
    def num_frames(self) -> int:
        return self.num_counted if self.seek_points else int(self.is_displayed.sum())

    @cached_property
    def frames(self) -> np.ndarray:
        """(F,) the packet of each frame, by frame number."""
        order = np.argsort(self.rank, kind="stable")
        return order[self.is_displayed[order]]

    @property
    def keyframes(self) -> np.ndarray:
        """(K,) frame numbers at which decoding can begin, ascending."""
        if self.seek_points:
            return np.unique([frame for _, frame in self.seek_points])
        return np.flatnonzero(self.is_random_access[self.frames])

    @property
    def depth(self) -> int:
        """The most frames that are decoded before another one and shown after it; any number above 16 if it is more."""
        place = np.argsort(np.argsort(self.rank[self.is_output], kind="stable"))
        late = np.arange(len(place)) - place
        deeper = np.zeros(len(place), np.int64)
        lags = int(late.max(initial=0) - late.min(initial=0))  # none is overtaken from further away
        if lags > _MOST_LAGS:
            return _depth_one_by_one(place.tolist())
        for lag in range(1, lags + 1):
            deeper[lag:] += place[:-lag] > place[lag:]
        return int(deeper.max(initial=0))

    def thinned(self, most: int) -> FrameTable:
        """The same with at most so many places to begin at."""
        places = np.flatnonzero(self.is_random_access)
        if len(places) <= most:
            return self
        kept = np.zeros(len(self.rank), bool)
        kept[places[:: -(-len(places) // most)]] = True
        return replace(self, is_random_access=kept)


def _depth_one_by_one(places: Sequence[int]) -> int:
    """The same for frames that go far; as soon as it is above what a codec allows, it ends."""
    before: list[int] = []  # of the frames that were decoded, ascending
    deepest = 0
    for place in places:
        earlier = bisect_right(before, place)
        deepest = max(deepest, len(before) - earlier)
        if deepest > _MOST_REORDERED:
            break
        before.insert(earlier, place)
    return deepest


def frame_packets(table: FrameTable, frames: Sequence[int] | np.ndarray) -> np.ndarray:
    """(len(frames),) the packet of each wanted frame; past the end means the last frame."""
    return table.frames[checked_frames(table, frames)]


def checked_frames(table: FrameTable, frames: Sequence[int] | np.ndarray) -> np.ndarray:
    """(len(frames),) the numbers of wanted frames, none past the last one. Raises ValueError for a negative one."""
    numbers = np.asarray(frames, np.int64)
    if numbers.size == 0 or numbers.min() < 0:
        raise ValueError(f"frames {numbers.tolist()}: expected at least one, none below 0")
    if not table.num_frames:
        raise ValueError("no picture of the video is ever shown")
    return np.minimum(numbers, table.num_frames - 1)


def required_packets(table: FrameTable, frames: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which packets must be decoded for the wanted frames: (K,) ascending, and positions.

    `positions` (len(frames),) int32 are frame numbers in a stream that consists of these packets alone.
    """
    wanted = frame_packets(table, frames)
    entries = np.flatnonzero(table.is_random_access)
    ends = np.append(entries[1:], len(table.rank))
    last: dict[int, int] = {}  # group -> the last packet of it that must be decoded
    for w in wanted.tolist():
        group = int(np.searchsorted(entries, w, "right")) - 1
        last[group] = max(last.get(group, -1), w)
        if table.rank[w] < table.rank[entries[group]] and not table.is_closed[entries[group]] and group > 0:
            last[group - 1] = int(ends[group - 1]) - 1  # a leading picture of an open group: it needs the group before
    for group in sorted(last):
        earlier = [g for g in last if g < group]
        if earlier and not table.is_closed[entries[group]]:  # only a closed group may follow a gap
            for between in range(max(earlier), group):
                last[between] = int(ends[between]) - 1

    keep = np.zeros(len(table.rank), bool)
    for group, end in last.items():
        chosen = np.arange(entries[group], end + 1)
        useful = table.is_reference[chosen]
        if group - 1 not in last and not table.is_closed[entries[group]]:
            useful = useful & (table.rank[chosen] >= table.rank[entries[group]])  # nothing to decode the leading from
        keep[chosen[useful]] = True
    keep[wanted] = True
    kept = np.flatnonzero(keep)
    # A picture that the source decodes but does not show (before the start of an edit list) is shown by the small file.
    shown = kept[table.is_output[kept]]
    position = np.zeros(len(table.rank), np.int32)
    position[shown[np.argsort(table.rank[shown], kind="stable")]] = np.arange(len(shown))
    return kept, position[wanted]


def count_decoded(table: FrameTable, frames: Sequence[int] | np.ndarray) -> int:
    """Return how many packets, or frames where they are counted, are decoded for the wanted frames."""
    if not table.seek_points:
        return len(required_packets(table, frames)[0])
    numbers, firsts = checked_frames(table, frames), np.array([frame for _, frame in table.seek_points])
    group = np.searchsorted(firsts, numbers, "right") - 1
    return sum(int(numbers[group == g].max() - firsts[g]) + 1 for g in np.unique(group))


class StoredTable(NamedTuple):
    """A frame table as an index keeps it."""

    table: FrameTable
    num_packets: int
    size: int  # bytes of all packets, by which another file is told
    in_ranges: bool  # whether the packets are those ranges of the file that its container lists
    frame_size: tuple[int, int]  # width, height


def pack(table: FrameTable, num_packets: int, size: int, in_ranges: bool, frame_size: tuple[int, int]) -> str:
    """A table as a text of some 100 characters."""
    bits = _IS_COUNTED * bool(table.seek_points) | _IN_RANGES * in_ranges | _IS_REMUXABLE * table.is_remuxable
    head = _HEAD.pack(_PROOFS.index(table.proof), bits, num_packets, size, table.num_frames, *frame_size)
    if table.seek_points:
        content = np.array(table.seek_points, "<u4").tobytes()
    else:
        flags = sum(getattr(table, name).astype(np.uint8) << bit for bit, name in enumerate(_FLAGS))
        content = (table.rank - np.arange(len(table.rank))).astype("<i4").tobytes()
        content += np.asarray(flags, np.uint8).tobytes()
    return base64.b85encode(head + zlib.compress(content, 9)).decode()


def unpack(text: str) -> StoredTable:
    """-> what pack() was given. Raises ValueError for what it did not make."""
    try:
        data = base64.b85decode(text)
        proof, bits, num_packets, size, num_frames, width, height = _HEAD.unpack_from(data)
        content = zlib.decompress(data[_HEAD.size :])
        if bits & _IS_COUNTED:
            points = np.frombuffer(content, "<u4").reshape(-1, 2).tolist()
            table = FrameTable(seek_points=tuple((packet, frame) for packet, frame in points), num_counted=num_frames,
                               irregularity=COUNTED, proof=_PROOFS[proof])  # fmt: skip
        else:
            count = len(content) // 5
            rank = np.frombuffer(content, "<i4", count).astype(np.int64) + np.arange(count)
            flags = np.frombuffer(content, np.uint8, count, 4 * count)
            columns = {name: flags >> bit & 1 == 1 for bit, name in enumerate(_FLAGS)}
            table = FrameTable(rank, **columns, proof=_PROOFS[proof], is_remuxable=bool(bits & _IS_REMUXABLE))
    except (ValueError, struct.error, zlib.error, IndexError) as error:
        raise ValueError(f"a damaged frame table: {error}") from None
    return StoredTable(table, num_packets, size, bool(bits & _IN_RANGES), (width, height))
