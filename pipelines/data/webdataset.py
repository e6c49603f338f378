"""List the videos in tar shards in WebDataset's layout, with their labels and where in the tar their bytes are.

A sample consists of the members with one key, which is the name up to the first dot after the folder: key.mp4 beside
key.cls (a number or a class name) or key.json (an object with `cls`, `label` or `class`). What each shard contains is
kept beside the list, in LIST.shards.jsonl, so that a shard is read through only once.
"""

from __future__ import annotations

import functools
import glob
import io
import json
import os
import posixpath
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipelines import storage
from pipelines.av_input import RemoteFile
from pipelines.data.cache import Scanner, update_cache

VERSION = 1  # of the entries in the cache
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TRAILER = 1 << 16  # bytes after the last member that are checked
_LABEL_KEYS = ("cls", "label", "class")  # of key.json


@dataclass(frozen=True)
class Shard:
    """A tar: the path of each video (`storage.Location`) and its label, which is empty if the sample has none."""

    path: str
    size: int = 0
    mtime_ns: int = 0
    videos: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    error: str = ""  # if there are videos, the tar is damaged after them
    version: int = 0


def is_shard_list(path: str) -> bool:
    """Return whether a list consists of tars: a.tar, train-{000..099}.tar, s3://bucket/train-*.tar."""
    return path.endswith(".tar")


def expand_shards(path: str) -> list[str]:
    """Return the tars that a pattern stands for: {000..099} counts, * and ? match. Any other path stands for itself.

    Raises ValueError if there is none.
    """
    if not is_shard_list(path):
        return [path]
    tars: list[str] = []
    for pattern in [path] if os.path.exists(path) else _expand_braces(path):
        if not set("*?[") & set(pattern) or os.path.exists(pattern):
            tars.append(pattern)
        elif storage.is_remote(pattern):
            if "::" in pattern:
                raise ValueError(f"{path}: * and ? do not work in a chain of addresses; count the tars: {{000..099}}")
            with storage.as_value_error(path):
                fs, remote_pattern = storage.open_file_system(pattern)
                tars += sorted(fs.unstrip_protocol(name) for name in fs.glob(remote_pattern))
        else:
            tars += sorted(glob.glob(pattern))
    if not tars:
        raise ValueError(f"{path}: no such tar")
    return tars


def read_shards(path: str, cache: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (path, label, tar#member) of every video, in the order of the tars.

    Raises ValueError for a tar that is missing or not a tar, and for a video without a label. A damaged tar is reported
    on stderr; the videos before the damage count.
    """
    tars = expand_shards(path)
    scanner = Scanner(
        name="shards",
        entry_type=Shard,
        version=VERSION,
        scan=read_shard,
        failed=_failed_shard,
        is_valid=_is_valid,
        min_files_for_pool=2,
    )
    shards = update_cache(tars, cache, scanner)
    for tar in tars:
        shard = shards[tar]
        if shard.error and not shard.videos:
            raise ValueError(f"{tar}: {shard.error}")
        if shard.error:
            _warn_once(f"{tar}: {shard.error}, after {len(shard.videos)} videos")
        for video, label in zip(shard.videos, shard.labels, strict=True):
            if not label:
                raise ValueError(
                    f"{video}: no label beside it: expected KEY.cls, or KEY.json with {', '.join(_LABEL_KEYS)}"
                )
            yield video, label, f"{tar}#{storage.parse_location(video).member}"


def read_shard(tar: str) -> Shard:
    """Read the headers and labels of a tar, but not its videos. Never raises for a bad tar."""
    size, mtime_ns = storage.file_fingerprint(tar)
    videos: dict[str, str] = {}  # key -> path
    labels: dict[str, str] = {}
    error = ""
    try:
        with _open_tar(tar) as file:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in _file_members(archive):
                    _add_member(archive, member, tar, videos, labels)
                end = archive.offset
            error = _trailing_garbage(file, end)
    except tarfile.TarError as reason:
        error = f"not a whole tar without compression: {reason}"
    except Exception as reason:  # tarfile raises many kinds of exceptions for files that are not tars
        videos.clear()
        error = str(reason).removeprefix(f"{tar}: ") or type(reason).__name__
    if not videos and not error:
        error = "no videos in it"
    return Shard(
        path=tar,
        size=size,
        mtime_ns=mtime_ns,
        videos=tuple(videos.values()),
        labels=tuple(labels.get(key, "") for key in videos),
        error=error,
        version=VERSION,
    )


def _file_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files and the links. Raises ValueError for a member whose bytes are not simply in the tar."""
    for member in archive:
        if member.size < 0:
            raise ValueError(f"{member.name} has a size of {member.size} bytes")
        if member.issparse():
            raise ValueError(f"{member.name} is stored as a sparse file; pack it without tar -S")
        if member.isreg() or member.islnk() or member.issym():
            yield member


def _add_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, tar: str, videos: dict[str, str], labels: dict[str, str]
) -> None:
    """Add a member to the videos or to the labels of its key; key.cls wins over key.json."""
    folder, _, name = member.name.rpartition("/")
    stem, _, suffixes = name.partition(".")
    if not stem:
        return
    key, kind = f"{folder}/{stem}", suffixes.rpartition(".")[2].lower()
    if f".{kind}" in storage.VIDEO_SUFFIXES:
        if key in videos:
            first = storage.parse_location(videos[key]).member
            raise ValueError(f"two videos of one sample: {first} and {member.name}")
        start, size = _byte_range(archive, member)
        videos[key] = str(storage.Location(tar, start, size, member.name))
    elif kind == "cls" or (kind == "json" and key not in labels):
        content = archive.extractfile(member)
        if label := _parse_label(content.read() if content else b"", kind):
            labels[key] = label


def _byte_range(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[int, int]:
    """Return the first byte and the number of bytes of a member; those of a link are its target's."""
    visited = {member.name}
    while member.islnk() or member.issym():
        target = member.linkname
        if member.issym():
            target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), target))
        try:
            member = archive.getmember(target)
        except KeyError:
            raise ValueError(f"{member.name} is a link to {target}, which is not in it") from None
        if member.name in visited:
            raise ValueError(f"{member.name} is a link to itself")
        visited.add(member.name)
    return member.offset_data, member.size


def _trailing_garbage(file: BinaryIO, end: int) -> str:
    """Describe what follows the last member other than zeros: tarfile takes a damaged header for the end."""
    file.seek(end)
    rest = file.read(_TRAILER)
    num_zeros = len(rest) - len(rest.lstrip(b"\0"))
    return f"damaged, or another tar, from byte {end + num_zeros} on" if rest.strip(b"\0") else ""


def _is_valid(shard: Shard) -> bool:
    """Return False for a remote tar that could not be read: the network may have been the reason."""
    return not (shard.error and storage.is_remote(shard.path))


def _failed_shard(tar: str, reason: str) -> Shard:
    size, mtime_ns = storage.file_fingerprint(tar)
    return Shard(path=tar, size=size, mtime_ns=mtime_ns, error=reason, version=VERSION)


def _open_tar(tar: str) -> BinaryIO:
    """Open a tar with a small buffer: the headers are small and far from each other."""
    size = storage.size_of(tar)
    if storage.is_remote(tar):
        return io.BufferedReader(RemoteFile(tar, size, block=1 << 13))
    return open(tar, "rb", buffering=1 << 11)


def _parse_label(data: bytes, kind: str) -> str:
    """Return the label in key.cls or key.json; empty if there is none."""
    text = data.decode("utf-8-sig", "replace").strip()
    if kind == "cls":
        return text
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    for key in _LABEL_KEYS:
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
            return str(int(value))
    return ""


def _expand_braces(path: str) -> list[str]:
    match = _RANGE.search(path)
    if not match:
        return [path]
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise ValueError(f"{path}: {match[0]} counts downwards")
    expanded = []
    for number in range(first, last + 1):
        expanded += _expand_braces(f"{path[: match.start()]}{number:0{len(match[1])}}{path[match.end() :]}")
    return expanded


@functools.cache
def _warn_once(message: str) -> None:
    """Print a warning once, however often the list is read."""
    print(message, file=sys.stderr)
