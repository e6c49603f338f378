"""Write files atomically: readers see the old content or the new one, never a part."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
