"""The words of a command, key=value and others, as a dataclass of settings."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def parse(kind: type[Settings], words: Sequence[str], plain: Sequence[str] = ()) -> tuple[list[str], Settings]:
    """-> as many other words as `plain` has names for, and `kind`, a dataclass with defaults, filled from key=value.

    A value has the type of its field's default (None: a whole number); commas part a tuple's. ValueError names the word
    and what was expected.
    """
    known = {f.name: f.default for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    others: list[str] = []
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals and plain and not word.startswith("-"):
            others.append(word)
            continue
        if not equals or key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}=?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"{word}: not a key=value that is known; {hint}")
        default: Any = known[key]
        make = int if default is None else type(default)
        try:
            values[key] = tuple(value.split(",")) if isinstance(default, tuple) else make(value)
        except ValueError:
            raise ValueError(f"{word}: expected a {'whole ' if make is int else ''}number") from None
    if len(others) != len(plain):
        raise ValueError(f"expected {' '.join(plain)} [key=value ...], got {' '.join(others) or 'none of them'}")
    return others, kind(**values)
