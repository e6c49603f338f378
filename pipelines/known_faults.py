"""Remember which videos DALI refused and which could not be read at all, so that each failure happens only once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from utils.shared_list import SharedArray

# Kinds of faults. DALI refused the video, so PyAV decodes it; PyAV failed too, so another video replaces it.
REFUSED, UNREADABLE = 0, 1
_NEVER = np.iinfo(np.int64).max


class Fault(NamedTuple):
    """The point of a run at which a fault was found."""

    epoch: int
    batch_index: int  # within the epoch
    rank: int


class Faults:
    """The faults of the videos of a list, in memory shared with the workers; only the process that made it writes.

    A fault is known from the batch after the one in which it was found. Other ranks learn of it at an arbitrary time,
    so for them it is known from their next epoch: the stream of batches then depends neither on that time nor on where
    a run was interrupted. Workers read ahead; the loader compares what they did with `is_known`.
    """

    def __init__(self, num_videos: int, num_batches: int, rank: int):
        """Start without faults; `num_batches` is the number of batches per epoch on this rank."""
        self._num_batches, self._rank = num_batches, rank
        self._known_from = SharedArray.full((num_videos, 2), _NEVER)  # batch index over all epochs, per kind
        self._first: dict[tuple[int, int, int], Fault] = {}  # (sample index, kind, rank) -> its first occurrence

    def __reduce__(self) -> tuple[Any, ...]:
        return _for_worker, (self._known_from,)

    def is_known(self, index: int, kind: int, batch_index: int) -> bool:
        """Return whether a fault of a video is known in a batch; `batch_index` counts over all epochs."""
        return bool(self._known_from.values[index, kind] <= batch_index)

    def add(self, index: int, kind: int, batch_index: int) -> None:
        """Add a fault that this rank found in a batch; `batch_index` counts over all epochs."""
        epoch, batch_in_epoch = divmod(batch_index, self._num_batches)
        self._add(index, kind, Fault(epoch, batch_in_epoch, self._rank))

    def state(self) -> list[list[int]]:
        """Return [sample index, kind, epoch, batch index, rank] of every fault, for a checkpoint or other ranks."""
        return [[index, kind, *fault] for (index, kind, _), fault in sorted(self._first.items())]

    def merge(self, state: list[list[int]]) -> None:
        """Add the faults that state() returned on this rank or on others; indices past the list are skipped."""
        for index, kind, epoch, batch_index, rank in state:
            if index < len(self._known_from.values):
                self._add(index, kind, Fault(epoch, batch_index, rank))

    def _add(self, index: int, kind: int, fault: Fault) -> None:
        key = index, kind, fault.rank
        if key in self._first and self._first[key] <= fault:
            return
        self._first[key] = fault
        if fault.rank == self._rank:
            # On fewer processes than now, an epoch of the interrupted run had more batches.
            batch_in_epoch = min(fault.batch_index, self._num_batches - 1)
            known_from = fault.epoch * self._num_batches + batch_in_epoch + 1
        else:
            known_from = (fault.epoch + 1) * self._num_batches
        self._known_from.values[index, kind] = min(self._known_from.values[index, kind], known_from)


def _for_worker(known_from: SharedArray) -> Faults:
    """Rebuild the faults in a worker, which only calls is_known()."""
    faults = Faults.__new__(Faults)
    faults._known_from = known_from
    return faults
