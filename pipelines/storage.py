"""Where the bytes of a video lie: a file or a range of one (a member of a tar), here or at any address of fsspec's.

A path names them all:

    /data/a.mp4 · s3://bucket/a.mp4                          a file
    /data/train-0001.tar#abc/clip.mp4@1536+204800            a member: its name, where it begins, its bytes
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, NamedTuple

import fsspec
from fsspec.caching import BlockCache

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}
_MEMBER = re.compile(r"(.+?\.tar)#(.+)@(\d+)\+(\d+)", re.DOTALL)
_BLOCK = 1 << 14  # bytes that are fetched from an address at least
_MINUTE = 60  # seconds
_CHANGES = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "md5Hash", "created")  # of an info
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
    """A path that is relative to a folder or address, or absolute; a member's is never relative."""
    if is_remote(path) or place_of(path).name or (path.startswith("/") and is_remote(str(base))):
        return path
    return f"{str(base).rstrip('/')}/{path}" if is_remote(str(base)) else str(Path(base) / path)


def relative(path: str, base: str) -> str:
    """A path as seen from a folder or address; of a member TAR/NAME, as if the tar had been unpacked there."""
    place = place_of(path)
    file = place.file
    if place.name:  # which may begin with ../ and must not lead out of the folder
        file = file.removesuffix(".tar") + os.path.normpath(f"/{place.name}")
    return file.removeprefix(base).lstrip("/") if is_remote(file) else os.path.relpath(file, base or ".")


def videos_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)


def files_below(base: str) -> Iterator[str]:
    """The paths of all files below a folder or address, sorted folder by folder; links are followed."""
    if is_remote(base):
        with reported(base):
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
    with contextlib.suppress(ValueError), reported(file):
        if is_remote(file):
            return _remote_stamp(file, int(time.monotonic()) // _MINUTE)
        stat = os.stat(file)
        return stat.st_size, stat.st_mtime_ns
    return 0, 0


@functools.lru_cache(4096)  # a list is read more than once at the start, and each file asked for through the network
def _remote_stamp(file: str, minute: int) -> tuple[int, int]:
    fs, name = fsspec.core.url_to_fs(file)
    info = fs.info(name)
    known = [str(info[key]) for key in _CHANGES if info.get(key)]
    digest = hashlib.sha256("".join(known).encode()).digest()
    return int(info["size"] or 0), int.from_bytes(digest[:7], "big")


def file_stamps(files: Iterable[str]) -> dict[str, tuple[int, int]]:
    """file_stamp() of many; of those at addresses side by side."""
    distinct = list(dict.fromkeys(files))
    far = [file for file in distinct if is_remote(file)]
    with ThreadPoolExecutor(32) as pool:
        stamps = dict(zip(far, pool.map(file_stamp, far), strict=True))
    return stamps | {file: file_stamp(file) for file in distinct if file not in stamps}


def stamp(path: str, of_file: Callable[[str], tuple[int, int]] = file_stamp) -> tuple[int, int]:
    """As file_stamp(), of what a path names; of a member it is the member's size and the tar's change."""
    place = place_of(path)
    size, changed = of_file(place.file)
    return (size if place.size is None else min(place.size, size), changed)


def read(path: str, ranges: Sequence[tuple[int, int]] | None = None) -> list[bytes]:
    """The bytes (start, end) of each range, or all; neighbours are read together.

    Raises ValueError for a file that is not there or ends before.
    """
    place = place_of(path)
    if ranges is None:
        ranges = [(0, size_of(path))]
    spans: list[list[int]] = []
    within: dict[int, int] = {}  # where a range begins -> its span
    gap, reached = _GAPS[is_remote(path)], -1 << 62
    for start, end in sorted(ranges):  # pictures need not lie in the order in which they are decoded
        if start - reached <= gap:
            spans[-1][1] = reached = end if end > reached else reached
        else:
            spans.append([start, end])
            reached = end
        within[start] = len(spans) - 1
    with reported(path):
        blocks = _fetch(place, spans)
    held: list[bytes] = []
    for start, end in ranges:
        span = within[start]
        first = spans[span][0]
        part = blocks[span][start - first : end - first]
        if len(part) != end - start:
            raise ValueError(f"{path}: it ends before byte {end}")
        held.append(part)
    return held


@contextlib.contextmanager
def random_reads(path: str) -> Iterator[Callable[[int, int], bytes]]:
    """Open a local file or member for many small reads: from a place to another, fewer bytes at the end of it."""
    place, size = place_of(path), size_of(path)
    with reported(path), open(place.file, "rb", buffering=0) as file:
        yield lambda start, end: _pread(file.fileno(), place.start + start, place.start + min(end, size))


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
            with reported(path):
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
    with reported(path):
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
        return [_pread(file.fileno(), start, end) for start, end in zip(starts, ends, strict=True)]


def _pread(file: int, start: int, end: int) -> bytes:
    """Linux reads 2 GiB at a time at most."""
    parts = []
    while start < end and (part := os.pread(file, end - start, start)):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def reported(path: str) -> Iterator[None]:
    """Whatever a file system raises, as a ValueError with the path."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or str(error) or type(error).__name__}") from None
    except Exception as error:
        if not is_remote(path) or str(error).startswith(path):
            raise
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None  # each file system has its own
