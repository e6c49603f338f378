"""What each file of a list holds, found by demuxing and not decoding; kept beside the list.

    python -m pipelines.index LIST [root=FOLDER]

The cache is LIST.index.jsonl, a line a file; a file whose size or time of change differs is read again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipelines.lists import Clip, read_list
from pipelines.video import Video
from pipelines.world import worker_pool

NO_FILE = "no such file"
_POOL_PAYS_FROM = 200  # files; below it, starting processes takes longer than the work


@dataclass(frozen=True)
class Row:
    """One file: its frames, and why it cannot be used if `error` is not empty (then num_frames is 0)."""

    path: str
    size: int = 0  # bytes; with `changed`, tells whether the row still holds
    changed: int = 0  # nanoseconds
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    keyframes: tuple[int, ...] = ()
    error: str = ""

    @property
    def missing(self) -> bool:
        return self.error == NO_FILE


def build_index(clips: Sequence[Clip], cache: str | Path, workers: int | None = None) -> list[Row]:
    """A row for each clip, in the list's order; reads what `cache` does not hold and writes it back, atomically.

    `workers`: processes (None: one a core). A cache that cannot be written costs time at the next start, no more.
    """
    cache = Path(cache)
    known = {row.path: row for row in _read_cache(cache)}
    paths = list(dict.fromkeys(clip.path for clip in clips))
    stale = [p for p in paths if p not in known or _stamp(p) != (known[p].size, known[p].changed)]
    if stale:
        bar = tqdm(
            _map(stale, workers),
            total=len(stale),
            desc=f"index {cache.name.removesuffix('.index.jsonl')}",
            unit="file",
            disable=not sys.stderr.isatty(),
        )
        known.update((row.path, row) for row in bar)
        _write_cache(cache, [known[p] for p in paths])
    return [known[clip.path] for clip in clips]


def cache_path(list_path: str | Path) -> Path:
    """Where the index of a list or class folder lies."""
    return Path(f"{str(list_path).rstrip('/')}.index.jsonl")


def read_row(path: str) -> Row:
    """The row of one file; never raises for a bad file: the reason is its `error`."""
    size, changed = _stamp(path)
    try:
        with Video(path) as video:
            frames = video.pictures.frames
            if not len(frames):
                raise ValueError(f"{path}: no picture of the video is ever shown")
            return Row(
                path,
                size,
                changed,
                len(frames),
                round(float(video.fps), 4),
                video.width,
                video.height,
                video.codec,
                tuple(video.pictures.keyframes.tolist()),
            )
    except ValueError as error:
        return Row(path, size, changed, error=str(error).removeprefix(f"{path}: "))


def _map(paths: Sequence[str], workers: int | None) -> Iterable[Row]:
    workers = min(workers or len(os.sched_getaffinity(0)), 32)
    if workers < 2 or len(paths) < _POOL_PAYS_FROM:
        yield from map(read_row, paths)
        return
    with worker_pool(workers) as pool:
        yield from pool.map(read_row, paths, chunksize=32)


def _stamp(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    except OSError:
        return 0, 0


def _read_cache(cache: Path) -> list[Row]:
    try:
        rows = [json.loads(line) for line in cache.read_text().splitlines()]
        return [Row(**{**row, "keyframes": tuple(row["keyframes"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"{cache}: not a readable index ({error}); reading every file again", file=sys.stderr)
        return []


def _write_cache(cache: Path, rows: Sequence[Row]) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
        temporary.replace(cache)
    except OSError as error:
        print(
            f"{cache}: the index cannot be kept ({error.strerror}); it will be built again next time", file=sys.stderr
        )
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> int:
    """The command: build or refresh the index and say what the list holds."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    for argument in arguments[1:]:
        if not argument.startswith("root="):
            print(f"{argument}: unknown argument; expected root=FOLDER", file=sys.stderr)
            return 2
    root = next((a.removeprefix("root=") for a in arguments[1:] if a.startswith("root=")), "")
    try:
        rows = build_index(read_list(arguments[0], root), cache_path(arguments[0]))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    bad = [row for row in rows if row.error]
    for row in bad:
        print(f"{row.path}: {row.error}")
    print(summary(rows))
    return 1 if bad else 0


def coverage(rows: Sequence[Row]) -> str:
    """How much of a list is there: its rows, files that were found or not, those of no use, hours."""
    missing, bad = sum(row.missing for row in rows), sum(bool(row.error) for row in rows)
    hours = sum(row.num_frames / row.fps for row in rows if row.fps) / 3600
    found = f"{len(rows) - missing} found, {missing} missing, {bad - missing} unusable"
    return f"{len(rows)} videos, {found}, {hours:.2f} hours"


def summary(rows: Sequence[Row]) -> str:
    """One line: coverage, frames, codecs, sizes."""
    good = [row for row in rows if not row.error]
    codecs = sorted({row.codec for row in good})
    sizes = len({(row.width, row.height) for row in good})
    return (
        f"{coverage(rows)}, {sum(r.num_frames for r in good)} frames, codecs: {', '.join(codecs) or 'none'}, "
        f"{sizes} frame sizes"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
