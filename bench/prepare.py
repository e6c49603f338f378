"""Measure how fast pipelines.prepare re-encodes files on a GPU and on a CPU, and how fast the results decode.

    python -m bench.prepare [key=value ...] [--dry-run]

    folder=         folders of videos, or single videos, separated by commas (default: generated videos)
    sets=h264_bframes sizes=340x256 files=16 length=300 cache=PATH      generated videos, as in bench.loading
    encoders=nvenc,software         nvenc is left out, with a message, where no GPU encodes
    num_workers=0   processes (0: one per core)
    rounds=3        rounds of every encoder
    out=PATH        the result (default bench/results/prepare.json)

The encoders run one after another in each round. Files/s include the start of the processes, but not the final
measurement of clips/s, which is PyAV's on one core before and after, as pipelines.prepare prints it.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_choices, check_minimum, run_bench
from bench.harness.videos import VideoSettings
from pipelines import prepare

ENCODERS = ("nvenc", "software")
NO_NVENC = "no GPU here encodes H.264 (A100, H100 and H200 have no NVENC, and a container needs the video capability)"


@dataclass(frozen=True)
class Settings(VideoSettings):
    """The settings of this benchmark; the module's help explains them."""

    sets: tuple[str, ...] = ("h264_bframes",)
    files: int = 16
    encoders: tuple[str, ...] = ENCODERS
    num_workers: int = 0
    rounds: int = 3
    out: str = "bench/results/prepare.json"
    dry_run_args: ClassVar[str] = "sizes=96x64 files=2 length=40 rounds=1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, encoders=ENCODERS)
        check_minimum(self, num_workers=0, rounds=1)


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all sets of files with every encoder that works here."""
    usable = [encoder for encoder in settings.encoders if encoder != "nvenc" or prepare.nvenc_works("h264")]
    left_out = {encoder: NO_NVENC for encoder in settings.encoders if encoder not in usable}
    for encoder, reason in left_out.items():
        print(f"left out: {encoder}: {reason}", flush=True)
    sets = []
    for name, paths in settings.find_videos().items():
        rounds: dict[str, list[dict[str, float]]] = {encoder: [] for encoder in usable}
        for _ in range(settings.rounds):
            for encoder in usable:
                rounds[encoder].append(prepare_all(paths, encoder, settings.num_workers))
        encoders = {
            encoder: {key: summarize(figures[key] for figures in results) for key in results[0]}
            for encoder, results in rounds.items()
        }
        sets.append({"name": name, "files": len(paths), "encoders": encoders})
        print(format_table(sets[-1]), flush=True)
    return {"sets": sets, "left_out": left_out}


def prepare_all(paths: Sequence[str], encoder: str, num_workers: int) -> dict[str, float]:
    """Prepare the files once into a temporary folder, and return the figures.

    Raises ValueError with the output of pipelines.prepare if a file is not prepared.
    """
    output = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        list_file = Path(folder) / "all.txt"
        list_file.write_text("".join(f"{Path(path).absolute()} 0\n" for path in paths))
        arguments = [str(list_file), f"{folder}/prepared", f"root={Path(paths[0]).absolute().parent}"]
        before = time.time()
        with contextlib.redirect_stdout(output):
            status = prepare.main([*arguments, f"encoder={encoder}", f"workers={num_workers}"])
        if status:
            raise ValueError(f"encoder={encoder}: {output.getvalue().strip()}")
        seconds = Path(folder, "prepared", "all.txt").stat().st_mtime - before  # the list is written after all files
        size = sum(path.stat().st_size for path in Path(folder, "prepared").rglob("*.mp4"))
    rates = re.search(r"^clips/s of PyAV.*?([\d.]+)\s+([\d.]+)$", output.getvalue(), re.M)
    if not rates:
        raise ValueError(f"pipelines.prepare printed no clips/s of PyAV: {output.getvalue().strip()}")
    return {
        "files_per_s": len(paths) / seconds,
        "megabytes": size / 1e6,
        "clips_per_s_before": float(rates[1]),
        "clips_per_s_after": float(rates[2]),
    }


def format_table(table: Mapping[str, Any]) -> str:
    """Format one set as text, one line per encoder."""
    lines = [
        "",
        f"{table['name']}, {table['files']} files",
        f"{'encoder':10} {'files/s':>20} {'MB':>20} {'clips/s before':>20} {'after':>20}",
    ]
    for encoder, figures in table["encoders"].items():
        keys = ("files_per_s", "megabytes", "clips_per_s_before", "clips_per_s_after")
        lines.append(f"{encoder:10} " + " ".join(f"{format_iqr(figures[key], 1):>20}" for key in keys))
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("prepare", __doc__, Settings, measure_all, argv, ("av",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
