"""Start worker processes that are light, leave Ctrl-C to their parent and end with it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

_PR_SET_PDEATHSIG = 1  # Linux


@contextlib.contextmanager
def light_main() -> Iterator[None]:
    """Processes spawned inside do not import the main script again.

    Spawn would, to find functions defined there; ours are all in modules, and a script that imports torch costs each
    worker seconds and half a gigabyte.
    """
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes that leaves Ctrl-C to this one; what has not begun is dropped if the block fails."""
    spawn = get_context("spawn")
    # With python -m MODULE the work may be defined in the main module itself.
    as_module = getattr(sys.modules["__main__"], "__spec__", None)
    with (
        contextlib.nullcontext() if as_module else light_main(),
        ProcessPoolExecutor(workers, spawn, initializer=_begin_worker) as pool,
    ):
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def single_blas_thread() -> Iterator[None]:
    """Let processes that start inside multiply matrices on one thread each, unless the environment says otherwise.

    Where every core has a worker already, more threads only take time from each other.
    """
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


@functools.cache
def end_with_parent() -> None:
    """In a worker process: end when the process that started it does, however that ends. Elsewhere nothing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it ended before this process could ask
        os._exit(1)


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which a terminal sends to all: the main process decides when they end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
