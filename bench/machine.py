"""What the kernel says of this process tree and of the others on the machine (Linux, /proc)."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

_TICK = os.sysconf("SC_CLK_TCK")


class Clock(NamedTuple):
    """A reading; the difference of two says what a stretch of work cost. Times in seconds."""

    wall: float
    own: float  # CPU time of this process and all that descend from it, dead ones included once they are reaped
    busy: float  # CPU time of the whole machine
    read: int  # bytes that they have read, from files (the page cache too) and pipes

    @staticmethod
    def now() -> Clock:
        return Clock(time.perf_counter(), own_seconds(), busy_seconds(), own_bytes())


def descendants() -> list[int]:
    """This process and all that descend from it."""
    children = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                children[int(_stat(int(folder.name))[1])].append(int(folder.name))
    found = [os.getpid()]
    for pid in found:
        found += children[pid]
    return found


def _stat(pid: int) -> list[str]:
    """What follows the name in brackets: state, parent, ..., utime, stime, reaped children's utime and stime."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def own_seconds() -> float:
    """CPU seconds of this process and its descendants, in steps of a kernel tick (10 ms) a process."""
    ticks = 0
    for pid in descendants():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / _TICK


def own_bytes() -> int:
    """That this process and its descendants have read so far."""
    total = 0
    for pid in descendants():
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/io").read_text().split()[1])
    return total


def own_mebibytes() -> float:
    """Memory of this process and its descendants, what they share counted once."""
    total = 0
    for pid in descendants():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used: neither idle nor waiting for a disk."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICK


def settle(longest: float = 5.0) -> None:
    """Wait until this process tree works no more: its read-ahead is done and takes nothing from the next case."""
    end = time.perf_counter() + longest
    before = own_seconds()
    while time.perf_counter() < end:
        time.sleep(0.15)
        now = own_seconds()
        if now - before <= 0.02:
            return
        before = now
