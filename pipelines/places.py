"""Where the bytes of a video lie: a file or a range of one (a member of a tar), here or at any address of fsspec's.

A path names them all:

    /data/a.mp4 · s3://bucket/a.mp4                          a file
    /data/train-0001.tar#abc/clip.mp4@1536+204800            a member: its name, where it begins, its bytes
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, NamedTuple

import fsspec
from fsspec.caching import BlockCache

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}
_MEMBER = re.compile(r"(.+?\.tar)#(.+)@(\d+)\+(\d+)", re.DOTALL)
_BLOCK = 1 << 14  # bytes that are fetched from an address at least
_GAPS = {False: 1 << 12, True: 1 << 14}  # bytes between two ranges that are cheaper to read than to leave out


class Place(NamedTuple):
    file: str
    start: int = 0
    size: int | None = None  # to the end
    name: str = ""  # of a member


def place_of(path: str) -> Place:
    member = _MEMBER.fullmatch(path)
    return Place(member[1], int(member[3]), int(member[4]), member[2]) if member else Place(path)


def member_path(tar: str, name: str, start: int, size: int) -> str:
    """The path of a tar's member."""
    return f"{tar}#{name}@{start}+{size}"


def is_remote(path: str) -> bool:
    """Whether it is an address of fsspec's: s3://bucket/file, or a chain of them."""
    return "://" in path


def join(base: str | Path, path: str) -> str:
    """A path that is relative to a folder or address, or absolute."""
    if is_remote(path) or (path.startswith("/") and is_remote(str(base))):
        return path
    return f"{str(base).rstrip('/')}/{path}" if is_remote(str(base)) else str(Path(base) / path)


def relative(path: str, base: str) -> str:
    """A path as seen from a folder or address; of a member TAR/NAME, as if the tar had been unpacked there."""
    place = place_of(path)
    file = f"{place.file.removesuffix('.tar')}/{place.name}" if place.name else place.file
    return file.removeprefix(base).lstrip("/") if is_remote(file) else os.path.relpath(file, base or ".")


def files_below(base: str) -> Iterator[str]:
    """The paths of all files below a folder or address, sorted folder by folder; links are followed."""
    if is_remote(base):
        with _reported(base):
            fs, name = fsspec.core.url_to_fs(base)
            yield from sorted(fs.unstrip_protocol(file) for file in fs.find(name))
        return
    seen = set()
    for folder, folders, files in os.walk(base, followlinks=True):
        here = os.path.realpath(folder)
        if here in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(here)
        folders.sort()
        yield from (os.path.join(folder, file) for file in sorted(files))


def file_stamp(file: str) -> tuple[int, int]:
    """(bytes, nanoseconds of its last change) of a file; at an address, another number that changes with the file.
    (0, 0): there is none."""
    with contextlib.suppress(ValueError), _reported(file):
        if is_remote(file):
            fs, name = fsspec.core.url_to_fs(file)
            digest = hashlib.sha256(str(fs.ukey(name)).encode()).digest()
            return int(fs.info(name)["size"] or 0), int.from_bytes(digest[:7], "big")
        stat = os.stat(file)
        return stat.st_size, stat.st_mtime_ns
    return 0, 0


def stamp(path: str, of_file: Callable[[str], tuple[int, int]] = file_stamp) -> tuple[int, int]:
    """As file_stamp(), of what a path names; of a member it is the member's size and the tar's change."""
    place = place_of(path)
    size, changed = of_file(place.file)
    return (size if place.size is None else min(place.size, size), changed)


def read(path: str, ranges: Sequence[tuple[int, int]] | None = None) -> list[bytes]:
    """The bytes (start, end) of each range, ascending, or all; neighbours are read together.

    Raises ValueError for a file that is not there or ends before.
    """
    place = place_of(path)
    if ranges is None:
        ranges = [(0, size_of(path))]
    spans: list[list[int]] = []
    for start, end in ranges:
        if spans and start - spans[-1][1] <= _GAPS[is_remote(path)]:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    with _reported(path):
        blocks = _fetch(place, spans)
    held: list[bytes] = []
    number = 0
    for start, end in ranges:
        while spans[number][1] < end:
            number += 1
        held.append(blocks[number][start - spans[number][0] : end - spans[number][0]])
        if len(held[-1]) != end - start:
            raise ValueError(f"{path}: it ends before byte {end}")
    return held


def source(path: str, whole: bool) -> str | BinaryIO:
    """What av.open() takes. `whole`: all of it is going to be read, so an address is fetched at once.

    Raises ValueError as size_of(), and for an empty file.
    """
    place = place_of(path)
    size = size_of(path)
    if not size:
        raise ValueError(f"{path}: empty file")
    if is_remote(path):
        return io.BytesIO(read(path)[0]) if whole else io.BufferedReader(Slice(path, size, _BLOCK), _BLOCK)
    if place.name:
        return f"subfile,,start,{place.start},end,{place.start + size},,:file:{place.file}"
    return f"file:{place.file}"  # a:b.mp4 is no protocol


class Slice(io.RawIOBase):
    """A file at an address, or a member of a tar there, fetched in blocks as it is read."""

    def __init__(self, path: str, size: int, block: int):
        place = place_of(path)
        self._size, self._at = size, 0

        def fetch(start: int, end: int) -> bytes:
            with _reported(path):
                return _fetch(place, [[start, end]])[0]

        self._blocks = BlockCache(block, fetch, size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._blocks._fetch(self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def size_of(path: str) -> int:
    """Bytes. Raises ValueError for what is missing, a folder, or a pipe, which would be waited for."""
    place = place_of(path)
    with _reported(path):
        if is_remote(place.file):
            fs, name = fsspec.core.url_to_fs(place.file)
            return place.size if place.size is not None else int(fs.info(name)["size"])
        stat = os.stat(place.file)
        if not S_ISREG(stat.st_mode):
            raise ValueError(f"{path}: {'a folder' if S_ISDIR(stat.st_mode) else 'no regular file'}")
        return place.size if place.size is not None else stat.st_size


def _fetch(place: Place, spans: Sequence[Sequence[int]]) -> list[bytes]:
    starts, ends = ([place.start + span[side] for span in spans] for side in (0, 1))
    if is_remote(place.file):
        fs, name = fsspec.core.url_to_fs(place.file)
        return fs.cat_ranges([name] * len(spans), starts, ends, on_error="raise")  # side by side, where it can
    with open(place.file, "rb", buffering=0) as file:
        return [os.pread(file.fileno(), end - start, start) for start, end in zip(starts, ends, strict=True)]


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    """Whatever a file system raises, as a ValueError with the path."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except Exception as error:
        if not is_remote(path) or str(error).startswith(path):
            raise
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None  # each file system has its own
