"""Read a list or a class folder into samples: which file, which class.

The list formats are in `pipelines.data.annotations`, class names in `pipelines.data.classes`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.data.annotations import Entry, base_folder, read_entries
from pipelines.data.classes import choose_names, named_by_list, number_labels
from pipelines.storage import VIDEO_SUFFIXES, files_below, is_remote, join


class Clip(NamedTuple):
    path: str
    label: int


def read_list(path: str | Path, root: str | Path = "", classes: Sequence[str] = (), subset: bool = False) -> list[Clip]:
    """The clips of a list file or a class folder, in its order (a folder: sorted).

    Relative paths are under `root`, a folder or address, or else the list's own folder; names without a folder
    (Kinetics' CSV, Something-Something) are looked for below it, and keep the path they should have if there is none.
    With `classes` every label must be a name of it (`_` and space count as equal) or a number below its length; with
    `subset` clips of other classes are left out. Without, names are numbered in sorted order.
    Raises ValueError with file:line for a malformed line, and for a list that is missing or empty.
    """
    entries = read_entries(str(path))
    numbers = number_labels([(entry.label, entry.where) for entry in entries], classes, not os.path.isdir(path), subset)
    base = base_folder(str(path), root)
    found = _Finder(base or ".") if any(entry.stem for entry in entries) else None
    clips = [
        Clip(found(entry) if found else join(base, entry.file), numbers[entry.label])
        for entry in entries if entry.label in numbers
    ]  # fmt: skip
    if not clips:
        raise ValueError(f"{path}: no video of the {len(classes)} classes that data.classes names")
    return clips


def class_names(path: str | Path, classes: str | Path = "") -> list[str]:
    """The names of all classes: as data.classes says, or else what the training list at `path` names or numbers."""

    def of_list() -> list[str]:
        return named_by_list([entry.label for entry in read_entries(str(path))], not os.path.isdir(path))

    return choose_names(str(classes), of_list)


class _Finder:
    """Videos below a folder by their names without suffix; the folder is walked once."""

    def __init__(self, base: str):
        self.base = base = base.rstrip("/") if is_remote(base) else os.path.normpath(base)
        self.paths: dict[str, list[str]] = {}
        self.replacements: dict[str, str] = {}  # YouTube id -> file of CVDF's replacement/ folder
        for path in files_below(base):
            folder, file = os.path.split(path)
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in VIDEO_SUFFIXES:
                self.paths.setdefault(stem, []).append(path)
                if "replacement" in folder.removeprefix(base):
                    self.replacements[stem[:11]] = path

    def __call__(self, entry: Entry) -> str:
        if replaced := self.replacements.get(entry.file[:11]) if entry.split else None:
            return replaced
        paths = self.paths.get(entry.file, [])
        folder = f"{os.sep}{entry.split}{os.sep}"
        preferred = [path for path in paths if folder in path.removeprefix(self.base)]
        return (preferred or paths or [join(self.base, os.path.join(entry.split, f"{entry.file}.mp4"))])[0]


def first_of_each_class(clips: Sequence[Clip], number: int) -> list[Clip]:
    """The first `number` clips of each label, in the order of the list."""
    seen: dict[int, int] = {}
    kept = []
    for clip in clips:
        seen[clip.label] = seen.get(clip.label, 0) + 1
        if seen[clip.label] <= number:
            kept.append(clip)
    return kept
