"""A DALI pipeline and the processes that feed it: says when one of them has died, instead of waiting for it forever.

A process that is killed (out of memory, a crash in a decoder) may hold a lock of DALI's queues. Both the main process
and the thread of DALI's that looks after the others then wait for that lock.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import Pipeline

from utils.workers import deaf_to_interrupts, light_main

SHARED_MEMORY = "/dev/shm"
MORE_SHARED_MEMORY = (
    "give the container more (docker run --shm-size=8g), or lower data.prefetch, data.batch (in a test eval.batch) or "
    "the number of views"
)


class ReaderDied(RuntimeError):
    """A process that reads videos has ended by itself."""


class SharedMemoryFull(ReaderDied):
    """A process that reads videos wrote to shared memory that is not there."""


def check_shared_memory(needed: int, folder: str = SHARED_MEMORY) -> None:
    """Raise ValueError if there is less memory for what workers hand over than the batches that are read ahead need."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 2**20:.0f} MiB free, and the batches that are read ahead need at least "
            f"{needed / 2**20:.0f} MiB of shared memory; {MORE_SHARED_MEMORY}"
        )


def has_ended(pid: int) -> bool:
    """Of a child. Not asked of multiprocessing, which calls a process alive that another thread is just waiting for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def reason_of(error: Exception) -> str:
    """Return the line of a report of DALI's that says what went wrong; the rest is where in the graph, and advice."""
    lines = [line.strip() for line in str(error).rpartition("encountered:")[2].splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _exit_status(process: BaseProcess) -> int | None:
    """Return how a process ended. A thread of DALI's may just be asking the same; then it is there in a moment."""
    for _ in range(100):
        if (status := process.exitcode) is not None:
            return status
        time.sleep(0.01)
    return None


class Readers:
    """A pipeline, built, with its processes."""

    def __init__(self, pipe: Pipeline):
        self.pipe = pipe
        before = set(multiprocessing.active_children())
        with light_main(), deaf_to_interrupts():
            pipe.build()
        self.processes: list[BaseProcess] = [p for p in multiprocessing.active_children() if p not in before]

    def run(self, stream: torch.cuda.Stream | None = None) -> Any:
        """The outputs of an iteration; ReaderDied if a process dies meanwhile, or has died. On a GPU they are ready for
        what is done on `stream` next; this process does not wait for them."""
        with self._watched():
            return self.pipe.run(stream)

    def died(self) -> str:
        """How processes ended, if some did. Raises SharedMemoryFull if it was for want of shared memory."""
        gone = {p.pid: _exit_status(p) for p in self.processes if has_ended(p.pid or 0)}
        if -signal.SIGBUS in gone.values():
            raise SharedMemoryFull(f"a reader process found shared memory, {SHARED_MEMORY}, full; {MORE_SHARED_MEMORY}")
        return ", ".join(f"reader process {pid} ended (exit status {status})" for pid, status in gone.items())

    def abandon(self) -> None:
        """End all processes and let go of the pipeline without waiting for it."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                os.kill(process.pid or 0, signal.SIGKILL)
        with contextlib.suppress(AttributeError):  # else it joins the thread that waits for the lock
            self.pipe._py_pool.pool._observer = None

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """The end of a child interrupts what the main thread waits for; other threads cannot be told."""
        if not self.processes or threading.current_thread() is not threading.main_thread():
            yield
            return

        def look(*_: Any) -> None:
            if reason := self.died():
                raise ReaderDied(reason)

        before = signal.signal(signal.SIGCHLD, look)
        try:
            look()
            yield
        finally:
            signal.signal(signal.SIGCHLD, before)
