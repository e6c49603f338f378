"""How long a run takes to begin: the index of a data set built once, and from then on the time to the first batch.

    python -m bench.startup [key=value ...] [--dry-run]

    counts=1000,240436    files of the data set, hard links to a few of its own in 400 class folders; 240,436: Kinetics
    sets=h264_bframes files=40 sizes=340x256 length=300 cache=PATH      its own files
    frames=16 stride=4 batch=8 workers=2      as data.*
    repeats=3    starts, once the index is there     device=auto
    out=PATH     the result (default bench/results/start.json)

What the operating system has read once it keeps: a cold disk takes longer. A start is what train.py does before its
first step, without importing (which is the same for any number of files): the list, whether the index still holds for
every file, the workers, the first batch. Of up to 10,000 files the index is built by reading them.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from bench.harness import videos
from bench.harness.runner import at_least, command, shown, spread
from bench.harness.system import own_mebibytes, settle
from configs import loading
from pipelines.data import cache
from pipelines.data.dataset import read_list
from pipelines.data.metadata import build_index, cache_path
from pipelines.decode.video_info import read_row
from pipelines.loader import VideoLoader, build_loader
from utils.device import choose_device
from utils.distributed import World

CLASSES = 400
MOST_READ = 10_000  # files that are read for an index here; of more the facts of what they are links to are taken


@dataclass(frozen=True)
class Settings(videos.Files):
    counts: tuple[str, ...] = ("1000", "240436")
    sets: tuple[str, ...] = ("h264_bframes",)
    files: int = 40
    frames: int = 16
    stride: int = 4
    batch: int = 8
    workers: int = 2
    device: str = "auto"
    repeats: int = 3
    out: str = "bench/results/start.json"
    toy: ClassVar[str] = "counts=30 sizes=64x48 files=2 length=80 repeats=1 workers=1"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, counts=1, frames=1, stride=0, batch=1, workers=1, repeats=1)
        if len(self.folder or self.sets) * len(self.sizes) > 1:
            raise ValueError(f"sets={','.join(self.sets)}: expected one set of one size, or one folder")


def linked(paths: Sequence[str], count: int, folder: Path) -> Path:
    """A list of `count` files, hard links to `paths`; those that are there already stay."""
    lines = []
    for number in range(count):
        path = folder / f"c{number % CLASSES:03d}" / f"{number:06d}.mp4"
        if number < CLASSES:
            path.parent.mkdir(parents=True, exist_ok=True)
        target = paths[number % len(paths)]
        if not path.exists() or not os.path.samefile(path, target):
            path.unlink(missing_ok=True)
            os.link(target, path)
        lines.append(f"{path.relative_to(folder)} {number % CLASSES}\n")
    listed = folder / "train.txt"
    listed.write_text("".join(lines))
    return listed


def measure(listed: Path, paths: Sequence[str], s: Settings) -> dict[str, Any]:
    """One data set: index it, then start several times."""
    index = cache_path(listed)
    index.unlink(missing_ok=True)
    clips = read_list(listed)
    built: dict[str, float] = {}
    if len(clips) <= MOST_READ:
        before = time.perf_counter()
        build_index(clips, index)
        seconds = time.perf_counter() - before
        built = {"index_build_s": round(seconds, 1), "index_build_s_per_1000": round(1000 * seconds / len(clips), 2)}
    else:  # links to the same file are the same fact
        facts = {os.stat(path).st_ino: read_row(path) for path in paths}
        cache.write(index, [replace(facts[os.stat(clip.path).st_ino], path=clip.path) for clip in clips], "index")
    files_known = {"files": len(clips), "usable": sum(not row.error for row in build_index(clips, index))}
    del clips  # what a run does not keep is not to be counted as its memory
    keys = {"train": listed, "frames": s.frames, "stride": s.stride, "batch": s.batch, "workers": s.workers}
    cfg = loading.load(None, [f"data.{key}={value}" for key, value in keys.items()])
    turns = []
    loader: VideoLoader | None = None
    for _ in range(s.repeats):
        loader = None  # and its workers
        settle()
        parts = list_and_index(listed, index)
        before = time.perf_counter()
        loader = build_loader(cfg, "train", [], World(), choose_device(s.device))
        next(iter(loader))
        turns.append({**parts, "start_s": time.perf_counter() - before})
    assert loader
    return {
        **files_known, **built, "index_mb": round(index.stat().st_size / 1e6, 1),
        "sent_to_a_worker_kb": round(len(pickle.dumps(loader.source, pickle.HIGHEST_PROTOCOL)) / 1e3, 1),
        "memory_mib": round(own_mebibytes()), **{key: spread(t[key] for t in turns) for key in turns[0]},
    }  # fmt: skip


def list_and_index(listed: Path, index: Path) -> dict[str, float]:
    """Seconds of the two parts of a start by themselves."""
    times = [time.perf_counter()]
    clips = read_list(listed)
    times.append(time.perf_counter())
    build_index(clips, index)
    times.append(time.perf_counter())
    return {"list_s": times[1] - times[0], "index_s": times[2] - times[1]}


def measure_all(s: Settings) -> dict[str, Any]:
    found = []
    ((_, paths),) = s.find().items()
    for count in map(int, s.counts):
        folder = Path(s.cache) / f"links_{s.sizes[0]}_{s.sets[0]}_{count}"
        found.append(measure(linked(paths, count, folder), paths, s))
        f = found[-1]
        built = f"index built in {f['index_build_s']} s; " if "index_build_s" in f else ""
        start, read, index = (shown(f[key], 2) for key in ("start_s", "list_s", "index_s"))
        print(
            f"{f['files']:>7} files: {built}index of {f['index_mb']} MB; first batch after {start} s, of it the list "
            f"{read} s and the index {index} s; {f['memory_mib']} MiB, {f['sent_to_a_worker_kb']} kB to each worker",
            flush=True,
        )
    return {"sets": found}


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("start", __doc__, Settings, measure_all, arguments, ())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
