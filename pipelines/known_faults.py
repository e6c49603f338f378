"""Remember which videos DALI refused and which nobody could read, so that each is found out about once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from utils.shared_list import SharedArray

REFUSED, UNREADABLE = 0, 1  # by DALI: PyAV decodes it; by PyAV too: another video takes its place
_NEVER = np.iinfo(np.int64).max


class Fault(NamedTuple):
    """Where in a run a fault was found."""

    epoch: int
    step: int  # batches of that epoch before
    rank: int


class Faults:
    """The faults of a list's videos, in memory that the workers share; the process that made it writes.

    A fault counts from the batch after the one in which it was found. Other ranks hear of it at some time, so for them
    it counts from their next epoch: the stream of batches then depends neither on that time nor on where a run was
    interrupted. Workers read ahead of what is found; the loader compares what they did with `is_known`.
    """

    def __init__(self, num_videos: int, steps: int, rank: int):
        """Count positions in batches, of which an epoch has `steps`."""
        self._steps, self._rank = steps, rank
        self._since = SharedArray.full((num_videos, 2), _NEVER)
        self._found: dict[tuple[int, int, int], Fault] = {}  # of (row, kind, rank)

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_worker, (self._since,)

    def is_known(self, row: int, kind: int, step: int) -> bool:
        """Tell whether a fault was found before a batch; `step` counts over all epochs."""
        return bool(self._since.values[row, kind] <= step)

    def add(self, row: int, kind: int, step: int) -> None:
        """Note what this process found in a batch."""
        self._add(row, kind, Fault(*divmod(step, self._steps), self._rank))

    def state(self) -> list[list[int]]:
        """Return all faults, for a checkpoint or another rank: row, kind, epoch, step, rank of each."""
        return [[row, kind, *fault] for (row, kind, _), fault in sorted(self._found.items())]

    def merge(self, state: list[list[int]]) -> None:
        """Take over what state() returned, of this rank or of others."""
        for row, kind, *fault in state:
            if row < len(self._since.values):
                self._add(row, kind, Fault(*fault))

    def _add(self, row: int, kind: int, fault: Fault) -> None:
        key = row, kind, fault.rank
        if key in self._found and self._found[key] <= fault:
            return
        self._found[key] = fault
        own = fault.rank == self._rank
        step = min(fault.step, self._steps - 1)  # the run may have had more steps, on fewer processes
        since = fault.epoch * self._steps + step + 1 if own else (fault.epoch + 1) * self._steps
        self._since.values[row, kind] = min(self._since.values[row, kind], since)


def _of_worker(since: SharedArray) -> Faults:
    """Rebuild what a worker needs: it reads alone."""
    faults = Faults.__new__(Faults)
    faults._since = since
    return faults
