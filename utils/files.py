"""Write files atomically, so that readers see the old content or the new one, and make folders that do not stay."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_REMOVE_AT_END_OF_INPUT = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"


@contextmanager
def temporary_folder(prefix: str = "clipline-") -> Iterator[str]:
    """Yield the path of a new folder. It is removed after the block, and also if this process is killed inside it.

    A small process waits for that: its input ends when this process does, for whatever reason.
    """
    folder = tempfile.mkdtemp(prefix=prefix)
    command = [sys.executable, "-I", "-S", "-c", _REMOVE_AT_END_OF_INPUT, folder]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # Ctrl-C does not reach it
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` if the block succeeds and removed if not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Turn an OSError of writing to `path` into a ValueError that names it, the reason and the free space."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise ValueError(f"{path}: cannot be written: {error.strerror} ({free / 1e9:.1f} GB free)") from None


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a UTF-8 CSV file atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(list(header))
        writer.writerows(rows)
