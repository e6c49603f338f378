"""The lists people have, read into clips: which file, which class.

Three forms, told apart by what is there:

    path label            a number at the end of the line
    path<TAB>class_name   a tab; the name may hold spaces
    FOLDER/class/*.mp4    a folder with one sub-folder a class
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}


class Clip(NamedTuple):
    path: str
    label: int


def read_list(path: str | Path, root: str | Path = "", classes: Sequence[str] = ()) -> list[Clip]:
    """The clips of a list file or a class folder, in its order (a folder: sorted).

    Relative paths are under `root`, or else the list's own folder. With `classes` every label must be a name of it
    (`_` and space count as equal) or a number below its length; without, names are numbered in sorted order.
    Raises ValueError with file:line for a malformed line, and for a list that is missing or empty.
    """
    path = Path(path)
    if path.is_dir():
        named = [
            (str(file), file.parent.name, str(file))
            for file in sorted(path.glob("*/*"))
            if file.suffix.lower() in VIDEO_SUFFIXES
        ]
        if not named:
            raise ValueError(f"{path}: no videos in it; expected {path}/CLASS/*.mp4")
    else:
        base = Path(root) if root else path.parent
        named = [(str(base / file), label, f"{path}:{number}") for number, file, label in _lines(path)]
        if not named:
            raise ValueError(f"{path}: the list holds no videos")
    numbers = _label_numbers(named, classes, numeric=not path.is_dir())
    return [Clip(file, numbers[label]) for file, label, _ in named]


def read_classes(path: str | Path) -> list[str]:
    """Class names, one a line; the line's position is the label."""
    names = [line.strip() for line in _text(Path(path)).splitlines()]
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}:{number}: an empty line where a class name is expected")
        first = [_folded(n) for n in names].index(_folded(name))
        if first != number - 1:
            raise ValueError(f"{path}:{number}: '{name}' stands in line {first + 1} already")
    if not names:
        raise ValueError(f"{path}: no class names in it")
    return names


def class_names(path: str | Path, classes: str | Path = "") -> list[str]:
    """The names of all classes: from the file `classes`, or else what the training list at `path` names or numbers."""
    if classes:
        return read_classes(classes)
    path = Path(path)
    if path.is_dir():
        return sorted({file.parent.name for file in path.glob("*/*") if file.suffix.lower() in VIDEO_SUFFIXES})
    labels = {label for _, _, label in _lines(path)}
    if all(label.isdecimal() for label in labels):
        return [str(number) for number in range(max(map(int, labels), default=-1) + 1)]
    return sorted(labels)


def _lines(path: Path) -> Iterable[tuple[int, str, str]]:
    """(line number, file, label) of each line that is not blank or a comment."""
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        file, separator, label = line.rstrip().rpartition("\t")
        if not separator:  # from the right: folders may have spaces in their names
            file, separator, label = line.strip().rpartition(" ")
            separator = separator if label.isdecimal() else ""
        if not separator or not file.strip():
            raise ValueError(
                f"{path}:{number}: {line.strip()!r}: expected 'path label' with a whole number, "
                "or 'path<TAB>class name'"
            )
        yield number, file.strip(), label.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{path}: no such list or folder{hint}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def _label_numbers(named: Sequence[tuple[str, str, str]], classes: Sequence[str], numeric: bool) -> dict[str, int]:
    labels: dict[str, str] = {}  # label -> where it stands first
    for _, label, where in named:
        labels.setdefault(label, where)
    if not classes:
        if all(label.isdecimal() for label in labels) and numeric:
            return {label: int(label) for label in labels}
        return {label: number for number, label in enumerate(sorted(labels))}
    known = {_folded(name): number for number, name in enumerate(classes)}
    numbers = {}
    for label, where in labels.items():
        if _folded(label) in known:  # first: a class may be named by a number
            numbers[label] = known[_folded(label)]
        elif label.isdecimal() and int(label) < len(classes):
            numbers[label] = int(label)
        else:
            near = difflib.get_close_matches(label, classes, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"{where}: label '{label}' is none of the {len(classes)} classes{hint}")
    return numbers


def _folded(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def first_of_each_class(clips: Sequence[Clip], number: int) -> list[Clip]:
    """The first `number` clips of each label, in the order of the list."""
    seen: dict[int, int] = {}
    kept = []
    for clip in clips:
        seen[clip.label] = seen.get(clip.label, 0) + 1
        if seen[clip.label] <= number:
            kept.append(clip)
    return kept
