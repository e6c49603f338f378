"""Bytes that are read for a clip: the whole file, or the ranges that the clip needs.

    python -m bench.bytes_read [key=value ...] [--dry-run]

    folder      folders of videos, or one video, with commas (default: files of its own)
    sets sizes=340x256 files=8 length=300 cache=PATH           its own files, as in bench.loading
    clips=100   random clips of each set     specs=16x4,8x32   frames x stride     seed=0
    out=PATH    the result (default bench/results/bytes.json)

Three ways to the same trimmed video: `whole` demuxes the file; `ranges` knows its pictures from the index; `address`
does so through fsspec, in blocks, as from another machine. Counted is what the process reads, by the kernel's own
account (rchar), which holds the container's header, its index, and neighbours that are read along.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.harness import videos
from bench.harness.runner import at_least, command, shown, spread
from bench.harness.system import own_bytes
from pipelines.decode.trim import trim
from pipelines.decode.video_info import Row, read_row
from pipelines.sampling.temporal import random_clip


@dataclass(frozen=True)
class Settings(videos.Files):
    clips: int = 100
    specs: tuple[str, ...] = ("16x4", "8x32")
    seed: int = 0
    out: str = "bench/results/bytes.json"
    toy: ClassVar[str] = "sets=vp9_gop4 sizes=64x48 files=1 length=40 clips=2 specs=4x2"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, clips=1, seed=0)
        for word in self.specs:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", word):
                raise ValueError(f"specs={word}: expected FRAMESxSTRIDE")


def measure(rows: Sequence[Row], spec: str, settings: Settings) -> dict[str, Any]:
    """-> bytes a clip of each way, and as shares of the files."""
    frames, stride = map(int, spec.split("x"))
    rng = np.random.default_rng(settings.seed)
    taken: dict[str, list[float]] = {"whole": [], "ranges": [], "address": []}
    own_bytes([os.getpid()])
    overhead = -own_bytes([os.getpid()]) + own_bytes([os.getpid()])  # of looking
    for number in range(settings.clips):
        row = rows[number % len(rows)]
        clip = random_clip(row.num_frames, frames, stride, "loop", rng)
        ways = {"whole": (row.path, ""), "ranges": (row.path, row.table),
                "address": (f"file://{os.path.abspath(row.path)}", row.table)}  # fmt: skip
        results = []
        for way, (path, table) in ways.items():
            before = own_bytes([os.getpid()])
            results.append(trim(path, clip, table=table)[0])
            taken[way].append(own_bytes([os.getpid()]) - before - overhead)
        assert len(set(map(len, results))) == 1, row.path
    mean = sum(rows[n % len(rows)].size for n in range(settings.clips)) / settings.clips
    return {
        "spec": spec, "file_bytes": round(mean), "bytes": {way: spread(values) for way, values in taken.items()},
        "share_of_file": {way: round(float(np.mean(values)) / mean, 4) for way, values in taken.items()},
    }  # fmt: skip


def measure_all(s: Settings) -> dict[str, Any]:
    sets = []
    for name, paths in s.find().items():
        rows = [read_row(path) for path in paths]
        sets.append({"name": name, **videos.describe(rows), "specs": [measure(rows, spec, s) for spec in s.specs]})
        for found in sets[-1]["specs"]:
            shares = "   ".join(
                f"{way} {100 * share:5.1f} % ({shown(found['bytes'][way], 0)} bytes)"
                for way, share in found["share_of_file"].items()
            )
            print(f"{name:16} {found['spec']:6} {shares}", flush=True)
    return {"sets": sets}


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("bytes", __doc__, Settings, measure_all, arguments, ("fsspec",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
