"""Measure how long a run takes to start: building the index once, and then the time to the first batch.

    python -m bench.startup [key=value ...] [--dry-run]

    counts=1000,240436      files of the data set: hard links to a few generated ones in 400 class folders;
                    240,436 is the size of Kinetics-400
    sets=h264_bframes files=40 sizes=340x256 length=300 cache=PATH      generated videos, as in bench.loading
    num_frames=16 frame_stride=4 batch_size=8 num_workers=2     as in the section data of a configuration
    rounds=3        starts with an existing index
    device=auto     auto uses a GPU if there is one
    out=PATH        the result (default bench/results/startup.json)

Files that were read before are in the page cache: a cold disk takes longer. A start is what train.py does before its
first step, except for imports, which do not depend on the number of files: read the list, check that the index is valid
for every file, start the workers, wait for the first batch. The index of up to 10,000 files is built by reading them.
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

from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_minimum, run_bench
from bench.harness.system import process_tree_memory_mib, wait_until_idle
from bench.harness.videos import VideoSettings
from configs.schema import Data
from pipelines.data import cache
from pipelines.data.dataset import read_list
from pipelines.data.metadata import build_index, cache_path
from pipelines.decode.video_info import read_video_info
from pipelines.loader import VideoLoader

NUM_CLASSES = 400
MAX_INDEXED = 10_000  # larger data sets get the metadata of the files that their links refer to


@dataclass(frozen=True)
class Settings(VideoSettings):
    """The settings of this benchmark; the module's help explains them."""

    counts: tuple[str, ...] = ("1000", "240436")
    sets: tuple[str, ...] = ("h264_bframes",)
    files: int = 40
    num_frames: int = 16
    frame_stride: int = 4
    batch_size: int = 8
    num_workers: int = 2
    device: str = "auto"
    rounds: int = 3
    out: str = "bench/results/startup.json"
    dry_run_args: ClassVar[str] = "counts=30 sizes=64x48 files=2 length=80 rounds=1 num_workers=1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, counts=1, num_frames=1, frame_stride=0, batch_size=1, num_workers=1, rounds=1)
        if len(self.folder or self.sets) * len(self.sizes) > 1:
            raise ValueError(f"sets={','.join(self.sets)}: expected one set of one size, or one folder")


def link_files(paths: Sequence[str], count: int, folder: Path) -> Path:
    """Write a list of `count` files that are hard links to `paths`, and return its path. Existing links are kept."""
    lines = []
    for number in range(count):
        path = folder / f"c{number % NUM_CLASSES:03d}" / f"{number:06d}.mp4"
        if number < NUM_CLASSES:
            path.parent.mkdir(parents=True, exist_ok=True)
        target = paths[number % len(paths)]
        if not path.exists() or not os.path.samefile(path, target):
            path.unlink(missing_ok=True)
            os.link(target, path)
        lines.append(f"{path.relative_to(folder)} {number % NUM_CLASSES}\n")
    list_file = folder / "train.txt"
    list_file.write_text("".join(lines))
    return list_file


def make_index(list_file: Path, paths: Sequence[str]) -> dict[str, float]:
    """Build the index of a list anew; return how long that took if its files were read."""
    index = cache_path(list_file)
    index.unlink(missing_ok=True)
    videos = read_list(list_file)
    if len(videos) > MAX_INDEXED:  # links to the same file have the same metadata
        infos = {os.stat(path).st_ino: read_video_info(path) for path in paths}
        linked = [replace(infos[os.stat(video.path).st_ino], path=video.path) for video in videos]
        cache.write_cache(index, linked, "index")
        return {}
    before = time.perf_counter()
    build_index(videos, index)
    seconds = time.perf_counter() - before
    return {"index_build_s": round(seconds, 1), "index_build_s_per_1000": round(1000 * seconds / len(videos), 2)}


def count_usable(list_file: Path) -> dict[str, int]:
    """Count the files of a list and those that can be read."""
    videos = read_list(list_file)
    infos = build_index(videos, cache_path(list_file))
    return {"files": len(videos), "usable": sum(not info.error for info in infos)}


def measure(list_file: Path, paths: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Index one data set, then start several times."""
    index = cache_path(list_file)
    built = make_index(list_file, paths)
    counts = count_usable(list_file)
    data = Data(
        num_frames=settings.num_frames,
        frame_stride=settings.frame_stride,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
    )
    rounds = []
    loader: VideoLoader | None = None
    for _ in range(settings.rounds):
        loader = None  # ends its workers
        wait_until_idle()
        parts = time_list_and_index(list_file, index)
        before = time.perf_counter()
        loader = VideoLoader(list_file, data, device=settings.device)
        next(iter(loader))
        rounds.append({**parts, "start_s": time.perf_counter() - before})
    assert loader
    return {
        **counts,
        **built,
        "index_mb": round(index.stat().st_size / 1e6, 1),
        "sent_per_worker_kb": round(len(pickle.dumps(loader.source, pickle.HIGHEST_PROTOCOL)) / 1e3, 1),
        "memory_mib": round(process_tree_memory_mib()),
        **{key: summarize(seconds[key] for seconds in rounds) for key in rounds[0]},
    }


def time_list_and_index(list_file: Path, index: Path) -> dict[str, float]:
    """Return the seconds of two parts of a start by themselves."""
    times = [time.perf_counter()]
    videos = read_list(list_file)
    times.append(time.perf_counter())
    build_index(videos, index)
    times.append(time.perf_counter())
    return {"list_s": times[1] - times[0], "index_s": times[2] - times[1]}


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure data sets of all sizes."""
    results = []
    ((_, paths),) = settings.find_videos().items()
    for count in map(int, settings.counts):
        folder = Path(settings.cache) / f"links_{settings.sizes[0]}_{settings.sets[0]}_{count}"
        result = measure(link_files(paths, count, folder), paths, settings)
        results.append(result)
        built = f"index built in {result['index_build_s']} s; " if "index_build_s" in result else ""
        start, read, index = (format_iqr(result[key], 2) for key in ("start_s", "list_s", "index_s"))
        print(
            f"{result['files']:>7} files: {built}index of {result['index_mb']} MB; first batch after {start} s, of "
            f"which the list {read} s and the index {index} s; {result['memory_mib']} MiB, "
            f"{result['sent_per_worker_kb']} kB per worker",
            flush=True,
        )
    return {"sets": results}


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("startup", __doc__, Settings, measure_all, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
