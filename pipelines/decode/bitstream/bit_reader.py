"""Read bits and Exp-Golomb numbers from bytes, most significant first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BitReader:
    """A reader of the bits of some bytes. Every method raises ValueError at their end."""

    def __init__(self, data: bytes, skip_bits: int = 0):
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)
        if skip_bits:
            self.read(skip_bits)

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


class BatchBitReader:
    """A reader of the first 8 bytes of many headers at once; every number that it returns is (N,) int64."""

    def __init__(self, headers: Sequence[bytes]):
        sizes = np.fromiter(map(len, headers), np.int64, len(headers))
        needs_no_padding = bool((sizes >= 8).all())  # true unless a file is damaged
        data = b"".join([header[:8] if needs_no_padding else header[:8].ljust(8, b"\0") for header in headers])
        self._values = np.frombuffer(data, ">u8").astype(np.uint64)
        self._left = 8 * np.minimum(sizes, 8)

    @property
    def is_readable(self) -> np.ndarray:
        """(N,) bool: False where more was read than the header has."""
        return self._left >= 0

    def read(self, count: int | np.ndarray = 1) -> np.ndarray:
        """Read unsigned numbers of `count` bits each."""
        bits = np.asarray(count, np.uint64)
        number = self._values >> (np.uint64(64) - bits)
        self._values = self._values << bits
        self._left = self._left - count
        return number.astype(np.int64)

    def golomb(self, mask: np.ndarray | None = None) -> np.ndarray:
        """Read unsigned Exp-Golomb numbers; where `mask` is False nothing is read and the number is 0."""
        # float64 holds numbers of up to 32 bits exactly, and its exponent is their length in bits.
        zeros = 32 - np.frexp((self._values >> np.uint64(32)).astype(np.float64))[1].astype(np.int64)
        length = 2 * zeros + 1
        if mask is not None:
            length = np.where(mask, length, 0)
        number = self.read(np.minimum(length, 64))
        self._left = np.where(length > 63, -1, self._left)
        return np.where(length > 0, number - 1, 0)


def rbsp(data: bytes) -> bytes:
    """Return a NAL unit without its emulation prevention bytes (H.264, 7.4.1)."""
    return data.replace(b"\0\0\3", b"\0\0") if b"\0\0\3" in data else data
