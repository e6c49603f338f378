"""Videos with several labels: the lists that have them, and the labels of a whole video or of a part of it.

    path 3,17,40 · path 3 17 40         numbers at the end of the line (VideoLT, mmaction2); none: no label
    path<TAB>jump<TAB>run               names, separated by tabs
    id,...,actions,length               the CSV files of Charades, actions with seconds: c092 11.9 21.2;c147 0 12.6
    original_vido_id video_id frame_id path labels       SlowFast's list of Charades' frames, the labels of each frame

Three whole numbers after a path are labels here, not the start and the end of a part.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from pipelines.data.list_lines import Entry, IsVideo, LabelSpan, begins_intervals, is_ucf
from pipelines.decode.image_folder import DEFAULT_FPS

_CHARADES_HEADER = re.compile(r"id,.*\bactions\b")
_CHARADES_ACTION = re.compile(r"c(\d{3}) ([\d.]+) ([\d.]+)")
_FRAME_HEADER = "original_vido_id"  # as SlowFast spells it
_WHOLE_NUMBERS = re.compile(r"\s\d+\s+\d+\s+\d+\s*$")
_NUMBERS = re.compile(r"(?:[\s,;]+\d+)*\s*")


class LabelSets:
    """The labels (N, K) of videos, each with the seconds in which it holds: rows of zeros and ones.

    `labels[rows]` are those of whole videos, `clips` those of parts of them.
    """

    def __init__(self, spans: Iterable[Sequence[tuple[int, float, float]]], num_classes: int):
        rows = [list(row) for row in spans]
        self.num_classes = num_classes
        self._ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        flat = np.array([span for row in rows for span in row], np.float64).reshape(-1, 3)
        self._classes, self._spans = flat[:, 0].astype(np.int64), flat[:, 1:]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (N, K)."""
        return len(self._ends), self.num_classes

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, rows: Sequence[int]) -> np.ndarray:
        """Return the labels (n, K) float32 of whole videos."""
        return self.clips(rows, [-math.inf] * len(rows), [math.inf] * len(rows))

    def clips(self, rows: Sequence[int], starts: Sequence[float], ends: Sequence[float]) -> np.ndarray:
        """Return the labels (n, K) float32 that hold anywhere between `starts` and `ends`, in seconds."""
        labels = np.zeros((len(rows), self.num_classes), np.float32)
        for number, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
            of_row = slice(self._ends[row - 1] if row else 0, self._ends[row])
            spans = self._spans[of_row]
            # With a millisecond of tolerance, as times of frames are rounded.
            holds = (spans[:, 0] <= end + 1e-3) & (spans[:, 1] >= start - 1e-3)
            labels[number, self._classes[of_row][holds]] = 1
        return labels

    def select(self, rows: Sequence[int]) -> LabelSets:
        """Return those of some videos."""
        return LabelSets(map(self.spans_of, rows), self.num_classes)

    def spans_of(self, row: int) -> list[tuple[int, float, float]]:
        """Return class, start and end of each label of a video."""
        of_row = slice(self._ends[row - 1] if row else 0, self._ends[row])
        pairs = zip(self._classes[of_row].tolist(), self._spans[of_row].tolist(), strict=True)
        return [(label, start, end) for label, (start, end) in pairs]

    def count_videos(self) -> np.ndarray:
        """Return how many videos have each label (K,)."""
        counts = np.zeros(self.num_classes, np.int64)
        for row in range(len(self)):
            counts[np.unique(self._classes[slice(self._ends[row - 1] if row else 0, self._ends[row])])] += 1
        return counts


def choose_reader(
    path: str, text: str, numbered: list[tuple[int, str]], is_video: IsVideo, multi_label: bool
) -> Callable[[], Iterator[Entry]] | None:
    """Return what reads a list with several labels per video; None for one that has a label each, or none.

    Without `multi_label` only for what can be nothing else: Charades, and numbers that are joined by commas alone.
    """
    first_line = numbered[0][1]
    if _CHARADES_HEADER.match(first_line):
        return lambda: read_charades(path, text)
    if first_line.startswith(_FRAME_HEADER):
        return lambda: read_frame_list(path, numbered)
    lines = [line for _, line in numbered]
    if is_ucf(lines) or (begins_intervals(first_line, is_video) and not _WHOLE_NUMBERS.search(first_line)):
        return None
    joined = re.compile(r"(.*\S)[ \t]+\d+(?:,\d+)+")
    is_joined = any((match := joined.fullmatch(line)) and is_video(match[1]) for _, line in numbered)
    return (lambda: read_label_lines(path, numbered, is_video)) if multi_label or is_joined else None


def read_label_lines(path: str, numbered: list[tuple[int, str]], is_video: IsVideo) -> Iterator[Entry]:
    """Read lines of a path and any number of labels."""
    for number, line in numbered:
        try:
            file, labels = split_labels(line, is_video)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {line!r}: {error}") from None
        if not file.strip():
            raise ValueError(f"{path}:{number}: {line!r}: expected 'path 3,17', or 'path<TAB>name<TAB>name'")
        yield Entry(file.strip(), "", f"{path}:{number}", labels=tuple(map(LabelSpan, labels)))


def split_labels(line: str, is_video: IsVideo) -> tuple[str, list[str]]:
    """Split a line into its path and its labels."""
    file, tab, rest = line.partition("\t")
    if tab:
        labels = rest.split(",") if re.fullmatch(r"[\d\s,]*", rest) and "\t" not in rest else rest.split("\t")
        return file, [label.strip() for label in labels if label.strip()]
    # The path ends where only numbers follow; its own name may have numbers, too.
    ends = [m.start() for m in re.finditer(r"[\s,;]+(?=\d)|$", line) if _NUMBERS.fullmatch(line, m.start())]
    end = next((end for end in ends if is_video(line[:end].strip())), ends[0])
    labels = re.findall(r"\d+", line[end:])
    if len(labels) > 1 and "," not in line[end:] and os.path.splitext(line[:end])[1] == "":
        raise ValueError("the first number may be that of the frames in a folder: expected commas between labels")
    return line[:end], labels


def read_charades(path: str, text: str) -> Iterator[Entry]:
    """Read the CSV of Charades (Sigurdsson et al., 2016): the labels are the numbers of its classes."""
    reader = csv.DictReader(text.splitlines())
    for row in reader:
        line, actions = f"{path}:{reader.line_num}", [part.strip() for part in (row["actions"] or "").split(";")]
        if not row["id"]:
            raise ValueError(f"{line}: expected an id in the first column")
        spans = []
        for action in filter(None, actions):
            match = _CHARADES_ACTION.fullmatch(action)
            if not match:
                raise ValueError(f"{line}: action {action!r}: expected 'c092 11.90 21.20', a class and seconds")
            spans.append(LabelSpan(str(int(match[1])), float(match[2]), float(match[3])))
        yield Entry(row["id"], "", line, is_stem=True, labels=tuple(spans))


def read_frame_list(path: str, numbered: list[tuple[int, str]]) -> Iterator[Entry]:
    """Read SlowFast's list of frames: each folder of images once, its labels with the frames that have them."""
    frames: dict[str, list[tuple[int, list[str]]]] = {}
    lines: dict[str, int] = {}
    for number, line in numbered[1:]:
        fields = line.split()
        if len(fields) != 5 or not fields[2].isdecimal():
            raise ValueError(f"{path}:{number}: {line!r}: expected 'name number frame path \"labels\"'")
        folder = os.path.dirname(fields[3])
        lines.setdefault(folder, number)
        labels = [label for label in fields[4].replace('"', "").split(",") if label]
        frames.setdefault(folder, []).append((int(fields[2]), labels))
    for folder, labeled in frames.items():
        labeled.sort(key=lambda frame: frame[0])
        first = labeled[0][0]
        spans = [
            LabelSpan(label, (frame - first) / DEFAULT_FPS, (frame - first) / DEFAULT_FPS)
            for frame, labels in labeled
            for label in labels
        ]
        yield Entry(folder, "", f"{path}:{lines[folder]}", labels=tuple(merge(spans)))


def merge(spans: Iterable[LabelSpan]) -> list[LabelSpan]:
    """Join the spans of a label that are a frame apart."""
    merged: dict[str, list[LabelSpan]] = {}
    for span in spans:
        of_label = merged.setdefault(span.label, [])
        if of_label and span.start - of_label[-1].end < 1.5 / DEFAULT_FPS:
            of_label[-1] = of_label[-1]._replace(end=span.end)
        else:
            of_label.append(span)
    return [span for of_label in merged.values() for span in of_label]


def note_on_seconds(entries: Iterable[Entry], source: str, folder: str | os.PathLike[str]) -> str:
    """Return a line for prepared lists, which have no seconds of labels; "" if there are none in the source, either."""
    if not any(math.isfinite(span.end) for entry in entries for span in entry.labels):
        return ""
    return f"the list in {folder} has no seconds of labels; train with data.train={source} data.root={folder}\n"
