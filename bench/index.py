"""What the index of a video file costs, beside that of another checkout of this project.

    python -m bench.index [key=value ...] [--dry-run]

    before=PATH  another checkout, whose pipelines.index is measured on the same files in the same turns
    folder       folders of videos, or one video, with commas (default: files of its own)
    sets sizes=340x256 files=8 length=300 cache=PATH           its own files, as in bench.loading
    turns=9      each reads every file once with each checkout, in a process of its own
    out=PATH     the result (default bench/results/index.json)

Counted is the processor's time of a process, which other programs disturb less than the clock, once it has read each
file a first time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.harness import videos
from bench.harness.runner import at_least, command, shown, spread

_SETS = ("h264_bframes", "h264_gop12", "hevc_bframes", "vp9_gop12")
_SCRIPT = """
import json, sys, time
sys.path[0] = sys.argv[1]
from pipelines.index import read_row
paths = sys.argv[2:]
errors = [row.error for row in map(read_row, paths) if row.error]
before = time.process_time()
for path in paths:
    read_row(path)
print(json.dumps({"seconds": (time.process_time() - before) / len(paths), "errors": errors}))
"""


@dataclass(frozen=True)
class Settings(videos.Files):
    before: str = ""
    sets: tuple[str, ...] = _SETS
    turns: int = 9
    out: str = "bench/results/index.json"
    toy: ClassVar[str] = "sets=vp9_gop4 sizes=64x48 files=1 length=40 turns=2 before=."

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, turns=1)
        if self.before and not os.path.isfile(os.path.join(self.before, "pipelines/index.py")):
            raise ValueError(f"before={self.before}: expected a folder with a checkout of this project")


def read_files(checkout: str, paths: Sequence[str]) -> float:
    """Milliseconds of the processor for each file, in a new process that runs the code of a checkout."""
    started = [sys.executable, "-c", _SCRIPT, os.path.abspath(checkout), *paths]
    done = subprocess.run(started, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise ValueError(f"{checkout}: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["errors"]:
        raise ValueError(f"{checkout}: {found['errors'][0]}")
    return 1000 * found["seconds"]


def measure(paths: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Milliseconds a file, now and before, and their ratio in each turn."""
    checkouts = {"now": "."} | ({"before": settings.before} if settings.before else {})
    turns: dict[str, list[float]] = {name: [] for name in checkouts}
    for turn in range(settings.turns):
        for name in list(checkouts)[:: 1 if turn % 2 else -1]:
            turns[name].append(read_files(checkouts[name], paths))
    measured: dict[str, Any] = {"ms_a_file": {name: spread(values) for name, values in turns.items()}}
    if settings.before:
        measured["now_over_before"] = spread(np.array(turns["now"]) / np.array(turns["before"]))
    return measured


def measure_all(s: Settings) -> dict[str, Any]:
    sets = []
    for name, paths in s.find().items():
        sets.append({"name": name, "files": len(paths), **measure(paths, s)})
        times = "   ".join(f"{when} {shown(value, 2)} ms" for when, value in sets[-1]["ms_a_file"].items())
        ratio = f"   ratio {shown(sets[-1]['now_over_before'], 2)}" if s.before else ""
        print(f"{name:16} {times}{ratio}", flush=True)
    return {"sets": sets}


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("index", __doc__, Settings, measure_all, arguments, ("av",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
