"""Read the bytes of videos: whole files or byte ranges of tar files, local or at any address that fsspec opens.

A video is named by a path, in one of these forms:

    /data/a.mp4 · s3://bucket/a.mp4                          a file
    /data/train-0001.tar#abc/clip.mp4@1536+204800            a tar member: its name, first byte and size in bytes
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}
_MEMBER = re.compile(r"(.+?\.tar)#(.+)@(\d+)\+(\d+)", re.DOTALL)
_FINGERPRINT_LIFETIME = 60  # seconds for which the fingerprint of a remote file is not asked for again
_VERSION_KEYS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "md5Hash", "created")
_MAX_GAP_LOCAL, _MAX_GAP_REMOTE = 1 << 12, 1 << 14  # bytes between two ranges that are cheaper to read than to skip


class Location(NamedTuple):
    """A parsed path: a byte range of a file; str() gives the path back."""

    file: str
    start: int = 0
    size: int | None = None  # None: to the end of the file
    member: str = ""  # the name inside the tar; empty for a whole file

    def __str__(self) -> str:
        return f"{self.file}#{self.member}@{self.start}+{self.size}" if self.member else self.file


class Fingerprint(NamedTuple):
    """A size and a number that change when a file does; (0, 0) for a file that cannot be found."""

    size: int  # bytes
    mtime_ns: int  # of a remote file: a hash of the version that its file system reports


def parse_location(path: str) -> Location:
    """Split a path into the file and the byte range that it names."""
    match = _MEMBER.fullmatch(path) if "#" in path else None
    if not match:
        return Location(path)
    return Location(file=match[1], start=int(match[3]), size=int(match[4]), member=match[2])


def is_remote(path: str) -> bool:
    """Return whether a path is an fsspec address: s3://bucket/file, or a chain of them."""
    return "://" in path


def open_file_system(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and its name in it."""
    import fsspec  # takes a tenth of a worker's start, and most videos are local

    return fsspec.core.url_to_fs(address)


def join_path(base: str | Path, path: str) -> str:
    """Prefix a relative path with a folder or an address. Addresses, tar members and absolute paths are kept."""
    if is_remote(path) or "#" in path and parse_location(path).member:
        return path
    if is_remote(base := str(base)):
        return path if path.startswith("/") else f"{base.rstrip('/')}/{path}"
    if path[:1] in ("/", ".") or "//" in path or "/." in path:
        return str(Path(base) / path)
    return _as_prefix(base) + path  # a list may have a quarter of a million paths, and pathlib takes its time


@functools.lru_cache(64)
def _as_prefix(folder: str) -> str:
    """Return a local folder as pathlib writes it before the name of a file in it."""
    return str(Path(folder) / "a").removesuffix("a")


def relative_path(path: str, base: str) -> str:
    """Return a path relative to a folder or an address; a tar member is TAR/NAME, as if the tar had been unpacked."""
    location = parse_location(path)
    file = location.file
    if location.member:  # a name may begin with ../ and must not lead out of the folder
        file = file.removesuffix(".tar") + os.path.normpath(f"/{location.member}")
    return file.removeprefix(base).lstrip("/") if is_remote(file) else os.path.relpath(file, base or ".")


def videos_below(folder: Path) -> list[Path]:
    """Return all video files below a local folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)


def files_below(base: str) -> Iterator[str]:
    """Yield the paths of all files below a folder or an address, sorted folder by folder; links are followed."""
    if is_remote(base):
        with as_value_error(base):
            fs, name = open_file_system(base)
            yield from sorted(fs.unstrip_protocol(file) for file in fs.find(name))
        return
    visited = set()
    for folder, subfolders, files in os.walk(base, followlinks=True):
        real_folder = os.path.realpath(folder)
        if real_folder in visited:  # a link to a folder above it
            subfolders.clear()
            continue
        visited.add(real_folder)
        subfolders.sort()
        yield from (os.path.join(folder, file) for file in sorted(files))


def subfolder_names(base: str) -> list[str]:
    """Return the names of the folders in a local folder; none for an address or what cannot be listed."""
    with contextlib.suppress(OSError):
        if not is_remote(base):
            with os.scandir(base) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
    return []


def file_fingerprint(file: str) -> Fingerprint:
    """Return the fingerprint of a file."""
    if is_remote(file):
        with contextlib.suppress(ValueError), as_value_error(file):
            return _remote_fingerprint(file, int(time.monotonic()) // _FINGERPRINT_LIFETIME)
        return Fingerprint(0, 0)
    return _local_fingerprint(file)


def _local_fingerprint(file: str) -> Fingerprint:
    try:
        stat = os.stat(file)
    except (OSError, ValueError):  # ValueError: a path with a zero character
        return Fingerprint(0, 0)
    return Fingerprint(stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(4096)  # a list is read more than once at the start, and each request crosses the network
def _remote_fingerprint(file: str, period: int) -> Fingerprint:
    """Ask for the fingerprint of a remote file; `period` only makes the cache forget it."""
    fs, name = open_file_system(file)
    info = fs.info(name)
    versions = [str(info[key]) for key in _VERSION_KEYS if info.get(key)]
    digest = hashlib.sha256("".join(versions).encode()).digest()
    return Fingerprint(int(info["size"] or 0), int.from_bytes(digest[:7], "big"))


def fingerprint(path: str) -> Fingerprint:
    """Return the fingerprint of a video; that of a tar member is the member's size and the tar's mtime."""
    location = parse_location(path)
    return _clip_to_member(location, file_fingerprint(location.file))


def fingerprints(paths: Iterable[str]) -> dict[str, Fingerprint]:
    """Return the fingerprint of each path. Each tar is looked at once, remote files in parallel."""
    paths = list(paths)
    plain = {path: _local_fingerprint(path) for path in paths if "#" not in path and "://" not in path}
    locations = {path: parse_location(path) for path in paths if path not in plain}
    files = dict.fromkeys(location.file for location in locations.values())
    remote_files = [file for file in files if is_remote(file)]
    with ThreadPoolExecutor(32) as pool:
        of_file = dict(zip(remote_files, pool.map(file_fingerprint, remote_files), strict=True))
    of_file |= {file: file_fingerprint(file) for file in files if file not in of_file}
    return plain | {path: _clip_to_member(location, of_file[location.file]) for path, location in locations.items()}


def _clip_to_member(location: Location, file: Fingerprint) -> Fingerprint:
    return file if location.size is None else Fingerprint(min(location.size, file.size), file.mtime_ns)


def read_bytes(path: str) -> bytes:
    """Read all bytes of a video. Raises ValueError for one that is missing or shorter than its path says."""
    return read_ranges(path, [(0, size_of(path))])[0]


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read the bytes [start, end) of each range, in any order; ranges that are close together are read at once.

    Raises ValueError for a video that is missing or that ends before a range does.
    """
    location = parse_location(path)
    max_gap = _MAX_GAP_REMOTE if is_remote(path) else _MAX_GAP_LOCAL
    spans: list[list[int]] = []  # ranges merged
    span_of: dict[int, int] = {}  # start of a range -> index of its span
    span_end = -1 << 62
    for start, end in sorted(ranges):  # packets need not be stored in the order in which they are decoded
        if start - span_end <= max_gap:
            spans[-1][1] = span_end = max(end, span_end)
        else:
            spans.append([start, end])
            span_end = end
        span_of[start] = len(spans) - 1
    with as_value_error(path):
        blocks = fetch_spans(location, spans)
    chunks: list[bytes] = []
    for start, end in ranges:
        index = span_of[start]
        offset = spans[index][0]
        chunk = blocks[index][start - offset : end - offset]
        if len(chunk) != end - start:
            raise ValueError(f"{path}: the file ends before byte {end}")
        chunks.append(chunk)
    return chunks


@contextlib.contextmanager
def random_reads(path: str) -> Iterator[Callable[[int, int], bytes]]:
    """Open a local video for many small reads: yields read(start, end), which returns fewer bytes at the end of it."""
    location, size = parse_location(path), size_of(path)
    with as_value_error(path), open(location.file, "rb", buffering=0) as file:
        yield lambda start, end: _pread(file.fileno(), location.start + start, location.start + min(end, size))


def size_of(path: str) -> int:
    """Return the size of a video in bytes.

    Raises ValueError for what is missing and for what is not a regular file: reading a pipe would wait forever.
    """
    location = parse_location(path)
    with as_value_error(path):
        if is_remote(location.file):
            fs, name = open_file_system(location.file)
            info = fs.info(name) if location.size is None else {"size": location.size}
            if info.get("type") == "directory":
                raise ValueError(f"{path}: a folder; folders of images are read from local disks only")
            return int(info["size"])
        stat = os.stat(location.file)
        if not S_ISREG(stat.st_mode):
            raise ValueError(f"{path}: {'a folder' if S_ISDIR(stat.st_mode) else 'not a regular file'}")
        return location.size if location.size is not None else stat.st_size


def fetch_spans(location: Location, spans: Sequence[Sequence[int]]) -> list[bytes]:
    """Read spans (start, end) of a file or a tar member, remote ones in parallel where the file system can."""
    starts = [location.start + start for start, _ in spans]
    ends = [location.start + end for _, end in spans]
    if is_remote(location.file):
        fs, name = open_file_system(location.file)
        return fs.cat_ranges([name] * len(spans), starts, ends, on_error="raise")  # in parallel where fs can
    with open(location.file, "rb", buffering=0) as file:
        return [_pread(file.fileno(), start, end) for start, end in zip(starts, ends, strict=True)]


def _pread(file: int, start: int, end: int) -> bytes:
    """Read the bytes [start, end) in several calls if needed: Linux reads at most 2 GiB per call."""
    parts = []
    while start < end and (part := os.pread(file, end - start, start)):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def as_value_error(path: str) -> Iterator[None]:
    """Turn whatever a file system raises inside into a ValueError with the path."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or str(error) or type(error).__name__}") from None
    except Exception as error:  # each remote file system raises exceptions of its own
        if not is_remote(path) or str(error).startswith(path):
            raise
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
