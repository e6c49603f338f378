"""Split the lines of a text list into path, part and label; `pipelines.data.annotations` names the formats."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

IsVideo = Callable[[str], bool]  # tells whether a part of a line is the path of a video


class LabelSpan(NamedTuple):
    """A label of a video that may have several, and the seconds in which it holds."""

    label: str
    start: float = 0.0
    end: float = math.inf


class Entry(NamedTuple):
    """One video of a list, as the list has it."""

    file: str
    label: str  # "" if the list has none, or several
    line: str  # file:line, for messages
    is_stem: bool = False  # `file` is a name without folder and suffix, and has to be searched for
    split: str = ""  # the folder in which a stem is preferred
    start: float = 0.0  # seconds; the part of the video that is meant
    end: float = math.inf
    labels: tuple[LabelSpan, ...] = ()  # of a list with several labels per video

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Return the label, or each of several once."""
        return tuple(dict.fromkeys(filter(None, (self.label, *(span.label for span in self.labels)))))


_UCF = re.compile(r"(?:.*/)?(\w+)/v_\1_g\d+_c\d+\.\w+(?: +([1-9]\d*))?", re.IGNORECASE)
# path start end label: a class name only after a tab. The first line may be these words.
_INTERVAL = re.compile(r"([^\t]+)\t\s*([\d.]+)\s*\t\s*([\d.]+)\s*\t([^\t]+)")
_SPACED_INTERVAL = re.compile(r"(.+?)(?: *, *| +)([\d.]+)(?: *, *| +)([\d.]+)(?: *, *| +)(\d+)")
_INTERVAL_HEADER = re.compile(r"path[\t, ]+start[\t, ]+end[\t, ]+label", re.IGNORECASE)


def match_interval(line: str) -> re.Match[str] | None:
    """Return the groups path, start, end and label of a line that has them; None for another line."""
    return (_INTERVAL if "\t" in line else _SPACED_INTERVAL).fullmatch(line)


def begins_intervals(line: str, is_video: IsVideo) -> bool:
    """Return whether the first line of a list is 'path start end label': these words, or values of them."""
    match = match_interval(line)
    return is_interval_header(line) or bool(match and ("\t" in line or is_video(match[1])))


def is_interval_header(line: str) -> bool:
    return bool(_INTERVAL_HEADER.fullmatch(line))


def parse_interval(start: Any, end: Any, *, line: str) -> tuple[float, float]:
    """Return start and end in seconds. Raises ValueError, with the line, for what is no interval."""
    try:
        first, last = float(start), float(end)
    except (TypeError, ValueError):
        raise ValueError(f"{line}: start {start!r} and end {end!r}: expected seconds") from None
    if not 0 <= first < last or math.isnan(last):
        raise ValueError(f"{line}: start={start}, end={end}: expected 0 <= start < end, in seconds")
    return first, last


def choose_parser(lines: list[str], is_video: IsVideo) -> Callable[[str], tuple[str, str] | None]:
    """Return the function that splits the lines of a list into file and label; None if a line does not fit."""
    if is_ucf(lines):
        return _parse_ucf
    return _parse_tabs if "\t" in lines[0] else _number_parser(lines[0], is_video)


def _parse_tabs(line: str) -> tuple[str, str] | None:
    parts = line.split("\t")
    if len(parts) == 3 and parts[1].strip().isdecimal():
        return parts[0], parts[2]  # path, frames, label
    file, tab, label = line.rpartition("\t")
    return (file, label) if tab else None


def _number_parser(first_line: str, is_video: IsVideo) -> Callable[[str], tuple[str, str] | None]:
    """Return a parser of 'path label' or 'path frames label', separated by spaces or commas as in the first line."""
    separator = r"\s*,\s*" if re.fullmatch(r".*,\s*\d+", first_line) else r" +"
    frames = ""
    with_frames = re.fullmatch(rf"(.*?){separator}\d+{separator}\d+", first_line)
    # Without a video before the two numbers, the first number is the end of the path.
    if with_frames and is_video(with_frames[1].strip()):
        frames = rf"{separator}\d+"
    pattern = re.compile(rf"(.*?){frames}{separator}(\d+)")

    def parse(line: str) -> tuple[str, str] | None:
        match = pattern.fullmatch(line)
        return (match[1], match[2]) if match else None

    return parse


def parse_any(line: str, is_video: IsVideo) -> tuple[str, str]:
    """Parse a line that differs from the first one: with a tab, or with a number at its end; else ("", "")."""
    return _parse_tabs(line) or _number_parser(line, is_video)(line) or ("", "")


def is_ucf(lines: list[str]) -> bool:
    """Return whether all lines are UCF-101's, with numbers that divide the videos as their folders do.

    UCF-101's numbers begin with 1; its test lists have none.
    """
    if not _UCF.fullmatch(lines[0]):
        return False
    matches = [_UCF.fullmatch(line) for line in lines]
    pairs = {(match[1].lower(), match[2]) for match in matches if match}
    folders, numbers = {folder for folder, _ in pairs}, {number for _, number in pairs}
    return all(matches) and len(pairs) == len(folders) and (numbers == {None} or len(pairs) == len(numbers))


def _parse_ucf(line: str) -> tuple[str, str] | None:
    """Split a line of UCF-101 into the file and its class, which the folder names."""
    match = _UCF.fullmatch(line)
    return (line[: match.start(2)] if match[2] else line, match[1]) if match else None
