"""The ranks of a run, as torchrun starts them, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_TIMEOUT = timedelta(hours=6)  # the other ranks wait while the main one builds an index


@dataclass(frozen=True)
class World:
    """This process among the processes of a run; the defaults are those of a run of one process."""

    rank: int = 0
    local_rank: int = 0  # among the processes on this machine
    size: int = 1

    @staticmethod
    def from_env() -> World:
        """Read RANK, LOCAL_RANK and WORLD_SIZE, which torchrun sets."""
        return World(
            rank=int(os.environ.get("RANK", "0")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            size=int(os.environ.get("WORLD_SIZE", "1")),
        )

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def init_process_group(self, device_type: str) -> None:
        """Join the process group: NCCL for CUDA tensors, gloo for everything else, so gather() waits for no GPU."""
        if self.size > 1:
            import torch.distributed  # here, because decode workers import this module and must stay free of torch

            backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
            attempt, options = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), dict[str, Any]()
            if attempt != "0" and local_world_size() == self.size:
                # torchrun keeps the store of the first attempt, in which a rank may find the address of one that has
                # died. On several machines the count may differ from one to another, so the store is left as it is.
                store, rank, size = next(torch.distributed.rendezvous("env://", timeout=_TIMEOUT))
                store = torch.distributed.PrefixStore(f"attempt_{attempt}", store)
                options = {"store": store, "rank": rank, "world_size": size}
            torch.distributed.init_process_group(backend, timeout=_TIMEOUT, **options)

    def broadcast(self, compute: Callable[[], T]) -> T:
        """Call `compute` on the main rank only and return its result on every rank."""
        return self.gather(compute() if self.is_main else None)[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed  # here, because decode workers import this module and must stay free of torch

        values: list[T] = [value] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def gather_to_main(self, value: T) -> list[T]:
        """Return the values of all ranks on the main one, and nothing on the others."""
        if self.size == 1:
            return [value]
        import torch.distributed  # here, because decode workers import this module and must stay free of torch

        values: list[T] | None = [value] * self.size if self.is_main else None
        torch.distributed.gather_object(value, values)
        return values or []


def current_world() -> World:
    """Return this process's place in torch.distributed; if that is not initialized, the world of a single process.

    Raises ValueError if torchrun has started several processes, since each of them would read everything.
    """
    import torch.distributed  # here, because decode workers import this module and must stay free of torch

    world = World.from_env()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return World(rank, int(os.environ.get("LOCAL_RANK", rank)), size)
    if world.size > 1:
        raise ValueError(
            f"WORLD_SIZE={world.size}, but torch.distributed is not initialized: call "
            "torch.distributed.init_process_group() first, or pass world=World() to read everything in each process"
        )
    return World()


def local_world_size() -> int:
    """Return the number of the run's processes on this machine, from LOCAL_WORLD_SIZE, which torchrun sets."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
