"""The list files people have, each read into entries: which video, which class, on which line.

    path label · path,label             a whole number at the end of the line (SlowFast, VideoMAE, mmaction2, DALI)
    path frames label                   two of them (AVION, older VideoMAE)
    path<TAB>class name                 a tab; the name may hold spaces (VideoTransformer-pytorch)
    label,youtube_id,time_start,...     Kinetics' CSV, official or CVDF's
    [{"id": ..., "template": ...}]      Something-Something v2
    Class/v_Class_g01_c01.avi [1]       UCF-101's trainlist and testlist
    FOLDER/*_test_split1.txt:train      HMDB-51's split files, those for training (or :test)
    FOLDER/class/video.mp4              a folder with one sub-folder a class
    train-{0000..0099}.tar              shards (`pipelines.data.webdataset`); * and ? as well

Told apart by what is there: the first line decides, and every other line must be like it. A line that begins with #
is a comment. Lists and shards may lie at any address of fsspec's: s3://bucket/train-*.tar.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.data.webdataset import expand, is_sharded, read_shards
from pipelines.storage import VIDEO_SUFFIXES, is_remote, place_of, read

_UCF = re.compile(r"(?:.*/)?(\w+)/v_\1_g\d+_c\d+\.\w+(?: +([1-9]\d*))?", re.IGNORECASE)
_HMDB = re.compile(r"(.*_test_split\d\.txt):(train|test)")


class Entry(NamedTuple):
    file: str  # as the list has it
    label: str
    where: str  # file:line
    stem: bool = False  # `file` is a name without folder and suffix, to be looked for
    split: str = ""  # the folder to prefer when it is


def read_entries(path: str) -> list[Entry]:
    """All videos of a list or folder. Raises ValueError with file:line for what is malformed, missing or empty."""
    hmdb = _HMDB.fullmatch(path)
    place = Path(path)
    if hmdb:
        entries = list(_hmdb(hmdb[1], hmdb[2]))
    elif is_sharded(path):
        entries = [Entry(video, label, f"{place_of(video).file}#{place_of(video).name}")
                   for video, label in read_shards(path, Path(f"{plain_name(path)}.shards.jsonl"))]  # fmt: skip
    elif place.is_dir():
        entries = [Entry(f"{f.parent.name}/{f.name}", f.parent.name, str(f)) for f in sorted(place.glob("*/*"))
                   if f.suffix.lower() in VIDEO_SUFFIXES]  # fmt: skip
        if not entries:
            raise ValueError(f"{path}: no videos in it; expected {path}/CLASS/*.mp4 (of shards: '{path}/*.tar')")
    else:
        text = read_text(path)
        start = text.lstrip()[:1]
        entries = list(_something(path, text) if start in ("[", "{") else _lines(path, text))
    if not entries:
        raise ValueError(f"{path}: the list holds no videos")
    return entries


def is_there(path: str) -> bool:
    """Whether a list can be read, as far as that is known without reading it: of an address it is taken for granted."""
    try:
        return is_remote(path) or bool(_HMDB.fullmatch(path)) or all(map(os.path.exists, expand(path)))
    except ValueError:
        return False


def base_folder(path: str, root: str | Path = "") -> str:
    """The folder or address that relative paths are under: of a class folder itself; of shards their own; else
    `root`, or the list's own folder, and above annotations/ if that is its name."""
    if Path(path).is_dir():
        return path
    folder = os.path.dirname(path)
    if is_sharded(path):
        return folder
    return str(root) if root else os.path.dirname(folder) if os.path.basename(folder) == "annotations" else folder


def plain_name(path: str) -> str:
    """A path for files that belong to a list: HMDB-51's FOLDER/*_test_split1.txt:train is no name for a file, and what
    belongs to a list at an address lies in the user's cache folder."""
    hmdb = _HMDB.fullmatch(path)
    if hmdb:
        return f"{hmdb[1].removesuffix('.txt').replace('*', 'all')}_{hmdb[2]}.txt"
    if is_remote(path):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return os.path.join(cache, "clipline", re.sub(r"[^\w.{}-]+", "_", path.replace("*", "all")))
    return (path.replace("*", "all") if is_sharded(path) else path).rstrip("/")


def read_text(path: str | Path) -> str:
    """Raises ValueError, with the nearest name for a missing file."""
    if is_remote(str(path)):
        return _fetched(str(path))
    path = Path(path)
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


def _fetched(address: str) -> str:
    try:
        return read(address)[0].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{address}: not a text file") from None


def _lines(path: str, text: str) -> Iterator[Entry]:
    numbered = [(n, line.rstrip(" \r")) for n, line in enumerate(text.split("\n"), 1)]
    numbered = [(n, line) for n, line in numbered if line.strip() and not line.startswith("#")]
    if not numbered:
        return
    first = numbered[0][1]
    if re.search(r"(^|,)\s*\"?youtube_id\"?\s*(,|$)", first):
        yield from _kinetics(path, text)
        return
    take = _ucf if _is_ucf([line for _, line in numbered]) else _tabbed if "\t" in first else _numbered(first)
    for number, line in numbered:
        file, label = take(line) or _either(line)
        if not file.strip() or not label.strip():
            raise ValueError(
                f"{path}:{number}: {line!r}: expected 'path label' with a whole number, or 'path<TAB>class name'"
            )
        # A tab parts what may have spaces at its ends, in file names too.
        yield Entry(file if "\t" in line else file.strip(), label.strip(), f"{path}:{number}")


def _tabbed(line: str) -> tuple[str, str] | None:
    parts = line.split("\t")
    if len(parts) == 3 and parts[1].strip().isdecimal():
        return parts[0], parts[2]  # path, frames, label
    file, tab, label = line.rpartition("\t")
    return (file, label) if tab else None


def _numbered(first: str) -> Callable[[str], tuple[str, str] | None]:
    """For 'path label' or 'path frames label', with spaces or commas, as the first line has it."""
    separator = r"\s*,\s*" if re.fullmatch(r".*,\s*\d+", first) else r" +"
    frames = ""
    three = re.fullmatch(rf"(.*?){separator}\d+{separator}\d+", first)
    if three and Path(three[1].strip()).suffix.lower() in VIDEO_SUFFIXES:  # and no path that ends in a number
        frames = rf"{separator}\d+"
    pattern = re.compile(rf"(.*?){frames}{separator}(\d+)")

    def take(line: str) -> tuple[str, str] | None:
        match = pattern.fullmatch(line)
        return (match[1], match[2]) if match else None

    return take


def _either(line: str) -> tuple[str, str]:
    """A tab in a list of numbers, or a number in one of tabs; ("", "") if it is neither."""
    return _tabbed(line) or _numbered(line)(line) or ("", "")


def _is_ucf(lines: list[str]) -> bool:
    """Whether all lines are UCF-101's and its numbers (from 1 on; testlists have none) part them as folders do."""
    matches = [_UCF.fullmatch(line) for line in lines[:1]]
    if not matches[0]:
        return False
    matches = [_UCF.fullmatch(line) for line in lines]
    pairs = {(match[1].lower(), match[2]) for match in matches if match}
    return (
        all(matches)
        and len(pairs) == len({folder for folder, _ in pairs})
        and ({number for _, number in pairs} == {None} or len(pairs) == len({number for _, number in pairs}))
    )


def _ucf(line: str) -> tuple[str, str] | None:
    """The folder names the class."""
    match = _UCF.fullmatch(line)
    return (line[: match.start(2)] if match[2] else line, match[1]) if match else None


def _kinetics(path: str, text: str) -> Iterator[Entry]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if "label" not in (reader.fieldnames or ()):
        raise ValueError(
            f"{path}:1: no column 'label' (a test list without answers?): {','.join(reader.fieldnames or ())}"
        )
    for row in reader:
        where = f"{path}:{reader.line_num}"
        try:
            start, end = (round(float(row[key])) for key in ("time_start", "time_end"))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{where}: no numbers for time_start and time_end: {','.join(map(str, row.values()))}"
            ) from None
        if not row["label"] or not row["youtube_id"]:
            raise ValueError(f"{where}: expected a label and a youtube_id: {','.join(map(str, row.values()))}")
        yield Entry(f"{row['youtube_id']}_{start:06d}_{end:06d}", row["label"], where, True, row.get("split") or "")


def _something(path: str, text: str) -> Iterator[Entry]:
    try:
        videos = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(videos, list):
        raise ValueError(f"{path}: expected a list of videos, each with id and template")
    for number, video in enumerate(videos, 1):
        try:
            label = video["template"]
            yield Entry(str(video["id"]), label.replace("[", "").replace("]", ""), f"{path}: video {number}", True)
        except (AttributeError, KeyError, TypeError):
            raise ValueError(f"{path}: video {number} has no id and template (a test list without answers?)") from None


def _hmdb(pattern: str, part: str) -> Iterator[Entry]:
    """Marks in the files: 1 training, 2 test, 0 neither."""
    files = sorted(Path(pattern).parent.glob(Path(pattern).name))
    if not files:
        raise ValueError(f"{pattern}: no such file")
    for file in files:
        label = re.sub(r"_test_split\d\.txt", "", file.name)
        for number, line in enumerate(read_text(file).splitlines(), 1):
            name, _, mark = line.strip().rpartition(" ")
            if line.strip() and (not name or mark not in ("0", "1", "2")):
                raise ValueError(f"{file}:{number}: {line!r}: expected 'video.avi 1' (or 2, or 0)")
            if name and mark == {"train": "1", "test": "2"}[part]:
                yield Entry(f"{label}/{name}", label, f"{file}:{number}")
