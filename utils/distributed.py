"""Who we are among the processes of a run (from torchrun's environment), and how worker processes start."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")


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
