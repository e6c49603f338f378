"""Start worker processes that import little, leave Ctrl-C to their parent and end when it does."""

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
from multiprocessing import get_context, resource_tracker

_PR_SET_PDEATHSIG = 1  # from Linux's <sys/prctl.h>


@contextlib.contextmanager
def spawn_without_main() -> Iterator[None]:
    """Keep processes that are spawned inside from importing the main script again.

    Spawn imports it to find the functions defined there. Ours are all in modules, and a script that imports torch costs
    each worker seconds and half a gigabyte.
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
    """Yield a pool of spawned processes that ignore Ctrl-C; if the block fails, tasks that have not begun are dropped.

    The main script is not imported again, unless it was started by `python -m`: then the tasks may be defined in it.
    """
    is_module = getattr(sys.modules["__main__"], "__spec__", None) is not None
    with (
        contextlib.nullcontext() if is_module else spawn_without_main(),
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker) as pool,
    ):
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def worker_environment() -> Iterator[None]:
    """Set what processes that start inside should do, unless the environment says otherwise.

    One BLAS thread each: if every core has a worker already, more threads only take time from each other. And the
    memory of one video is kept for the next: glibc would return it to the system after each, and get it back page by
    page.
    """
    settings = {
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_TRIM_THRESHOLD_": str(128 << 20),  # bytes, of free memory
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # bytes, of one allocation; glibc takes no more
    }
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


@functools.cache
def die_with_parent() -> None:
    """Have this worker process killed when its parent ends, for any reason. Does nothing in the main process."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # the parent ended before the kernel was asked
        os._exit(1)


@contextlib.contextmanager
def ignore_sigint() -> Iterator[None]:
    """Make processes that start inside ignore Ctrl-C, so that the main process decides when they end.

    A terminal sends SIGINT to all processes of a command. Here it is blocked, which processes inherit, and arrives when
    the block ends. Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # starting it inside would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
