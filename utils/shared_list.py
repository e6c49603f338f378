"""Share data with worker processes in memory: a read-only sequence of objects, and an array of integers that changes.

If they were pickled, every worker would unpickle the metadata of all videos before its first clip, which for Kinetics
takes seconds and hundreds of megabytes. Here a few objects are unpickled when one of them is read.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")
_BLOCK = 16  # objects that are pickled together: much faster than one by one, and still quick to read one of


class SharedList(Sequence[T]):
    """A read-only sequence of pickled objects in shared memory; `share` makes one.

    Its objects must not be changed. Its own pickle is only a reference to the memory, so it must be unpickled on the
    same machine while the process that pickled it lives and keeps it. The copy then keeps the memory alive itself.
    """

    def __init__(self, file: int, length: int):
        """Take over a file descriptor of `length` objects: pickled blocks of them, then their offsets as int64."""
        self._file, self._length = file, length
        self._memory = mmap.mmap(file, 0, prot=mmap.PROT_READ)
        num_offsets = -(-length // _BLOCK) + 1
        self._offsets = np.frombuffer(self._memory, np.int64, offset=len(self._memory) - 8 * num_offsets)
        self._last: tuple[int, list[T]] = (-1, [])  # one object is often read several times in a row

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # handles negative indices and raises IndexError
        number, position = divmod(index, _BLOCK)
        last, block = self._last
        if last != number:
            block = pickle.loads(memoryview(self._memory)[self._offsets[number] : self._offsets[number + 1]])
            self._last = number, block
        return block[position]

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_list, (f"/proc/{os.getpid()}/fd/{self._file}", len(self))

    def __del__(self) -> None:
        os.close(self._file)


def share(values: Sequence[T]) -> SharedList[T]:
    """Copy values into anonymous shared memory, of which nothing is left however this process ends."""
    starts = range(0, len(values), _BLOCK)
    blocks = [pickle.dumps(list(values[start : start + _BLOCK]), pickle.HIGHEST_PROTOCOL) for start in starts]
    offsets = np.cumsum([0, *map(len, blocks)])
    blocks.append(b"\0" * (-sum(map(len, blocks)) % 8))  # aligns the offsets, which follow, to 8 bytes
    file = os.memfd_create("shared_list")
    with open(file, "wb", closefd=False) as stream:
        stream.writelines([*blocks, offsets.tobytes()])
    return SharedList(file, len(values))


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
