"""Share data with worker processes in memory: a read-only sequence of objects, and an array of integers that changes.

If they were pickled, every worker would unpickle the metadata of all videos before its first clip, which for Kinetics
takes seconds and hundreds of megabytes. Here an object is unpickled each time that it is read.
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


class SharedList(Sequence[T]):
    """A read-only sequence of pickled objects in shared memory; `share` makes one.

    Its objects must not be changed. Its own pickle is only a reference to the memory, so it must be unpickled on the
    same machine while the process that pickled it lives and keeps it. The copy then keeps the memory alive itself.
    """

    def __init__(self, file: int, length: int):
        """Take over a file descriptor of `length` pickled objects, followed by their length + 1 offsets as int64."""
        self._file = file
        self._memory = mmap.mmap(file, 0, prot=mmap.PROT_READ)
        self._offsets = np.frombuffer(self._memory, np.int64, offset=len(self._memory) - 8 * (length + 1))
        self._last: tuple[int, T] | None = None  # one object is often read several times in a row

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # handles negative indices and raises IndexError
        if self._last and self._last[0] == index:
            return self._last[1]
        value: T = pickle.loads(memoryview(self._memory)[self._offsets[index] : self._offsets[index + 1]])
        self._last = index, value
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_list, (f"/proc/{os.getpid()}/fd/{self._file}", len(self))

    def __del__(self) -> None:
        os.close(self._file)


def share(values: Iterable[T]) -> SharedList[T]:
    """Copy values into anonymous shared memory, of which nothing is left however this process ends."""
    blocks = [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values]
    offsets = np.cumsum([0, *map(len, blocks)])
    blocks.append(b"\0" * (-sum(map(len, blocks)) % 8))  # aligns the offsets, which follow, to 8 bytes
    file = os.memfd_create("shared_list")
    with open(file, "wb", closefd=False) as stream:
        stream.writelines([*blocks, offsets.tobytes()])
    return SharedList(file, len(offsets) - 1)


def _open_list(path: str, length: int) -> SharedList[Any]:
    return SharedList(os.open(path, os.O_RDONLY), length)


class SharedArray:
    """An int64 array in shared memory: workers see what the process that made it writes to `values`.

    It is pickled as a reference, as `SharedList` is.
    """

    def __init__(self, file: int, shape: tuple[int, ...]):
        """Take over a file descriptor of 8 bytes per element."""
        self._file = file
        self._memory = mmap.mmap(file, 0)
        self.values = np.frombuffer(self._memory, np.int64, math.prod(shape)).reshape(shape)

    @staticmethod
    def full(shape: tuple[int, ...], value: int) -> SharedArray:
        """Make an array filled with one value, in anonymous shared memory."""
        file = os.memfd_create("shared_array")
        os.truncate(file, max(8 * math.prod(shape), 1))  # mmap refuses an empty file
        array = SharedArray(file, shape)
        array.values[...] = value
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_array, (f"/proc/{os.getpid()}/fd/{self._file}", self.values.shape)

    def __del__(self) -> None:
        os.close(self._file)


def _open_array(path: str, shape: tuple[int, ...]) -> SharedArray:
    return SharedArray(os.open(path, os.O_RDWR), shape)
