"""A DALI pipeline and its worker processes; raises when a worker has died, instead of waiting for it forever.

A process that is killed (out of memory, a crash in a decoder) may hold a lock of DALI's queues. Both the main process
and DALI's thread that looks after the workers then wait for that lock.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from multiprocessing import util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import Pipeline

from utils.workers import ignore_sigint, spawn_without_main, worker_environment

SHARED_MEMORY = "/dev/shm"
MORE_SHARED_MEMORY = (
    "give the container more (docker run --shm-size=8g), or lower data.prefetch, data.batch_size (in a test "
    "eval.batch_size) or the number of views"
)


class WorkerDied(RuntimeError):
    """Raised when a worker process has ended by itself."""


class SharedMemoryFull(WorkerDied):
    """Raised when a worker process was killed because shared memory is full."""


def check_shared_memory(needed: int, folder: str = SHARED_MEMORY) -> None:
    """Raise ValueError if there is less shared memory than the batches that are read ahead need (bytes)."""
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
    """Return whether a child process has exited.

    Reads /proc, because `Process.is_alive()` reports a child that another thread is reaping as alive.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def reason_of(error: Exception) -> str:
    """Return the line of DALI's error message that says what went wrong; the rest is the operator, and advice."""
    lines = [line.strip() for line in str(error).rpartition("encountered:")[2].splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _exit_status(process: BaseProcess) -> int | None:
    """Return the exit status of a process. While a thread of DALI's asks for it too, it takes a moment to appear."""
    for _ in range(100):
        if (status := process.exitcode) is not None:
            return status
        time.sleep(0.01)
    return None


def build_quietly(pipe: Pipeline) -> None:
    """Build a pipeline that need not use all that its source feeds, of which DALI would warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The external source node")
        pipe.build()


def unlink_semaphores(pool: Any) -> None:
    """Remove the names of the semaphores of a pool of DALI's from shared memory; all its workers have opened them.

    They work without. Otherwise the resource tracker of Python removes them at the end, and a job that is killed
    as a whole, the tracker too, leaves them behind.
    """
    queues = [pool._result_queue, pool._general_task_queue, *(w.dedicated_task_queue for w in pool._workers_contexts)]
    locks = [lock for queue in queues if queue for lock in (queue.lock, *vars(queue.cv_not_empty).values())]
    ids = {id(lock) for lock in locks}
    for finalizer in list(util._finalizer_registry.values()):  # type: ignore[attr-defined]
        weakref = getattr(finalizer, "_weakref", None)  # a finalizer may be of no object
        if weakref is not None and id(weakref()) in ids:
            finalizer()


class DaliPipeline:
    """A built pipeline and its worker processes."""

    def __init__(self, pipe: Pipeline):
        self.pipe = pipe
        before = set(multiprocessing.active_children())
        with spawn_without_main(), ignore_sigint(), worker_environment():
            build_quietly(pipe)
        self.processes: list[BaseProcess] = [p for p in multiprocessing.active_children() if p not in before]
        if pipe._py_pool is not None:
            unlink_semaphores(pipe._py_pool.pool)

    def run(self, stream: torch.cuda.Stream | None = None) -> Any:
        """Return the outputs of an iteration. Raises WorkerDied if a worker has died, or dies meanwhile.

        On a GPU they are ready for what is done on `stream` next; this process does not wait for them.
        """
        with self._watched():
            return self.pipe.run(stream)

    def dead_workers(self) -> str:
        """Describe the workers that have ended; empty if none has. Raises SharedMemoryFull if that was the reason."""
        statuses = {p.pid: _exit_status(p) for p in self.processes if has_ended(p.pid or 0)}
        if -signal.SIGBUS in statuses.values():
            raise SharedMemoryFull(f"a worker process found shared memory, {SHARED_MEMORY}, full; {MORE_SHARED_MEMORY}")
        return ", ".join(f"worker process {pid} ended (exit status {status})" for pid, status in statuses.items())

    def close(self) -> None:
        """End the workers and free the pipeline now, though a traceback or a debugger may still refer to it."""
        if any(has_ended(process.pid or 0) for process in self.processes):
            self.kill()  # a worker that died may hold a lock that the others wait for
            return
        self.pipe._shutdown()
        if self.pipe._py_pool is not None:
            self.pipe._py_pool.close()

    def kill(self) -> None:
        """Kill all workers and free the pipeline without waiting for it."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                os.kill(process.pid or 0, signal.SIGKILL)
        with contextlib.suppress(AttributeError):  # otherwise it joins the thread that waits for the lock
            self.pipe._py_pool.pool._observer = None

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Interrupt the main thread's waiting when a child ends; other threads cannot be interrupted."""
        if not self.processes or threading.current_thread() is not threading.main_thread():
            yield
            return

        def check(*_: Any) -> None:
            if reason := self.dead_workers():
                raise WorkerDied(reason)

        before = signal.signal(signal.SIGCHLD, check)
        try:
            check()
            yield
        finally:
            signal.signal(signal.SIGCHLD, before)
