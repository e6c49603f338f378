"""Measure what indexing a video file costs, beside another checkout of this project.

    python -m bench.index [key=value ...] [--dry-run]

    before=PATH     another checkout, whose read_video_info() is measured on the same files in the same rounds
    folder=         folders of videos, or single videos, separated by commas (default: generated videos)
    sets= sizes=340x256 files=8 length=300 cache=PATH       generated videos, as in bench.loading
    rounds=9        in each round each checkout reads every file once, in a new process
    out=PATH        the result (default bench/results/index.json)

What counts is the CPU time of the process, on which other programs have less influence than on the wall time, after it
has read each file once.
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

from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_minimum, run_bench
from bench.harness.videos import VideoSettings

_SETS = ("h264_bframes", "h264_gop12", "hevc_bframes", "vp9_gop12")
_SCRIPT = """
import json, sys, time
sys.path[0] = sys.argv[1]
from pipelines.decode.video_info import read_video_info
paths = sys.argv[2:]
errors = [info.error for info in map(read_video_info, paths) if info.error]
before = time.process_time()
for path in paths:
    read_video_info(path)
print(json.dumps({"seconds": (time.process_time() - before) / len(paths), "errors": errors}))
"""


@dataclass(frozen=True)
class Settings(VideoSettings):
    """The settings of this benchmark; the module's help explains them."""

    before: str = ""
    sets: tuple[str, ...] = _SETS
    rounds: int = 9
    out: str = "bench/results/index.json"
    dry_run_args: ClassVar[str] = "sets=vp9_gop4 sizes=64x48 files=1 length=40 rounds=2 before=."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, rounds=1)
        if self.before and not os.path.isfile(os.path.join(self.before, "pipelines/decode/video_info.py")):
            raise ValueError(f"before={self.before}: expected a folder with a checkout of this project")


def time_indexing(checkout: str, paths: Sequence[str]) -> float:
    """Return the CPU milliseconds per file, in a new process that runs the code of a checkout.

    Raises ValueError if the process fails or cannot read a file.
    """
    command = [sys.executable, "-c", _SCRIPT, os.path.abspath(checkout), *paths]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if process.returncode:
        raise ValueError(f"{checkout}: {process.stderr.strip().splitlines()[-1]}")
    output = json.loads(process.stdout.splitlines()[-1])
    if output["errors"]:
        raise ValueError(f"{checkout}: {output['errors'][0]}")
    return 1000 * output["seconds"]


def measure(paths: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Return the milliseconds per file, now and before, and their ratio in each round."""
    checkouts = {"now": "."} | ({"before": settings.before} if settings.before else {})
    rounds: dict[str, list[float]] = {name: [] for name in checkouts}
    for number in range(settings.rounds):
        for name in list(checkouts)[:: 1 if number % 2 else -1]:
            rounds[name].append(time_indexing(checkouts[name], paths))
    result: dict[str, Any] = {"ms_per_file": {name: summarize(values) for name, values in rounds.items()}}
    if settings.before:
        result["now_over_before"] = summarize(np.array(rounds["now"]) / np.array(rounds["before"]))
    return result


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all sets of files."""
    sets = []
    for name, paths in settings.find_videos().items():
        sets.append({"name": name, "files": len(paths), **measure(paths, settings)})
        times = "   ".join(f"{when} {format_iqr(value, 2)} ms" for when, value in sets[-1]["ms_per_file"].items())
        ratio = f"   ratio {format_iqr(sets[-1]['now_over_before'], 2)}" if settings.before else ""
        print(f"{name:16} {times}{ratio}", flush=True)
    return {"sets": sets}


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("index", __doc__, Settings, measure_all, argv, ("av",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
