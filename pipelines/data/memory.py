"""Read videos with labels that a program holds in memory instead of a list file.

    [("a.mp4", 3), ("b.mp4", 0)]                path and class, a number from 0 on
    [("a.mp4", "archery"), ("b.mp4", "run")]    or all of them names, which are numbered in sorted order
    [("a.mp4", 2.5, 12.0, 3)]                   path, start and end in seconds, class
    [("a.mp4", 0.7), ("b.mp4", [0, 1, 1])]      a float or a vector instead of a class, passed through
    [("a.mp4", ["run", "jump"])]                with multi_label=True: any number of classes

Relative paths refer to data.root, or else to the folder in which the program runs.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from pipelines.data.annotations import IN_MEMORY
from pipelines.data.list_lines import Entry, LabelSpan, parse_interval


def read_memory(
    values: Sequence[Any], has_classes: bool = False, multi_label: bool = False
) -> tuple[str, list[Entry], np.ndarray | None]:
    """Return a name for the list, its entries, and the labels (N, ...) float32 if they are no classes.

    The name is an address made of the entries' digest, so that the index is kept in the user's cache folder. With
    `has_classes` numbers and names may be mixed: what they mean is known. With `multi_label` a label is a sequence of
    numbers or names. Raises ValueError with the position of an
    entry that is none.
    """
    if not len(values):
        raise ValueError("a list without videos: expected at least one ('a.mp4', label)")
    rows = [_split(number, value) for number, value in enumerate(values)]
    digest = hashlib.sha256("\n".join(sorted({path for path, _, _, _ in rows})).encode()).hexdigest()
    name = f"{IN_MEMORY}{digest[:12]}"
    labels = [label for _, _, _, label in rows]
    if multi_label:
        return name, [_with_labels(number, *row) for number, row in enumerate(rows)], None
    targets = None
    if not has_classes:
        _check_not_mixed(labels)
    if not all(isinstance(label, (str, Integral)) for label in labels):
        targets = _to_targets(labels)
        labels = [""] * len(rows)
    entries = [
        Entry(path, str(label), f"entry {number}", start=start, end=end)
        for number, ((path, start, end, _), label) in enumerate(zip(rows, labels, strict=True))
    ]
    return name, entries, targets


def _split(number: int, value: Any) -> tuple[str, float, float, Any]:
    """Return path, start, end and label of an entry."""
    expected = "expected (path, label) or (path, start, end, label)"
    if isinstance(value, (str, os.PathLike)) or not isinstance(value, Sequence) or len(value) not in (2, 4):
        raise ValueError(f"entry {number}: {value!r}: {expected}")
    path, *interval, label = value
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(f"entry {number}: {value!r}: {expected}, where path is text")
    if isinstance(label, (bool, type(None), dict)) or (isinstance(label, Integral) and int(label) < 0):
        expected = "a class (a number from 0 on, or a name), a float or a vector"
        raise ValueError(f"entry {number}: label {label!r}: expected {expected}")
    start, end = parse_interval(*interval, line=f"entry {number}") if interval else (0.0, math.inf)
    return os.fspath(path), start, end, label


def _with_labels(number: int, path: str, start: float, end: float, label: Any) -> Entry:
    """Return an entry with several labels."""
    labels = [label] if isinstance(label, (str, Integral)) else list(label)
    if not all(isinstance(value, (str, Integral)) for value in labels):
        raise ValueError(f"entry {number}: label {label!r}: expected names or numbers of classes")
    spans = tuple(LabelSpan(str(value)) for value in labels)
    return Entry(path, "", f"entry {number}", start=start, end=end, labels=spans)


def _check_not_mixed(labels: Sequence[Any]) -> None:
    """Raise ValueError if some classes are numbers and some names, since names would get numbers that are taken."""
    kinds = {isinstance(label, str): (number, label) for number, label in reversed(list(enumerate(labels)))}
    if len(kinds) == 2 and isinstance(kinds[False][1], Integral):
        (number, label), (other, name) = kinds[False], kinds[True]
        raise ValueError(
            f"entry {number}: label {label!r} is a number, and {name!r} of entry {other} a name; expected one kind, or "
            "classes="
        )


def _to_targets(labels: Sequence[Any]) -> np.ndarray:
    """Stack labels that are floats or vectors: (N, ...) float32."""
    arrays = []
    for number, label in enumerate(labels):
        try:
            arrays.append(np.asarray(label, np.float32))
        except (TypeError, ValueError):
            raise ValueError(f"entry {number}: label {label!r}: expected numbers, as in other entries") from None
        if arrays[-1].shape != arrays[0].shape:
            shapes = f"{arrays[-1].shape}, and {arrays[0].shape} in entry 0"
            raise ValueError(f"entry {number}: a label of shape {shapes}; expected the same in all")
    return np.stack(arrays)
