"""Class names and their numbers: shipped maps, files, what a list names, and subsets.

data.classes is one of

    (empty)              the names or numbers found in the training list
    k400 · k600 · k700   Kinetics' classes, in alphabetical order
    FILE                 one name a line; 'number name' a line (UCF-101); JSON of names and numbers
    10                   a subset: the first ten of the training list's
    archery,bowling      a subset: these, in this order
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipelines.data.annotations import read_text

KINETICS = ("k400", "k600", "k700")


def is_subset(setting: str) -> bool:
    """Whether data.classes names some of the training list's classes, so that other videos are left out."""
    return setting not in KINETICS and not os.path.exists(setting) and (setting.isdecimal() or "," in setting)


def choose_names(setting: str, of_list: Callable[[], list[str]]) -> list[str]:
    """The names that data.classes stands for; `of_list` gives those of the training list where they are asked for."""
    if setting in KINETICS:
        return read_classes(Path(__file__).parent / "labels" / f"{setting}.txt")
    if setting and not is_subset(setting):
        return read_classes(setting)
    names = of_list()
    if setting.isdecimal():
        if not 0 < int(setting) <= len(names):
            raise ValueError(f"data.classes={setting}: the training list has {len(names)} classes")
        return names[: int(setting)]
    chosen = [part.strip() for part in setting.split(",") if part.strip()]
    known = {folded(name) for name in names}
    if len({folded(name) for name in chosen}) < len(chosen):
        raise ValueError(f"data.classes={setting}: a class is named twice")
    for name in chosen:
        if folded(name) not in known:
            raise ValueError(f"data.classes={setting}: '{name}' is no class of the training list{_near(name, names)}")
    return chosen or names


def read_classes(path: str | Path) -> list[str]:
    """Class names from a file; a name's position, or the number beside it, is the label."""
    text = read_text(path)
    if text.lstrip().startswith("{"):
        return _numbered_names(path, _json_pairs(path, text))
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    pairs = [name.partition(" ") for name in names]
    if [number for number, _, _ in pairs] == [str(n) for n in range(1, len(names) + 1)] and all(p[2] for p in pairs):
        names = [name.strip() for _, _, name in pairs]
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}:{number}: an empty line where a class name is expected")
        first = [folded(n) for n in names].index(folded(name))
        if first != number - 1:
            raise ValueError(f"{path}:{number}: '{name}' stands in line {first + 1} already")
    if not names:
        raise ValueError(f"{path}: no class names in it")
    return names


def _json_pairs(path: str | Path, text: str) -> list[tuple[str, int]]:
    try:
        return [(str(name), int(number)) for name, number in json.loads(text).items()]
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path}: expected names and their numbers, {{"archery": 0, ...}}: {error}') from None


def _numbered_names(path: str | Path, pairs: Sequence[tuple[str, int]]) -> list[str]:
    ordered = sorted(pairs, key=lambda pair: pair[1])
    if [number for _, number in ordered] != list(range(len(ordered))):
        raise ValueError(f"{path}: the numbers of its {len(ordered)} names are not 0 to {len(ordered) - 1}")
    return [name for name, _ in ordered]


def named_by_list(labels: Iterable[str], numeric: bool = True) -> list[str]:
    """The names, sorted, that labels are or, if all are numbers (and that is meant), the numbers up to the largest."""
    distinct = set(labels)
    if numeric and all(label.isdecimal() for label in distinct):
        return [str(number) for number in range(max(map(int, distinct), default=-1) + 1)]
    return sorted(distinct)


def number_labels(
    labels: Iterable[tuple[str, str]], classes: Sequence[str], numeric: bool = True, subset: bool = False
) -> dict[str, int]:
    """-> the number of each label. `labels` are (label, where it stands); `numeric`: numbers may stand for themselves.

    Where the classes are a subset, labels that it lacks are left out; else they are a ValueError that says where.
    """
    places: dict[str, str] = {}  # label -> where it stands first
    for label, where in labels:
        places.setdefault(label, where)
    if not classes:
        if numeric and all(label.isdecimal() for label in places):
            return {label: int(label) for label in places}
        return {label: number for number, label in enumerate(sorted(places))}
    known = {folded(name): number for number, name in enumerate(classes)}
    numbers = {}
    for label, where in places.items():
        if folded(label) in known:  # first: a class may be named by a number
            numbers[label] = known[folded(label)]
        elif not subset and label.isdecimal() and int(label) < len(classes):
            numbers[label] = int(label)
        elif not subset:
            raise ValueError(f"{where}: label '{label}' is none of the {len(classes)} classes{_near(label, classes)}")
    return numbers


def folded(name: str) -> str:
    """Names that differ in underscores, outer spaces and case alone are equal; numbers, in zeros before them."""
    plain = name.replace("_", " ").strip().lower()
    return str(int(plain)) if plain.isdecimal() else plain


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
