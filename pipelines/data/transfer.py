"""Download files over HTTP so that an interruption of the connection or the process costs only what was in flight.

A file grows as NAME.part beside its target and is renamed when it is complete. NAME.part.json keeps which version of
the file the part belongs to, so that the next attempt, in this process or a later one, asks for the rest of that
version (Range with If-Range) and starts over if the server has another one. Two versions are never mixed: a part whose
version the server does not report, by a strong ETag or Last-Modified, is not continued.

The standard library's urllib does the requests. fsspec, which Clipline reads videos with, would need aiohttp for HTTP,
and its get() neither resumes nor tells which version of a file it reads.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from utils.files import atomic_write_text, write_errors_named

_CHUNK = 1 << 20  # bytes per read
_MAX_PAUSE = 30.0  # seconds between two attempts
# HTTP statuses that another attempt may not meet: many servers and their proxies have numbers of their own from 500 on.
_TRANSIENT = {408, 425, 429, *range(500, 600)} - {501, 505}
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, OSError)  # OSError: resets and timeouts
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_HEADERS = {"User-Agent": "clipline", "Accept-Encoding": "identity"}


class TransferError(ValueError):
    """A file that could not be fetched, for a reason that lies with its server, its address or the network."""


class Stopped(Exception):
    """The transfer was asked to stop; what has arrived is kept for the next call."""


class _Dropped(Exception):
    """An attempt that ended before the file was complete, for a reason that another attempt may not meet."""


class Version(NamedTuple):
    """Hold what a server reports of one version of a file; empty or None where it reports nothing."""

    etag: str = ""
    last_modified: str = ""
    size: int | None = None  # bytes

    @property
    def validator(self) -> str:
        """Return what If-Range takes: a strong ETag, which changes with any byte, or else the date, or nothing."""
        return self.last_modified if self.etag.startswith("W/") or not self.etag else self.etag


@dataclass(frozen=True)
class Transfer:
    """Say how files are fetched, and who is told."""

    retries: int = 5  # attempts in a row that bring no byte further than any before them
    timeout: float = 30.0  # seconds without an answer after which a connection counts as dropped
    pause: float = 1.0  # seconds before the first retry, doubled for each further one that brings nothing
    stop: threading.Event = field(default_factory=threading.Event)  # set it to end every transfer with Stopped
    log: Callable[[str], None] = print  # told of every attempt that failed
    progress: Callable[[int], None] = lambda num_bytes: None  # told of bytes as they arrive


def fetch_file(address: str, target: Path, transfer: Transfer) -> int:
    """Download an address to `target` unless it is there, continuing a part of it; return its size in bytes.

    Raises TransferError with the address and the reason for a server that refuses, that does not report how long the
    file is, or that dropped `transfer.retries` + 1 attempts in a row; ValueError for a target that cannot be written,
    and Stopped if `transfer.stop` is set.
    """
    if target.exists():
        return target.stat().st_size
    check_address(address)
    part = target.with_name(f"{target.name}.part")
    furthest, failures = 0, 0
    while True:
        try:
            _attempt(address, part, transfer)
            break
        except _Dropped as dropped:
            size = _size(part)
            failures = 0 if size > furthest else failures + 1
            furthest = max(furthest, size)
            if failures > transfer.retries:
                attempts = "1 attempt" if failures == 1 else f"{failures} attempts in a row"
                raise TransferError(f"{address}: {dropped}; {attempts} got no further") from None
            count = f" ({failures} of {transfer.retries})" if failures else ""
            transfer.log(f"{address}: {dropped}; trying again{count}")
        if transfer.stop.wait(min(transfer.pause * 2 ** max(failures - 1, 0), _MAX_PAUSE)):
            raise Stopped
    part.replace(target)
    _version_path(part).unlink(missing_ok=True)
    return target.stat().st_size


def remote_size(address: str, transfer: Transfer) -> int | None:
    """Return the size of a file on its server in bytes, or None if the server does not report it."""
    check_address(address)
    request = urllib.request.Request(address, headers=_HEADERS, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=transfer.timeout) as response:
            return _content_length(response.headers)
    except _NETWORK_ERRORS:  # fetch_file() finds out whether the file can be fetched all the same
        return None


def check_address(address: str) -> None:
    """Raise ValueError for what is not an HTTP address."""
    if not re.match(r"https?://[^/]", address):
        raise ValueError(f"{address}: expected an address that begins with http:// or https://")


def part_size(target: Path) -> int:
    """Return how many bytes of a file are there, complete or in part."""
    return _size(target) or _size(target.with_name(f"{target.name}.part"))


def _attempt(address: str, part: Path, transfer: Transfer) -> None:
    """Fetch what is missing of a part. Raises _Dropped if that does not complete it."""
    version = _read_version(part, address)
    start = _size(part) if version.validator else 0
    if start and start == version.size:  # the process ended before it could rename the part
        return
    headers = dict(_HEADERS)
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version.validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=transfer.timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # the file is now shorter than the part
            _discard(part, transfer)
            raise _Dropped(f"the server has no byte {start}; starting over") from None
        reason = f"HTTP status {error.code} ({error.reason})"
        raise (_Dropped(reason) if error.code in _TRANSIENT else TransferError(f"{address}: {reason}")) from None
    except _NETWORK_ERRORS as error:
        raise _Dropped(_reason(error)) from None
    with response:
        if response.status == 206:
            if not _continues(response.headers, version, start):
                _discard(part, transfer)
                raise _Dropped("the file has changed on its server; starting over")
            version = version._replace(size=version.size or _total_size(response.headers))
        else:
            transfer.progress(-_size(part))  # what was there is written over
            start, version = 0, _version_of(response.headers, _content_length(response.headers))
            if version.size is None and not response.chunked:
                raise TransferError(f"{address}: the server does not report how long the file is")
        _receive(response, part, start, lambda: _write_version(part, address, version), transfer)
    if version.size is not None and _size(part) < version.size:
        raise _Dropped(f"the connection ended at byte {_size(part)} of {version.size}")


def _receive(
    response: http.client.HTTPResponse, part: Path, start: int, begin: Callable[[], None], transfer: Transfer
) -> None:
    """Write the body of an answer to the part from byte `start` on; `begin` is called before the first byte of all."""
    with write_errors_named(part), open(part, "ab" if start else "wb") as file:
        if not start:
            begin()
        while True:
            if transfer.stop.is_set():
                raise Stopped
            try:
                chunk = response.read1(_CHUNK)
            except _NETWORK_ERRORS as error:
                file.flush()
                raise _Dropped(f"{_reason(error)} at byte {file.tell()}") from None
            if not chunk:
                return
            file.write(chunk)
            transfer.progress(len(chunk))


def _continues(headers: Mapping[str, str], version: Version, start: int) -> bool:
    """Return whether a 206 answer holds the bytes from `start` on of the same version of the file.

    A server that knows If-Range answers so for no other version; one that does not is found out by what it reports.
    """
    content_range = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if not content_range or int(content_range[1]) != start:
        return False
    rest = _version_of(headers, _total_size(headers))
    return (
        rest.etag == version.etag
        and rest.last_modified in ("", version.last_modified)  # next to an ETag it need not be repeated
        and (rest.size is None or version.size is None or rest.size == version.size)
    )


def _total_size(headers: Mapping[str, str]) -> int | None:
    """Return the size of the whole file that an answer with a part of it reports."""
    content_range = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    return int(content_range[2]) if content_range and content_range[2] != "*" else None


def _discard(part: Path, transfer: Transfer) -> None:
    """Remove what there is of a part."""
    transfer.progress(-_size(part))
    part.unlink(missing_ok=True)


def _version_of(headers: Mapping[str, str], size: int | None) -> Version:
    return Version(headers.get("ETag", ""), headers.get("Last-Modified", ""), size)


def _content_length(headers: Mapping[str, str]) -> int | None:
    length = headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _version_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_version(part: Path, address: str, version: Version) -> None:
    atomic_write_text(_version_path(part), json.dumps({"address": address, **version._asdict()}) + "\n")


def _read_version(part: Path, address: str) -> Version:
    """Return the version that a part belongs to; an empty one if that is unknown, or if it is of another address."""
    try:
        values = json.loads(_version_path(part).read_text(encoding="utf-8"))
        return Version(**values) if values.pop("address") == address else Version()
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):  # after a power cut it may be empty
        return Version()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: BaseException) -> str:
    """Describe what went wrong with a connection in a few words."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection ended early"
    return (cause.strerror if isinstance(cause, OSError) else "") or str(cause) or type(cause).__name__
