"""Videos in tar shards of WebDataset's layout: which there are, where their bytes lie, and of which class they are.

Samples are members of one key, the name up to the first dot of its last part: key.mp4 beside key.cls (a number or a
name) or key.json (an object with `cls`, `label` or `class`). The members of every shard are kept beside the list, in
LIST.shards.jsonl, so that a shard is walked through once.
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

import fsspec

from pipelines import storage
from pipelines.data.cache import Reading, refresh

VERSION = 1  # of what a shard says
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PADDING = 1 << 16  # bytes behind the last member that are looked at
_LABELS = ("cls", "label", "class")  # of key.json


@dataclass(frozen=True)
class Shard:
    """A tar: for each video its path (`places.member_path`) and its label; empty if the sample has none."""

    path: str
    size: int = 0
    changed: int = 0
    videos: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    error: str = ""  # what is wrong with it; if there are videos, behind them
    version: int = 0


def is_sharded(path: str) -> bool:
    """Whether a list is tars: a.tar, train-{000..099}.tar, s3://bucket/train-*.tar."""
    return path.endswith(".tar")


def expand(path: str) -> list[str]:
    """The tars that it stands for: {000..099} counts, * and ? match. Raises ValueError where there is none."""
    if not is_sharded(path):
        return [path]
    tars: list[str] = []
    for plain in [path] if os.path.exists(path) else _counted(path):
        if not set("*?[") & set(plain) or os.path.exists(plain):
            tars.append(plain)
        elif storage.is_remote(plain):
            if "::" in plain:
                raise ValueError(f"{path}: a chain of addresses takes no * or ?; count the tars, {{000..099}}")
            with storage.reported(path):
                fs, pattern = fsspec.core.url_to_fs(plain)
                tars += sorted(fs.unstrip_protocol(name) for name in fs.glob(pattern))
        else:
            tars += sorted(glob.glob(plain))
    if not tars:
        raise ValueError(f"{path}: no such tar")
    return tars


def read_shards(path: str, cache: Path) -> Iterator[tuple[str, str]]:
    """(path, label) of every video, in the order of the tars.

    Raises ValueError for a tar that is missing or no tar, and for a video without a label. One that is cut short is
    named on stderr; what is in it before counts.
    """
    tars = expand(path)
    reading = Reading(Shard, VERSION, read_shard, _unread, "shards", pool_from=2, holds=_stands)
    shards = refresh(tars, cache, reading)
    for tar in tars:
        shard = shards[tar]
        if shard.error and not shard.videos:
            raise ValueError(f"{tar}: {shard.error}")
        if shard.error:
            _say(f"{tar}: {shard.error}, after {len(shard.videos)} videos")
        for video, label in zip(shard.videos, shard.labels, strict=True):
            if not label:
                raise ValueError(
                    f"{video}: no label beside it: expected KEY.cls, or KEY.json with {', '.join(_LABELS)}"
                )
            yield video, label


def read_shard(tar: str) -> Shard:
    """Walk through a tar's headers; what lies between is not read. Never raises for a bad tar."""
    size, changed = storage.file_stamp(tar)
    videos: dict[str, str] = {}
    labels: dict[str, str] = {}
    error = ""
    try:
        with _opened(tar) as file:
            with tarfile.open(fileobj=file, mode="r:") as members:
                for member in _members(members):
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    key, kind = f"{folder}/{stem}", suffix.rpartition(".")[2].lower()
                    if f".{kind}" in storage.VIDEO_SUFFIXES and stem:
                        if key in videos:
                            first = storage.place_of(videos[key]).name
                            raise ValueError(f"two videos of one sample: {first} and {member.name}")
                        start, length = _place(members, member)
                        videos[key] = storage.member_path(tar, member.name, start, length)
                    elif kind in ("cls", "json") and stem and (kind == "cls" or key not in labels):
                        held = members.extractfile(member)
                        label = _label(held.read() if held else b"", kind)
                        labels |= {key: label} if label else {}
                end = members.offset
            error = _behind(file, end)
    except tarfile.TarError as reason:
        error = f"not a whole tar without compression: {reason}"
    except Exception as reason:  # tarfile raises many kinds for what was no tar to begin with
        videos.clear()
        error = str(reason).removeprefix(f"{tar}: ") or type(reason).__name__
    if not videos and not error:
        error = "no videos in it"
    found = tuple(labels.get(key, "") for key in videos)
    return Shard(tar, size, changed, tuple(videos.values()), found, error, VERSION)


def _members(members: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files and links to files. Raises ValueError for what no tar of videos has."""
    for member in members:
        if member.size < 0:
            raise ValueError(f"{member.name} has a size of {member.size} bytes")
        if member.issparse():
            raise ValueError(f"{member.name} is kept sparsely; pack it without tar -S")
        if member.isreg() or member.islnk() or member.issym():
            yield member


def _place(members: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[int, int]:
    """Where its bytes begin, and how many there are; of a link those of the file before it that it stands for."""
    names = {member.name}
    while member.islnk() or member.issym():
        target = member.linkname
        if member.issym():
            target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), target))
        try:
            member = members.getmember(target)
        except KeyError:
            raise ValueError(f"{member.name} is a link to {target}, which is not in it") from None
        if member.name in names:
            raise ValueError(f"{member.name} is a link to itself")
        names.add(member.name)
    return member.offset_data, member.size


def _behind(file: BinaryIO, end: int) -> str:
    """What is wrong behind the last member: tarfile takes a damaged header for the end."""
    file.seek(end)
    rest = file.read(_PADDING)
    damaged = len(rest) - len(rest.lstrip(b"\0"))
    return f"damaged, or another tar, from byte {end + damaged} on" if rest.strip(b"\0") else ""


def _stands(shard: Shard) -> bool:
    """What could not be read from an address is tried again: the network may have been the reason."""
    return not (shard.error and storage.is_remote(shard.path))


def _unread(tar: str, reason: str) -> Shard:
    return Shard(tar, *storage.file_stamp(tar), error=reason, version=VERSION)


def _opened(tar: str) -> BinaryIO:
    """Headers are small and far from each other; a local file is read unbuffered, so that nothing else is."""
    size = storage.size_of(tar)
    if storage.is_remote(tar):
        return io.BufferedReader(storage.Slice(tar, size, block=1 << 13))
    return open(tar, "rb", buffering=1 << 11)


def _label(data: bytes, kind: str) -> str:
    text = data.decode("utf-8-sig", "replace").strip()
    if kind == "cls":
        return text
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    for key in _LABELS:
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
            return str(int(value))
    return ""


def _counted(path: str) -> list[str]:
    match = _RANGE.search(path)
    if not match:
        return [path]
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise ValueError(f"{path}: {match[0]} counts downwards")
    numbers = (f"{number:0{len(match[1])}}" for number in range(first, last + 1))
    return [whole for number in numbers for whole in _counted(f"{path[: match.start()]}{number}{path[match.end() :]}")]


@functools.cache
def _say(line: str) -> None:
    """Once, however often the list is read."""
    print(line, file=sys.stderr)
