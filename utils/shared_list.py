"""Memory that a process shares with its workers: a sequence of plain values, an array of numbers that changes.

As objects, what is known of Kinetics' videos would be unpickled by every worker before its first clip, for seconds and
hundreds of megabytes; here a value is unpickled when it is asked for.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")


class Packed(Sequence[T]):
    """Values, read only. Pickled it is just the place where they lie: to be unpickled on the same machine while this
    process lives and holds them; whoever has unpickled it holds them, too."""

    def __init__(self, file: int, count: int):
        """`file`: a descriptor, which is taken over, of `count` values and the place where each of them begins."""
        self._file = file
        self._memory = mmap.mmap(file, 0, prot=mmap.PROT_READ)
        self._starts = np.frombuffer(self._memory, np.int64, offset=len(self._memory) - 8 * (count + 1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        place = range(len(self))[place]  # IndexError, and negative ones
        value: T = pickle.loads(memoryview(self._memory)[self._starts[place] : self._starts[place + 1]])
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (f"/proc/{os.getpid()}/fd/{self._file}", len(self))

    def __del__(self) -> None:
        os.close(self._file)


def pack(values: Iterable[T]) -> Packed[T]:
    """The values, in memory that belongs to no folder: nothing of it is left, however this process ends."""
    blocks = [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values]
    blocks.append(b"\0" * (-sum(map(len, blocks)) % 8))  # numbers lie at multiples of eight
    starts = np.cumsum([0, *map(len, blocks[:-1])])
    file = os.memfd_create("packed")
    with open(file, "wb", closefd=False) as stream:
        stream.writelines([*blocks, starts.tobytes()])
    return Packed(file, len(starts) - 1)


def _opened(path: str, count: int) -> Packed[Any]:
    return Packed(os.open(path, os.O_RDONLY), count)


class SharedArray:
    """An int64 array that the process which made it and its workers see, and see change.

    Pickled it is just the place where it lies, as `Packed` is.
    """

    def __init__(self, file: int, shape: tuple[int, ...]):
        """Take over `file`, a descriptor of 8 bytes for each number."""
        self._file = file
        self._memory = mmap.mmap(file, 0)
        self.values = np.frombuffer(self._memory, np.int64, math.prod(shape)).reshape(shape)

    @staticmethod
    def full(shape: tuple[int, ...], value: int) -> SharedArray:
        """Make an array of one value, in memory that belongs to no folder."""
        file = os.memfd_create("shared_array")
        os.truncate(file, max(8 * math.prod(shape), 1))  # memory of no size cannot be mapped
        shared = SharedArray(file, shape)
        shared.values[...] = value
        return shared

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_array, (f"/proc/{os.getpid()}/fd/{self._file}", self.values.shape)

    def __del__(self) -> None:
        os.close(self._file)


def _opened_array(path: str, shape: tuple[int, ...]) -> SharedArray:
    return SharedArray(os.open(path, os.O_RDWR), shape)
