"""Remember what was found out about each file of a list: one line of JSON per file, in a cache beside the list.

Results are appended as they come, so a scan that was killed continues where it stopped. A file whose size or mtime has
changed is scanned again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TextIO, TypeVar

from tqdm import tqdm

from pipelines.storage import fingerprints
from utils.files import atomic_write_text
from utils.workers import worker_pool

_MAX_WORKERS = 32
_NONE = dataclasses.MISSING
_MAX_CHUNK = 32  # files per task of a worker


class CacheEntry(Protocol):
    """A frozen dataclass of plain values; path, size and mtime_ns tell which state of which file it describes."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def version(self) -> int: ...


EntryT = TypeVar("EntryT", bound=CacheEntry)


def _always_valid(entry: CacheEntry) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Scanner(Generic[EntryT]):
    """Define one kind of cache entry: how a file is scanned and when its entry is out of date.

    `scan` and `failed` are picklable functions. `scan` does not raise for a bad file; `failed(path, reason)` makes the
    entry of a file on which it raises all the same or crashes its process.
    """

    name: str  # of the cache, in messages
    entry_type: type[EntryT]
    version: int  # entries of another version are scanned again
    scan: Callable[[str], EntryT]
    failed: Callable[[str, str], EntryT]
    is_valid: Callable[[EntryT], bool] = _always_valid  # of an entry whose file has not changed
    min_files_for_pool: int = 200  # fewer are scanned in this process: starting workers takes seconds


def update_cache(
    paths: Sequence[str], cache: Path, scanner: Scanner[EntryT], workers: int | None = None
) -> dict[str, EntryT]:
    """Return the entry of each path; scan the files whose entry is missing in `cache` or out of date.

    `workers` is the number of processes (None: one per core). Entries of other files stay in the cache. If it cannot be
    written, a warning is printed and the files are scanned again the next time.
    """
    distinct = list(dict.fromkeys(paths))
    found = _read_cache(cache, scanner)
    entries = {entry.path: entry for entry in found if entry.version == scanner.version}
    current = fingerprints(distinct)

    def is_up_to_date(path: str) -> bool:
        entry = entries.get(path)
        return entry is not None and current[path] == (entry.size, entry.mtime_ns) and scanner.is_valid(entry)

    stale = [path for path in distinct if not is_up_to_date(path)]
    if stale:
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
        list_name = cache.name.removesuffix(".jsonl").replace(f".{scanner.name}", "")
        scanned = tqdm(
            _scan_all(scanner, stale, workers or len(os.sched_getaffinity(0))),
            total=len(stale),
            desc=f"{scanner.name} {list_name}",
            unit="file",
            disable=not sys.stderr.isatty(),
        )
        changed = {e.path: e for e in _append_to_cache(cache, (e for e in scanned if entries.get(e.path) != e))}
        entries |= changed
        if changed or len(entries) < len(found):
            other_paths = entries.keys() - set(distinct)
            write_cache(cache, [entries[path] for path in [*distinct, *sorted(other_paths)]], scanner.name)
    return entries


def _scan_all(scanner: Scanner[EntryT], paths: Sequence[str], workers: int) -> Iterator[EntryT]:
    """Yield the entry of each path, in order.

    If a file crashes its worker process, it is found by scanning the files around it one by one.
    """
    workers = min(workers, _MAX_WORKERS)
    scan = partial(_scan_or_report, scanner.scan, scanner.failed)
    if workers < 2 or len(paths) < scanner.min_files_for_pool:
        yield from map(scan, paths)
        return
    chunk, done = max(min(_MAX_CHUNK, len(paths) // (8 * workers)), 1), 0
    with worker_pool(workers) as pool:
        try:
            for entry in pool.map(scan, paths, chunksize=chunk):
                done += 1
                yield entry
            return
        except BrokenProcessPool:
            pass
    suspects = list(paths[done : done + 2 * workers * chunk])
    done += len(suspects)
    while suspects:
        with worker_pool(1) as pool:
            try:
                while suspects:
                    yield pool.submit(scan, suspects[0]).result()
                    suspects.pop(0)
            except BrokenProcessPool:
                yield scanner.failed(suspects.pop(0), "it crashes the process that reads it")
    yield from _scan_all(scanner, paths[done:], workers)


def _scan_or_report(scan: Callable[[str], EntryT], failed: Callable[[str, str], EntryT], path: str) -> EntryT:
    """Scan a file; a bug that it reveals becomes the reason in its entry and does not stop the scan."""
    try:
        return scan(path)
    except Exception as error:
        return failed(path, f"{type(error).__name__}: {error} (a bug in Clipline: please report it with this file)")


def _append_to_cache(cache: Path, entries: Iterable[EntryT]) -> Iterable[EntryT]:
    """Yield the entries, each after it was appended to the cache if that is possible; write_cache() reports if not."""
    with contextlib.ExitStack() as stack:
        file: TextIO | None = None
        for number, entry in enumerate(entries):
            with contextlib.suppress(OSError):
                if not number:
                    file = stack.enter_context(cache.open("a", buffering=1))
                    file.write("\n")  # the last line may have been cut short
            if file:
                with contextlib.suppress(OSError):
                    file.write(_to_line(entry))
            yield entry


def _read_cache(cache: Path, scanner: Scanner[EntryT]) -> list[EntryT]:
    try:
        return _to_entries(scanner.entry_type, _parse_lines(cache.read_text()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print(f"{cache}: not a readable {scanner.name} ({error}); reading every file again", file=sys.stderr)
        return []


def _parse_lines(text: str) -> list[dict[str, Any]]:
    """Parse lines of JSON; one that was being written when the process was killed is left out."""
    with contextlib.suppress(ValueError):  # all at once is twice as fast as one by one
        # A scan that was killed leaves an empty line where the next one went on.
        joined = text.strip().replace("\n\n", "\n").replace("\n", ",")
        parsed: list[dict[str, Any]] = json.loads(f"[{joined}]")
        return parsed
    parsed, problem = [], ""
    for line in filter(None, text.splitlines()):
        try:
            parsed.append(json.loads(line))
        except ValueError as error:
            problem = str(error)
    if problem and not parsed:
        raise ValueError(problem)
    return parsed


def _to_entries(entry_type: type[EntryT], records: Iterable[dict[str, Any]]) -> list[EntryT]:
    """Make entries of what JSON has of them, where tuples are lists.

    The start of a run reads hundreds of thousands, and the constructor of a frozen dataclass takes longer than all the
    rest. What a record leaves out, its entry has from the class, where dataclasses keep default values.
    """
    names = entry_type.__dataclass_fields__.keys()  # type: ignore[attr-defined]
    required, tuples = names - _defaults(entry_type).keys(), _tuple_fields(entry_type)
    entries = []
    for values in records:
        for key in tuples:
            if key in values:
                values[key] = tuple(values[key])
        if required <= values.keys() <= names:
            entry = object.__new__(entry_type)
            object.__setattr__(entry, "__dict__", values)
        else:
            entry = entry_type(**values)  # raises TypeError, which names the field
        entries.append(entry)
    return entries


def write_cache(cache: Path, entries: Sequence[CacheEntry], name: str) -> None:
    """Replace the whole cache; if it cannot be written, print a warning. `name` says what is cached."""
    try:
        atomic_write_text(cache, "".join(map(_to_line, entries)))
    except OSError as error:
        print(
            f"{cache}: the {name} cannot be saved ({error.strerror}); it will be built again next time", file=sys.stderr
        )


def _to_line(entry: Any) -> str:
    defaults = _defaults(entry.__class__)
    values = {name: value for name, value in entry.__dict__.items() if value != defaults.get(name, _NONE)}
    return json.dumps(values) + "\n"


def _tuple_fields(entry_type: Any) -> list[str]:
    """Return the fields of an entry that hold tuples, as their defaults do."""
    return [name for name, value in _defaults(entry_type).items() if isinstance(value, tuple)]


@functools.cache
def _defaults(entry_type: Any) -> dict[str, Any]:
    """Return the values that fields of an entry have if they are not given, and are not written then."""
    return {field.name: field.default for field in dataclasses.fields(entry_type) if field.default is not _NONE}
