"""What the kernel says of this process tree and of the others on the machine (Linux, /proc)."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

_TICK = os.sysconf("SC_CLK_TCK")


class Clock(NamedTuple):
    """A reading; the difference of two says what a stretch of work cost. All in seconds."""

    wall: float
    own: float  # CPU time of this process and all that descend from it, dead ones included once they are reaped
    busy: float  # CPU time of the whole machine

    @staticmethod
    def now() -> Clock:
        return Clock(time.perf_counter(), own_seconds(), busy_seconds())


def own_seconds() -> float:
    """CPU seconds of this process and its descendants, in steps of a kernel tick (10 ms) a process."""
    ticks, children = {}, defaultdict(list)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # after the name in brackets: state, parent, ..., utime, stime, reaped children's utime and stime
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))
        children[int(fields[1])].append(int(folder.name))
    total, stack = 0, [os.getpid()]
    while stack:
        pid = stack.pop()
        total += ticks.get(pid, 0)
        stack += children[pid]
    return total / _TICK


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
