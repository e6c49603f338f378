"""Read the list files that people have: which video, which class, on which line.

    path label · path,label             a whole number at the end of the line (SlowFast, VideoMAE, mmaction2, DALI)
    path frames label                   two numbers (AVION, older VideoMAE)
    path<TAB>class name                 a tab; the name may contain spaces (VideoTransformer-pytorch)
    path start end label                three numbers, or path<TAB>start<TAB>end<TAB>class name: a part, in seconds
    label,youtube_id,time_start,...     the CSV files of Kinetics, official or CVDF's
    [{"id": ..., "template": ...}]      Something-Something v2
    [{"vid_name": ..., "label": 3}]     Diving48
    1234;class name                     Jester
    path 3,17,40 · id,...,actions,...   several labels per video, Charades: `pipelines.data.multi_label`
    Class/v_Class_g01_c01.avi [1]       trainlist and testlist of UCF-101
    FOLDER/*_test_split1.txt:train      the split files of HMDB-51, with their training (or :test) videos
    FOLDER/class/video.mp4              a folder with one subfolder per class
    path, or FOLDER/video.mp4           videos without labels, for pre-training
    train-{0000..0099}.tar              shards (`pipelines.data.webdataset`); also with * and ?

The format is recognized by the first line, and every other line must follow it. Lines that begin with # are comments.
Lists and shards may be at any fsspec address: s3://bucket/train-*.tar. A video may be a folder of images everywhere
but in shards and at addresses.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.data.list_lines import (
    Entry,
    IsVideo,
    begins_intervals,
    choose_parser,
    is_interval_header,
    match_interval,
    parse_any,
    parse_interval,
)
from pipelines.data.multi_label import choose_reader
from pipelines.data.webdataset import expand_shards, is_shard_list, read_shards
from pipelines.decode.image_folder import holds_images
from pipelines.storage import VIDEO_SUFFIXES, is_remote, join_path, read_bytes

IN_MEMORY = "list://"  # begins the name of a list that is no file (`pipelines.data.memory`)
_HMDB = re.compile(r"(.*_test_split\d\.txt):(train|test)")
_HMDB_MARKS = {"train": "1", "test": "2"}  # 0: in neither part of the split
_JESTER = re.compile(r"(\d+);([^;]+)")
_KINETICS_HEADER = re.compile(r"(^|,)\s*\"?youtube_id\"?\s*(,|$)")


def read_entries(path: str, root: str | Path = "", multi_label: bool = False) -> list[Entry]:
    """Read all videos of a list or class folder. Raises ValueError with file:line for malformed or missing entries.

    With `multi_label` a line of a text list may end in several labels, or in none.

    A folder of images is told from the numbers after it, as in 'clip_0001 300 17', by looking whether there is such a
    folder below `root`, or the folder that the list refers to.
    """
    hmdb = _HMDB.fullmatch(path)
    if hmdb:
        entries = list(_read_hmdb(hmdb[1], hmdb[2]))
    elif is_shard_list(path):
        shards = read_shards(path, Path(f"{cache_stem(path)}.shards.jsonl"))
        entries = [Entry(video, label, line) for video, label, line in shards]
    elif Path(path).is_dir():
        entries = _read_class_folder(Path(path))
    else:
        text = read_text(path)
        is_json = text.lstrip()[:1] in ("[", "{")
        entries = list(_read_json(path, text) if is_json else _read_lines(path, text, root, multi_label))
    if not entries:
        raise ValueError(f"{path}: the list holds no videos")
    return entries


def require_labels(entries: Iterable[Entry], reason: str = "only pre-training needs no labels") -> None:
    """Raise ValueError, with the reason why labels are needed, if a video has none."""
    for entry in entries:
        if entry.labels:
            raise ValueError(f"{entry.line}: {len(entry.labels)} labels: expected one, or data.multi_label=yes")
        if not entry.label:
            expected = "'path label' with a whole number, or 'path<TAB>class name' (in a folder: a folder per class)"
            raise ValueError(f"{entry.line}: no label: expected {expected}; {reason}")


def list_exists(path: str) -> bool:
    """Return whether a list exists. Remote lists and patterns of HMDB-51 are assumed to exist."""
    try:
        return is_remote(path) or bool(_HMDB.fullmatch(path)) or all(map(os.path.exists, expand_shards(path)))
    except ValueError:
        return False


def base_folder(path: str, root: str | Path = "") -> str:
    """Return the folder or address that the relative paths of a list refer to.

    A class folder is its own base, and shards refer to their folder. Other lists refer to `root` or else to their own
    folder, or to the one above if that is called annotations; a list in memory to the current folder.
    """
    if path.startswith(IN_MEMORY):
        return str(root)
    if Path(path).is_dir():
        return path
    folder = os.path.dirname(path)
    if is_shard_list(path):
        return folder
    if root:
        return str(root)
    return os.path.dirname(folder) if os.path.basename(folder) == "annotations" else folder


def cache_stem(path: str) -> str:
    """Return the path, without suffix, of files that are kept for a list.

    They are beside the list under its name, without the * and : of patterns; for a remote list in the user's cache
    folder.
    """
    hmdb = _HMDB.fullmatch(path)
    if hmdb:
        return f"{hmdb[1].removesuffix('.txt').replace('*', 'all')}_{hmdb[2]}.txt"
    if is_remote(path):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return os.path.join(cache, "clipline", re.sub(r"[^\w.{}-]+", "_", path.replace("*", "all")))
    return (path.replace("*", "all") if is_shard_list(path) else path).rstrip("/")


def read_text(path: str | Path) -> str:
    """Read a text file. Raises ValueError, which suggests the nearest name for a missing file."""
    if is_remote(str(path)):
        return _read_remote_text(str(path))
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        matches = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; did you mean {matches[0]}?" if matches else ""
        raise ValueError(f"{path}: no such list or folder{hint}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def _read_remote_text(address: str) -> str:
    try:
        return read_bytes(address).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{address}: not a text file") from None


def is_kinetics_list(text: str) -> bool:
    """Return whether the first line of a list is the header of Kinetics' CSV."""
    return bool(_KINETICS_HEADER.search(text.lstrip().partition("\n")[0]))


def _read_class_folder(folder: Path) -> list[Entry]:
    top = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    classes = [
        Entry(f"{path.name}/{file.name}", label=path.name, line=str(file))
        for path in top
        if path.is_dir()
        for file in sorted(path.iterdir())
        if _is_video(file)
    ]
    loose = [path for path in top if path.suffix.lower() in VIDEO_SUFFIXES]
    if not classes:  # beside class folders, a folder of images may be anything
        loose += [path for path in top if path.is_dir() and holds_images(path)]
    entries = [*(Entry(path.name, label="", line=str(path)) for path in sorted(loose)), *classes]
    if not entries:
        expected = f"{folder}/CLASS/*.mp4 or {folder}/CLASS/CLIP/*.jpg (for shards: '{folder}/*.tar')"
        raise ValueError(f"{folder}: no videos in it; expected {expected}")
    return entries


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir() and holds_images(path)


def _read_lines(path: str, text: str, root: str | Path, multi_label: bool) -> Iterator[Entry]:
    numbered = [(number, line.rstrip(" \r")) for number, line in enumerate(text.split("\n"), 1)]
    numbered = [(number, line) for number, line in numbered if line.strip() and not line.startswith("#")]
    if not numbered:
        return
    first_line = numbered[0][1]
    if _KINETICS_HEADER.search(first_line):
        yield from _read_kinetics(path, text)
        return

    if _JESTER.fullmatch(first_line):
        yield from _read_jester(path, numbered)
        return

    def is_video(name: str) -> bool:
        return Path(name).suffix.lower() in VIDEO_SUFFIXES or os.path.isdir(join_path(base_folder(path, root), name))

    if read_several := choose_reader(path, text, numbered, is_video, multi_label):
        yield from read_several()
        return
    if begins_intervals(first_line, is_video):
        yield from _read_intervals(path, numbered[is_interval_header(first_line) :])
        return
    parse = choose_parser([line for _, line in numbered], is_video)
    first = parse(first_line)
    if is_video(first_line) and not (first and is_video(first[0])):
        yield from _read_unlabeled(path, numbered, is_video)
        return
    for number, line in numbered:
        file, label = parse(line) or parse_any(line, is_video)
        if not file.strip() or not label.strip():
            raise ValueError(
                f"{path}:{number}: {line!r}: expected 'path label' with a whole number, or 'path<TAB>class name'"
            )
        # A file name before a tab may begin or end with spaces.
        yield Entry(file if "\t" in line else file.strip(), label.strip(), f"{path}:{number}")


def _read_unlabeled(path: str, numbered: list[tuple[int, str]], is_video: IsVideo) -> Iterator[Entry]:
    expected = f"expected the path of a video without a label, as in line {numbered[0][0]}, or a label in each line"
    for number, line in numbered:
        if not is_video(line):
            raise ValueError(f"{path}:{number}: {line!r}: {expected}")
        yield Entry(line.strip(), "", f"{path}:{number}")


def _read_jester(path: str, numbered: list[tuple[int, str]]) -> Iterator[Entry]:
    for number, line in numbered:
        match = _JESTER.fullmatch(line)
        if not match:
            raise ValueError(f"{path}:{number}: {line!r}: expected 'number;class name', as in the first line")
        yield Entry(match[1], match[2].strip(), f"{path}:{number}", is_stem=True)


def _read_intervals(path: str, numbered: list[tuple[int, str]]) -> Iterator[Entry]:
    for number, line in numbered:
        match = match_interval(line)
        if not match:
            raise ValueError(f"{path}:{number}: {line!r}: expected 'path start end label', as in the first line")
        start, end = parse_interval(match[2], match[3], line=f"{path}:{number}")
        yield Entry(match[1], match[4].strip(), f"{path}:{number}", start=start, end=end)


def _read_kinetics(path: str, text: str) -> Iterator[Entry]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if "label" not in (reader.fieldnames or ()):
        raise ValueError(
            f"{path}:1: no column 'label' (a test list without answers?): {','.join(reader.fieldnames or ())}"
        )
    for row in reader:
        line, content = f"{path}:{reader.line_num}", ",".join(map(str, row.values()))
        try:
            start, end = (round(float(row[key])) for key in ("time_start", "time_end"))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{line}: no numbers for time_start and time_end: {content}") from None
        if not row["label"] or not row["youtube_id"]:
            raise ValueError(f"{line}: expected a label and a youtube_id: {content}")
        stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        yield Entry(stem, row["label"], line, is_stem=True, split=row.get("split") or "")


def _read_json(path: str, text: str) -> Iterator[Entry]:
    try:
        videos = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(videos, list):
        raise ValueError(f"{path}: expected a list of videos, each with id and template, or vid_name and label")
    is_diving48 = bool(videos) and isinstance(videos[0], dict) and "vid_name" in videos[0]
    for number, video in enumerate(videos, 1):
        line = f"{path}: video {number}"
        try:
            if is_diving48:
                yield Entry(video["vid_name"], str(int(video["label"])), line, is_stem=True)
            else:
                label = video["template"].replace("[", "").replace("]", "")
                yield Entry(str(video["id"]), label, line, is_stem=True)
        except (AttributeError, KeyError, TypeError, ValueError):
            keys = "vid_name and label" if is_diving48 else "id and template"
            raise ValueError(f"{line} has no {keys} (a test list without answers?)") from None


def _read_hmdb(pattern: str, part: str) -> Iterator[Entry]:
    files = sorted(Path(pattern).parent.glob(Path(pattern).name))
    if not files:
        raise ValueError(f"{pattern}: no such file")
    for file in files:
        label = re.sub(r"_test_split\d\.txt", "", file.name)
        for number, line in enumerate(read_text(file).splitlines(), 1):
            name, _, mark = line.strip().rpartition(" ")
            if line.strip() and (not name or mark not in ("0", "1", "2")):
                raise ValueError(f"{file}:{number}: {line!r}: expected 'video.avi 1' (or 2, or 0)")
            if name and mark == _HMDB_MARKS[part]:
                yield Entry(f"{label}/{name}", label, f"{file}:{number}")
