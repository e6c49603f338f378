"""Open the path of a video as what av.open() takes: a name for FFmpeg, or a file object that reads block by block."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from pipelines.storage import as_value_error, fetch_spans, is_remote, parse_location, read_bytes, size_of

_REMOTE_BLOCK = 1 << 14  # bytes per request when a remote file is read piece by piece


def open_for_av(path: str, whole: bool) -> str | BinaryIO:
    """Return what av.open() takes for a path. `whole` fetches a remote video at once, since all of it will be read.

    Raises ValueError as size_of(), and for an empty file.
    """
    location, size = parse_location(path), size_of(path)
    if not size:
        raise ValueError(f"{path}: empty file")
    if is_remote(path):
        if whole:
            return io.BytesIO(read_bytes(path))
        return io.BufferedReader(RemoteFile(path, size, _REMOTE_BLOCK), _REMOTE_BLOCK)
    if location.member:
        return f"subfile,,start,{location.start},end,{location.start + size},,:file:{location.file}"
    return f"file:{location.file}"  # without file:, FFmpeg would take the a of a:b.mp4 for a protocol


class RemoteFile(io.RawIOBase):
    """A remote file or a member of a remote tar, fetched block by block as it is read."""

    def __init__(self, path: str, size: int, block: int):
        from fsspec.caching import BlockCache  # `open_file_system` says why here

        location = parse_location(path)
        self._size, self._position = size, 0

        def fetch(start: int, end: int) -> bytes:
            with as_value_error(path):
                return fetch_spans(location, [[start, end]])[0]

        self._blocks = BlockCache(block, fetch, size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._blocks._fetch(self._position, min(self._position + len(buffer), self._size))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
