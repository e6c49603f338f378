"""Facts about files, a line of JSON each, kept in a file beside the list they were found for.

What is read is kept as it comes, so that work that was killed goes on where it stopped; a file whose size or time of
change differs is read again.
"""

from __future__ import annotations

import contextlib
import dataclasses
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

from pipelines.storage import file_stamps, place_of, stamp
from utils.files import replace_text
from utils.workers import worker_pool


class Fact(Protocol):
    """A frozen dataclass of plain values that says of which state of which file it is."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def changed(self) -> int: ...
    @property
    def version(self) -> int: ...


F = TypeVar("F", bound=Fact)


@dataclass(frozen=True)
class Reading(Generic[F]):
    """How facts of a kind come about.

    `read` is a module's function that does not raise for a bad file, `failed(path, why)` the fact of one that brings a
    fault to light or ends the process which reads it. `version` is of what a fact says, `name` names them in messages.
    `holds`: whether what a fact says is still so, beside its file. `pool_from`: files from which processes pay.
    """

    kind: type[F]
    version: int
    read: Callable[[str], F]
    failed: Callable[[str, str], F]
    name: str
    pool_from: int = 200
    holds: Callable[[F], bool] = bool


def refresh(paths: Sequence[str], cache: Path, reading: Reading[F], workers: int | None = None) -> dict[str, F]:
    """A fact for each path: from `cache`, or read. `workers`: processes (None: one a core). What the cache says of
    other files stays in it. A cache that cannot be written costs time at the next start, no more."""
    distinct = list(dict.fromkeys(paths))
    known = {fact.path: fact for fact in _read(cache, reading) if fact.version == reading.version}

    stamps = file_stamps(place_of(path).file for path in distinct)  # many paths may be of one tar

    def stands(path: str) -> bool:
        fact = known.get(path)
        return fact is not None and stamp(path, stamps.__getitem__) == (fact.size, fact.changed) and reading.holds(fact)

    stale = [path for path in distinct if not stands(path)]
    if stale:
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
        name = cache.name.removesuffix(".jsonl").replace(f".{reading.name}", "")
        facts = tqdm(
            _map(reading, stale, workers or len(os.sched_getaffinity(0))), total=len(stale),
            desc=f"{reading.name} {name}", unit="file", disable=not sys.stderr.isatty(),
        )  # fmt: skip
        known.update((fact.path, fact) for fact in _kept(cache, facts))
        others = known.keys() - set(distinct)
        write(cache, [known[path] for path in [*distinct, *sorted(others)]], reading.name)
    return known


def _map(reading: Reading[F], paths: Sequence[str], workers: int) -> Iterator[F]:
    """The fact of each path, in order; a file that ends its process is found by reading its neighbours one by one."""
    workers = min(workers, 32)
    read = partial(_read_or_name, reading.read, reading.failed)
    if workers < 2 or len(paths) < reading.pool_from:
        yield from map(read, paths)
        return
    chunk, done = max(min(32, len(paths) // (8 * workers)), 1), 0
    with worker_pool(workers) as pool:
        try:
            for fact in pool.map(read, paths, chunksize=chunk):
                done += 1
                yield fact
            return
        except BrokenProcessPool:
            pass
    suspects = list(paths[done : done + 2 * workers * chunk])
    done += len(suspects)
    while suspects:
        with worker_pool(1) as pool:
            try:
                while suspects:
                    yield pool.submit(read, suspects[0]).result()
                    suspects.pop(0)
            except BrokenProcessPool:
                yield reading.failed(suspects.pop(0), "reading it ends the process that does")
    yield from _map(reading, paths[done:], workers)


def _read_or_name(read: Callable[[str], F], failed: Callable[[str, str], F], path: str) -> F:
    """Return the fact of a file; a fault of ours that it brings to light is its reason, and stops no others."""
    try:
        return read(path)
    except Exception as error:
        return failed(path, f"{type(error).__name__}: {error} (a fault of Clipline's: please report it with this file)")


def _kept(cache: Path, facts: Iterable[F]) -> Iterable[F]:
    """The facts, each written to the end of the cache once it is there; if it cannot be, write() says so."""
    with contextlib.ExitStack() as stack:
        file: TextIO | None = None
        with contextlib.suppress(OSError):
            file = stack.enter_context(cache.open("a", buffering=1))
            file.write("\n")  # the last line may have been cut short
        for fact in facts:
            if file:
                with contextlib.suppress(OSError):
                    file.write(_line(fact))
            yield fact


def _read(cache: Path, reading: Reading[F]) -> list[F]:
    facts: list[F] = []
    problem = ""
    try:
        for line in filter(None, cache.read_text().splitlines()):
            try:
                values = json.loads(line)
            except ValueError as error:
                problem = str(error)  # a line that was being written when the process was killed
                continue
            facts.append(reading.kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}))
        if problem and not facts:
            raise ValueError(problem)
        return facts
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print(f"{cache}: not a readable {reading.name} ({error}); reading every file again", file=sys.stderr)
        return []


def _line(fact: Any) -> str:
    return json.dumps(dataclasses.asdict(fact)) + "\n"


def write(cache: Path, facts: Sequence[Fact], what: str) -> None:
    """All facts of a cache; if it cannot be written, that is said, and no more."""
    try:
        replace_text(cache, "".join(map(_line, facts)))
    except OSError as error:
        print(
            f"{cache}: the {what} cannot be kept ({error.strerror}); it will be built again next time", file=sys.stderr
        )
