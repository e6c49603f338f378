"""Read bits and Exp-Golomb numbers from bytes, most significant first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BitReader:
    """The bits of some bytes, from a place on. Every method raises ValueError at their end."""

    def __init__(self, data: bytes, skipped: int = 0):
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)
        if skipped:
            self.read(skipped)

    def read(self, count: int = 1) -> int:
        """Read an unsigned number of `count` bits."""
        self._left -= count
        number = self._value >> self._left
        self._value -= number << self._left
        return number

    def golomb(self) -> int:
        """Read an unsigned Exp-Golomb number, ue(v) (H.264, 9.1)."""
        self._left -= 2 * (self._left - self._value.bit_length()) + 1
        number = self._value >> self._left
        self._value -= number << self._left
        return number - 1

    def signed_golomb(self) -> int:
        """Read a signed Exp-Golomb number, se(v)."""
        number = self.golomb()
        return (number + 1) // 2 if number % 2 else -number // 2


class BitColumns:
    """The first 8 bytes of many headers, read side by side; every number is (N,) int64."""

    def __init__(self, rows: Sequence[bytes]):
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        is_long = bool((sizes >= 8).all())  # as they are but for damage
        data = b"".join([row[:8] if is_long else row[:8].ljust(8, b"\0") for row in rows])
        self._values = np.frombuffer(data, ">u8").astype(np.uint64)
        self._left = 8 * np.minimum(sizes, 8)

    @property
    def is_readable(self) -> np.ndarray:
        """(N,) bool: whether nothing was read from behind the end."""
        return self._left >= 0

    def read(self, count: int | np.ndarray = 1) -> np.ndarray:
        """Read unsigned numbers of `count` bits each."""
        bits = np.asarray(count, np.uint64)
        number = self._values >> (np.uint64(64) - bits)
        self._values = self._values << bits
        self._left = self._left - count
        return number.astype(np.int64)

    def golomb(self, where: np.ndarray | None = None) -> np.ndarray:
        """Read unsigned Exp-Golomb numbers; 0, and nothing is read, except `where` they stand."""
        # A number of at most 32 bits is exact as a float, whose exponent is then its length.
        zeros = 32 - np.frexp((self._values >> np.uint64(32)).astype(np.float64))[1].astype(np.int64)
        length = 2 * zeros + 1
        if where is not None:
            length = np.where(where, length, 0)
        number = self.read(np.minimum(length, 64))
        self._left = np.where(length > 63, -1, self._left)
        return np.where(length > 0, number - 1, 0)


def rbsp(data: bytes) -> bytes:
    """Return a NAL unit without its emulation prevention bytes (H.264, 7.4.1)."""
    return data.replace(b"\0\0\3", b"\0\0") if b"\0\0\3" in data else data
