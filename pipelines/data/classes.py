"""Class names and their indices: shipped names, files of names, what a list names, and subsets.

data.class_names is one of

    (empty)              the names or numbers that occur in the training list
    k400 · k600 · k700   the classes of Kinetics, in alphabetical order
    FILE                 one name per line; 'number name' per line (UCF-101, Charades); JSON of names and numbers, or
                         a list of names, which may be in parts (Diving48)

data.class_subset is empty for all of them, 10 for the first ten, or archery,bowling for these two in this order.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipelines.data.annotations import read_text

KINETICS = ("k400", "k600", "k700")
MAX_CLASSES = 1_000_000  # a larger number at the end of a line is a time, a size or an identifier


def read_shipped_or_file(class_names: str) -> list[str]:
    """Read the class names of Kinetics, which are shipped, or of a file. Raises ValueError as read_classes()."""
    if class_names in KINETICS:
        return read_classes(Path(__file__).parent / "class_names" / f"{class_names}.txt")
    return read_classes(class_names)


def choose_subset(names: Sequence[str], class_subset: str) -> list[str]:
    """Return the classes that data.class_subset selects. Raises ValueError for an unknown class."""
    if not class_subset.strip():
        return list(names)
    if class_subset.isdecimal():
        if not 0 < int(class_subset) <= len(names):
            raise ValueError(f"data.class_subset={class_subset}: expected 1 to {len(names)}, the number of classes")
        return list(names[: int(class_subset)])
    chosen = [part.strip() for part in class_subset.split(",") if part.strip()]
    available = {normalize_class_name(name) for name in names}
    if len({normalize_class_name(name) for name in chosen}) < len(chosen):
        raise ValueError(f"data.class_subset={class_subset}: a class is named twice")
    for name in chosen:
        if normalize_class_name(name) not in available:
            raise ValueError(
                f"data.class_subset={class_subset}: there is no class '{name}'{_did_you_mean(name, names)}"
            )
    return chosen


def read_classes(path: str | Path) -> list[str]:
    """Read class names from a file. The label of a class is the position of its name or the number beside it.

    Raises ValueError with file:line for an empty line, a name that occurs twice and a file without names.
    """
    text = read_text(path)
    if text.lstrip().startswith("{"):
        return _numbered_names(path, _json_pairs(path, text))
    is_list = text.lstrip().startswith("[")
    names = _json_names(path, text) if is_list else [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    pairs = [name.partition(" ") for name in names]
    numbered = [f"c{n:03}" for n in range(len(names))]  # as Charades writes them
    if len(names) > 1 and [number for number, _, _ in pairs] == numbered and all(p[2] for p in pairs):
        names = [name.strip() for _, _, name in pairs]
    elif [number for number, _, _ in pairs] == [str(n) for n in range(1, len(names) + 1)] and all(p[2] for p in pairs):
        names = [name.strip() for _, _, name in pairs]
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}:{number}: an empty line where a class name is expected")
        first = [normalize_class_name(n) for n in names].index(normalize_class_name(name))
        if first != number - 1:
            raise ValueError(f"{path}:{number}: '{name}' is already in line {first + 1}")
    if not names:
        raise ValueError(f"{path}: no class names in it")
    return names


def _json_pairs(path: str | Path, text: str) -> list[tuple[str, int]]:
    try:
        return [(str(name), int(number)) for name, number in json.loads(text).items()]
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path}: expected names and their numbers, {{"archery": 0, ...}}: {error}') from None


def _json_names(path: str | Path, text: str) -> list[str]:
    try:
        return [name if isinstance(name, str) else " ".join(name) for name in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected names, or lists of their parts: {error}") from None


def _numbered_names(path: str | Path, pairs: Sequence[tuple[str, int]]) -> list[str]:
    ordered = sorted(pairs, key=lambda pair: pair[1])
    if [number for _, number in ordered] != list(range(len(ordered))):
        raise ValueError(f"{path}: the numbers of its {len(ordered)} names are not 0 to {len(ordered) - 1}")
    return [name for name, _ in ordered]


def classes_in_list(labels: Iterable[str], numeric: bool = True) -> list[str]:
    """Return the distinct labels, sorted; if `numeric` and all are numbers, the numbers from 0 to the largest.

    Of the spellings of a name that count as equal, as normalize_class_name() says, the first one is kept. Raises
    ValueError for a number that is no class but something else of a video.
    """
    distinct = set(labels)
    if numeric and all(label.isdecimal() for label in distinct):
        largest = max(map(int, distinct), default=-1)
        if largest >= MAX_CLASSES:
            raise ValueError(f"label {largest}: expected the number of a class, below {MAX_CLASSES}")
        return [str(number) for number in range(largest + 1)]
    names: dict[str, str] = {}
    for label in sorted(distinct):
        names.setdefault(normalize_class_name(label), label)
    return list(names.values())


def labels_to_indices(
    labels: Iterable[tuple[str, str]],
    classes: Sequence[str],
    numeric: bool = True,
    subset: bool = False,
    all_classes: Sequence[str] = (),
) -> dict[str, int]:
    """Map each label to the index of its class. `labels` are (label, file:line); `numeric`: a number may be an index.

    If the classes are a subset, other labels are left out; otherwise they raise a ValueError with their file:line. A
    number is then an index of `all_classes`, if these are known.
    """
    first_lines: dict[str, str] = {}  # label -> file:line of its first occurrence
    for label, line in labels:
        first_lines.setdefault(label, line)
    if not classes:
        if numeric and all(label.isdecimal() for label in first_lines):
            return {label: int(label) for label in first_lines}
        return {label: index for index, label in enumerate(sorted(first_lines))}
    index_of_name = {normalize_class_name(name): index for index, name in enumerate(classes)}
    indices = {}
    for label, line in first_lines.items():
        is_index = label.isdecimal() and int(label) < len(all_classes if subset else classes)
        if normalize_class_name(label) in index_of_name:  # first: a class may be named by a number
            indices[label] = index_of_name[normalize_class_name(label)]
        elif is_index and subset:
            name = normalize_class_name(all_classes[int(label)])
            indices |= {label: index_of_name[name]} if name in index_of_name else {}
        elif is_index:
            indices[label] = int(label)
        elif not subset:
            hint = f": expected 0 to {len(classes) - 1}" if label.isdecimal() else _did_you_mean(label, classes)
            raise ValueError(f"{line}: label '{label}' is none of the {len(classes)} classes{hint}")
    return indices


def describe_classes(num_videos: Mapping[str, int]) -> str:
    """Describe how many videos the classes have; one that a typo in a list made shows as the one with the fewest.

    Those without a video are only counted.
    """
    sizes = {name: number for name, number in num_videos.items() if number}
    fewest, most = min(sizes, key=lambda name: sizes[name]), max(sizes.values())
    of_all = f" of {len(num_videos)}" if len(num_videos) > len(sizes) else ""
    classes, videos = f"{len(sizes)}{of_all} class{'es' * (len(num_videos) > 1)}", f"video{'s' * (most > 1)}"
    if sizes[fewest] == most:
        return f"{classes} of {most} {videos}{' each' * (len(sizes) > 1)}"
    return f"{classes} of {sizes[fewest]} to {most} videos (fewest: {fewest})"


def normalize_class_name(name: str) -> str:
    """Return a name without the differences that do not count: underscores, case, outer spaces, leading zeros."""
    plain = name.replace("_", " ").strip().lower()
    return str(int(plain)) if plain.isdecimal() else plain


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
