"""Who we are among the processes of a run (from torchrun's environment), and how worker processes start."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """rank of size processes, local_rank on this machine; (0, 0, 1) without torchrun."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @staticmethod
    def from_env() -> World:
        """As torchrun sets RANK, LOCAL_RANK and WORLD_SIZE."""
        return World(
            *(
                int(os.environ.get(key, default))
                for key, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
            )
        )

    @property
    def is_first(self) -> bool:
        return self.rank == 0


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
