"""Who we are among the processes of a run (from torchrun's environment), and how worker processes start."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # Linux


@dataclass(frozen=True)
class World:
    """rank of size processes, local_rank on this machine; (0, 0, 1) without torchrun."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @staticmethod
    def from_env() -> World:
        """As torchrun sets RANK, LOCAL_RANK and WORLD_SIZE."""
        return World(*(int(os.environ.get(key, default)) for key, default in
                       (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))))  # fmt: skip

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def connect(self, device: str) -> None:
        """Join the group of all processes: device tensors over NCCL, and what gather() is given over gloo, which waits
        for no GPU. Others wait for long while the first process builds an index."""
        if self.size > 1:
            import torch.distributed  # here: decode workers import this module, and not torch

            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, timeout=timedelta(hours=6))

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, on all of them."""
        return self.gather(make() if self.is_first else None)[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed  # here: decode workers import this module, and not torch

        values: list[T] = [value] * self.size
        torch.distributed.all_gather_object(values, value)
        return values


def local_world_size() -> int:
    """The number of processes of the run on this machine, as torchrun sets it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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
