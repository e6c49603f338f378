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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from tqdm import tqdm

from pipelines.world import worker_pool

POOL_PAYS_FROM = 200  # files; below it, starting processes takes longer than the work


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


def refresh(
    paths: Sequence[str], cache: Path, kind: type[F], version: int, read: Callable[[str], F], what: str,
    workers: int | None = None, pool_from: int = POOL_PAYS_FROM,
) -> dict[str, F]:  # fmt: skip
    """A fact for each path: from `cache`, or from `read`, which is a module's function that never raises.

    `version` is of what a fact says; those of another are read again. `what` names them in messages. `workers`:
    processes (None: one a core). A cache that cannot be written costs time at the next start, no more.
    """
    distinct = list(dict.fromkeys(paths))
    known = {fact.path: fact for fact in _read(cache, kind, what) if fact.version == version}
    stale = [p for p in distinct if p not in known or stamp(p) != (known[p].size, known[p].changed)]
    if stale:
        name = cache.name.removesuffix(".jsonl").replace(f".{what}", "")
        facts = tqdm(
            _map(read, stale, workers, pool_from), total=len(stale), desc=f"{what} {name}", unit="file",
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        known.update((fact.path, fact) for fact in _kept(cache, facts))
        _write(cache, [known[path] for path in distinct], what)
    return known


def stamp(path: str) -> tuple[int, int]:
    """(bytes, nanoseconds of its last change) of a file; (0, 0) if there is none."""
    try:
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    except OSError:
        return 0, 0


def _map(read: Callable[[str], F], paths: Sequence[str], workers: int | None, pool_from: int) -> Iterable[F]:
    workers = min(workers or len(os.sched_getaffinity(0)), 32)
    if workers < 2 or len(paths) < pool_from:
        yield from map(read, paths)
        return
    with worker_pool(workers) as pool:
        yield from pool.map(read, paths, chunksize=max(min(32, len(paths) // (8 * workers)), 1))


def _kept(cache: Path, facts: Iterable[F]) -> Iterable[F]:
    """The facts, each written to the end of the cache once it is there; if it cannot be, _write() says so."""
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


def _read(cache: Path, kind: type[F], what: str) -> list[F]:
    try:
        lines = [line for line in cache.read_text().splitlines() if line]
        facts: list[F] = []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
            except ValueError:
                if facts and number == len(lines):
                    break  # it was killed while it wrote this
                raise
            facts.append(kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}))
        return facts
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print(f"{cache}: not a readable {what} ({error}); reading every file again", file=sys.stderr)
        return []


def _line(fact: Any) -> str:
    return json.dumps(dataclasses.asdict(fact)) + "\n"


def _write(cache: Path, facts: Sequence[Fact], what: str) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text("".join(map(_line, facts)))
        temporary.replace(cache)
    except OSError as error:
        print(
            f"{cache}: the {what} cannot be kept ({error.strerror}); it will be built again next time", file=sys.stderr
        )
        temporary.unlink(missing_ok=True)
