"""Measure the bytes that are read per clip: the whole file, or only the ranges that the clip needs.

    python -m bench.bytes_read [key=value ...] [--dry-run]

    folder=         folders of videos, or single videos, separated by commas (default: generated videos)
    sets= sizes=340x256 files=8 length=300 cache=PATH       generated videos, as in bench.loading
    clips=100       random clips of each set
    specs=16x4,8x32         frames x stride
    seed=0          seed of the clips
    out=PATH        the result (default bench/results/bytes_read.json)

There are three ways to the same trimmed video: `whole_file` demuxes the file; `ranges` knows its packets from the
index; `fsspec` does the same through fsspec, in blocks, as for a file on another machine. What counts is what the
process reads, as counted by the kernel (rchar): it includes the container's header, its index, and neighbors that are
read along.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_minimum, run_bench
from bench.harness.system import process_tree_read_bytes
from bench.harness.videos import VideoSettings, describe_videos
from pipelines.decode.trim import trim
from pipelines.decode.video_info import VideoInfo, read_video_info
from pipelines.sampling.temporal import random_clip


@dataclass(frozen=True)
class Settings(VideoSettings):
    """The settings of this benchmark; the module's help explains them."""

    clips: int = 100
    specs: tuple[str, ...] = ("16x4", "8x32")
    seed: int = 0
    out: str = "bench/results/bytes_read.json"
    dry_run_args: ClassVar[str] = "sets=vp9_gop4 sizes=64x48 files=1 length=40 clips=2 specs=4x2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, clips=1, seed=0)
        for spec in self.specs:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", spec):
                raise ValueError(f"specs={spec}: expected FRAMESxSTRIDE")


def measure(infos: Sequence[VideoInfo], spec: str, settings: Settings) -> dict[str, Any]:
    """Return the bytes per clip of each way, and as fractions of the files."""
    num_frames, frame_stride = map(int, spec.split("x"))
    rng = np.random.default_rng(settings.seed)
    read_bytes: dict[str, list[float]] = {"whole_file": [], "ranges": [], "fsspec": []}
    own_process = [os.getpid()]
    process_tree_read_bytes(own_process)
    overhead = -process_tree_read_bytes(own_process) + process_tree_read_bytes(own_process)  # of a reading itself
    for number in range(settings.clips):
        info = infos[number % len(infos)]
        frames = random_clip(info.num_frames, num_frames, frame_stride, "wrap", rng)
        sources = {
            "whole_file": (info.path, ""),
            "ranges": (info.path, info.table),
            "fsspec": (f"file://{os.path.abspath(info.path)}", info.table),
        }
        trimmed = []
        for name, (path, table) in sources.items():
            before = process_tree_read_bytes(own_process)
            trimmed.append(trim(path, frames, table=table)[0])
            read_bytes[name].append(process_tree_read_bytes(own_process) - before - overhead)
        assert len(set(map(len, trimmed))) == 1, info.path
    file_bytes = sum(infos[n % len(infos)].size for n in range(settings.clips)) / settings.clips
    return {
        "spec": spec,
        "file_bytes": round(file_bytes),
        "bytes_per_clip": {name: summarize(values) for name, values in read_bytes.items()},
        "fraction_of_file": {
            name: round(float(np.mean(values)) / file_bytes, 4) for name, values in read_bytes.items()
        },
    }


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all sets of files."""
    sets = []
    for name, paths in settings.find_videos().items():
        infos = [read_video_info(path) for path in paths]
        results = [measure(infos, spec, settings) for spec in settings.specs]
        sets.append({"name": name, **describe_videos(infos), "specs": results})
        for result in results:
            fractions = "   ".join(
                f"{key} {100 * fraction:5.1f} % ({format_iqr(result['bytes_per_clip'][key], 0)} bytes)"
                for key, fraction in result["fraction_of_file"].items()
            )
            print(f"{name:16} {result['spec']:6} {fractions}", flush=True)
    return {"sets": sets}


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("bytes_read", __doc__, Settings, measure_all, argv, ("fsspec",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
