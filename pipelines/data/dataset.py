"""Read a list or a class folder into videos with class labels.

The list formats are in `pipelines.data.annotations`, class names in `pipelines.data.classes`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.data.annotations import base_folder, read_entries, require_labels
from pipelines.data.classes import (
    choose_subset,
    classes_in_list,
    describe_classes,
    labels_to_indices,
    read_shipped_or_file,
)
from pipelines.data.list_lines import Entry, LabelSpan
from pipelines.data.memory import read_memory
from pipelines.data.multi_label import LabelSets
from pipelines.decode.image_folder import is_image_name
from pipelines.storage import VIDEO_SUFFIXES, files_below, is_remote, join_path, subfolder_names
from utils import random_streams
from utils.paused_gc import paused_gc


class VideoEntry(NamedTuple):
    """One line of a list: the path of a video, the index of its class, and the part of the video that is meant."""

    path: str
    label: int  # with targets the row in them; -1 if there is none, or labels are not read
    start: float = 0.0  # seconds
    end: float = math.inf

    @property
    def is_part(self) -> bool:
        """Return whether only a part of the video is meant."""
        return self.start > 0 or not math.isinf(self.end)

    @property
    def name(self) -> str:
        """The path, with the part that is meant as a media fragment (W3C): a.mp4#t=2.5,12."""
        if not self.is_part:
            return self.path
        return f"{self.path}#t={self.start:g}" + ("" if math.isinf(self.end) else f",{self.end:g}")


def count_labels(labels: Iterable[int], num_classes: int) -> list[int]:
    """Count how often each class is the label; -1 is none."""
    numbers = np.fromiter(labels, np.int64)
    return np.bincount(numbers[numbers >= 0], minlength=num_classes).tolist()


class Dataset(NamedTuple):
    """A list that was read: its own path, its videos in their order, and the names of the classes."""

    path: str
    videos: list[VideoEntry]
    classes: list[str]
    # (N, ...) float32, labels that are no classes, without class names; or several classes per video.
    targets: np.ndarray | LabelSets | None = None

    def count_videos(self) -> list[int]:
        """Count the videos of each class, those of all their labels; none without classes."""
        if isinstance(self.targets, LabelSets):
            return self.targets.count_videos().tolist()
        return count_labels((video.label for video in self.videos), len(self.classes)) if self.classes else []

    def describe_classes(self) -> str:
        """Describe how many videos the classes have, and labels a video if it may have several; "" without classes."""
        num_videos = self.count_videos()
        if not any(num_videos):
            return ""
        text = describe_classes(dict(zip(self.classes, num_videos, strict=True)))
        labels = f", {sum(num_videos) / len(self.videos):.1f} labels per video"
        return text + labels * isinstance(self.targets, LabelSets)


@paused_gc()
def load_dataset(  # noqa: PLR0913  # the configuration's keys, and what the task needs
    source: str | Path | Dataset | Sequence[Any],
    root: str | Path = "",
    *,
    class_names: str = "",
    class_subset: str = "",
    classes: Sequence[str] | None = None,
    max_per_class: int = 0,
    few_shot_seed: int | str = "first",
    labeled: bool | None = True,
    multi_label: bool = False,
) -> Dataset:
    """Read a list, a class folder or entries in memory once: the videos, their labels and the class names.

    `class_names` and `class_subset` are those of the configuration; `classes`, for validation and test lists, are the
    classes of the training list and win over both. With `labeled=False` labels are read only to choose among the
    videos; without class_subset and max_per_class a list needs none, and there are no classes. None reads them if all
    videos have one. With `multi_label` a video may have several labels, or none. Entries in memory are described in
    `pipelines.data.memory`. A Dataset is returned as it is. Raises ValueError as read_list().
    """
    if isinstance(source, Dataset):
        if classes is not None and list(classes) != source.classes:
            raise ValueError(
                f"{source.path}: it was read with other classes than classes={_shorten(classes)}; pass these to "
                "load_dataset(), so that its labels are their numbers"
            )
        return source
    targets = None
    if isinstance(source, (str, Path)):
        path, entries = str(source), read_entries(str(source), root, multi_label)
    else:
        path, entries, targets = read_memory(source, bool(classes or class_names), multi_label)
    if targets is not None:
        if classes or class_names or class_subset or max_per_class:
            raise ValueError(f"{path}: its labels are numbers or vectors, so there are no classes to choose")
        base = base_folder(path, root)
        videos = [VideoEntry(join_path(base, e.file), row, e.start, e.end) for row, e in enumerate(entries)]
        return Dataset(path, videos, [], targets)
    if not multi_label and labeled is None and any(entry.labels for entry in entries):
        require_labels(entries)
    if labeled is None:
        labeled = any(entry.labels for entry in entries) if multi_label else all(entry.label for entry in entries)
    if not labeled and not class_subset and not max_per_class:
        videos = [video._replace(label=-1) for video in _label_entries(path, entries, root, (), False)]
        return Dataset(path, videos, [])
    if multi_label:
        return _label_several(path, entries, root, classes, class_names, class_subset)
    require_labels(entries, *([] if labeled else ["data.class_subset and data.max_per_class need labels"]))
    if classes is None:
        classes = _choose_classes(path, [entry.label for entry in entries], class_names, class_subset)
    all_classes = read_shipped_or_file(class_names) if class_names and class_subset else ()
    videos = _label_entries(path, entries, root, classes, bool(class_subset), all_classes)
    if max_per_class:
        videos = limit_per_class(videos, max_per_class, few_shot_seed)
    return Dataset(path, videos, list(classes))


def _label_several(  # noqa: PLR0913  # what load_dataset() is given
    path: str,
    entries: Sequence[Entry],
    root: str | Path,
    classes: Sequence[str] | None,
    class_names: str,
    class_subset: str,
) -> Dataset:
    """Return the videos with all their labels; of a subset of the classes those that have one of them."""
    spans = [entry.labels or ((LabelSpan(entry.label),) if entry.label else ()) for entry in entries]
    labels = [(span.label, entry.line) for entry, row in zip(entries, spans, strict=True) for span in row]
    if not labels:
        raise ValueError(f"{path}: no label in it: expected 'path 3,17' or 'path<TAB>name<TAB>name' in some lines")
    if classes is None:
        classes = _choose_classes(path, [label for label, _ in labels], class_names, class_subset)
    all_classes = read_shipped_or_file(class_names) if class_names and class_subset else ()
    indices = labels_to_indices(labels, classes, not os.path.isdir(path), bool(class_subset), all_classes)
    rows = [[(indices[s.label], s.start, s.end) for s in row if s.label in indices] for row in spans]
    kept = [index for index, row in enumerate(rows) if row or not class_subset]
    plain = [entries[index]._replace(label="") for index in kept]
    videos = _label_entries(path, plain, root, (), False)
    targets = LabelSets((rows[index] for index in kept), len(classes))
    return Dataset(path, [video._replace(label=row) for row, video in enumerate(videos)], list(classes), targets)


def _shorten(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' * (len(names) > 3)} ({len(names)})"


def read_list(
    path: str | Path,
    root: str | Path = "",
    classes: Sequence[str] = (),
    subset: bool = False,
    multi_label: bool = False,
) -> list[VideoEntry]:
    """Read the videos of a list file or a class folder, in its order (a folder: sorted).

    Relative paths are under `root`, a folder or address, or else the list's own folder; names without a folder
    (Kinetics' CSV, Something-Something) are looked for below it, and keep the path they should have if there is none.
    With `classes` every label must be a name of it (`_` and space count as equal) or a number below its length; with
    `subset` videos of other classes are left out. Without, names are numbered in sorted order. The label of a video
    without one is -1. Raises ValueError with file:line for a malformed line, and for a list that is missing or empty.
    """
    return _label_entries(path, read_entries(str(path), root, multi_label), root, classes, subset)


def read_class_names(
    path: str | Path, class_names: str | Path = "", class_subset: str = "", multi_label: bool = False
) -> list[str]:
    """Return the names of all classes, from `class_names` or else from the training list at `path`."""
    entries = [] if class_names else read_entries(str(path), multi_label=multi_label)
    if not multi_label:
        require_labels(entries)
    labels = [label for entry in entries for label in entry.all_labels]
    return _choose_classes(path, labels, str(class_names), class_subset)


def limit_per_class(videos: Sequence[VideoEntry], number: int, seed: int | str = "first") -> list[VideoEntry]:
    """Return `number` videos of each label, in the order of the list: the first ones, or drawn with a seed."""
    return [videos[index] for index in few_per_class([video.label for video in videos], number, seed)]


def few_per_class(labels: Sequence[int], number: int, seed: int | str = "first") -> list[int]:
    """Return the indices, ascending, of `number` of each label (0: all): the first ones, or drawn with a seed.

    With one seed, those of a smaller number are among those of a larger one.
    """
    order: Sequence[int] = range(len(labels))
    if seed != "first":
        order = np.random.default_rng([int(seed), random_streams.FEW_SHOT]).permutation(len(labels)).tolist()
    counts: dict[int, int] = {}
    chosen = []
    for index in order:
        counts[labels[index]] = counts.get(labels[index], 0) + 1
        if not number or counts[labels[index]] <= number:
            chosen.append(index)
    return sorted(chosen)


def _choose_classes(path: str | Path, labels: Sequence[str], class_names: str, class_subset: str) -> list[str]:
    if class_names:
        names = read_shipped_or_file(class_names)
    else:
        try:
            names = classes_in_list(labels, not os.path.isdir(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return choose_subset(names, class_subset)


def _label_entries(
    path: str | Path,
    entries: Sequence[Entry],
    root: str | Path,
    classes: Sequence[str],
    subset: bool,
    all_classes: Sequence[str] = (),
) -> list[VideoEntry]:
    labels = [(entry.label, entry.line) for entry in entries if entry.label]
    indices = labels_to_indices(labels, classes, not os.path.isdir(path), subset, all_classes) | {"": -1}
    base = base_folder(str(path), root)
    stems = {entry.file for entry in entries if entry.is_stem}
    find = _Finder(base or ".", stems) if stems else None
    videos = [
        VideoEntry(
            path=find(entry) if find else join_path(base, entry.file),
            label=indices[entry.label],
            start=entry.start,
            end=entry.end,
        )
        for entry in entries
        if entry.label in indices
    ]
    if not videos:
        raise ValueError(f"{path}: no video of the {len(classes)} classes that data.class_subset selects")
    return videos


class _Finder:
    """Find videos below a folder by their names without suffix, and folders of images by their names.

    The folder is walked once; not at all if all `stems` are folders in it, which may hold millions of images.
    """

    def __init__(self, base: str, stems: Collection[str]):
        self.base = base.rstrip("/") if is_remote(base) else os.path.normpath(base)
        self.paths: dict[str, list[str]] = {}  # stem -> paths
        self.replacements: dict[str, str] = {}  # YouTube id -> path in CVDF's replacement folder
        subfolders = set(subfolder_names(self.base))
        if subfolders.issuperset(stems):
            self.paths = {stem: [os.path.join(self.base, stem)] for stem in stems}
        else:
            self._walk()

    def _walk(self) -> None:
        image_folder = ""
        for path in files_below(self.base):
            folder, file = os.path.split(path)
            stem, suffix = os.path.splitext(file)
            if folder != image_folder and is_image_name(file):
                image_folder = folder
                self.paths.setdefault(os.path.basename(folder), []).append(folder)
            elif suffix.lower() in VIDEO_SUFFIXES:
                self.paths.setdefault(stem, []).append(path)
                if "replacement" in folder.removeprefix(self.base):
                    self.replacements[stem[:11]] = path

    def __call__(self, entry: Entry) -> str:
        """Return the path of an entry; if there is no such file, the path that it should have."""
        if entry.split and (replacement := self.replacements.get(entry.file[:11])):
            return replacement
        paths = self.paths.get(entry.file, [])
        split_folder = f"{os.sep}{entry.split}{os.sep}"
        in_split = [path for path in paths if split_folder in path.removeprefix(self.base)]
        if in_split or paths:
            return (in_split or paths)[0]
        return join_path(self.base, os.path.join(entry.split, f"{entry.file}.mp4"))
