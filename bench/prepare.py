"""How fast pipelines.prepare re-encodes files with a GPU's encoder and with a CPU's, and how fast they decode then.

    python -m bench.prepare [key=value ...] [--dry-run]

    folder      folders of videos, or one video, with commas (default: files of its own, as in bench.loading)
    sets=h264_bframes sizes=340x256 files=16 length=300 cache=PATH      its own files
    encoders=nvenc,software    what is compared; nvenc is left out, which is said, where no GPU encodes
    workers=0   processes (0: one a core)      repeats=3    turns of each encoder
    out=PATH    the result (default bench/results/prepare.json)

The encoders take turns. Files/s count the start of the processes, too, but not the closing measurement of clips/s,
which are of PyAV on one core, before and after, as pipelines.prepare says them.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.harness import videos
from bench.harness.runner import at_least, command, known, shown, spread
from pipelines import prepare

ENCODERS = ("nvenc", "software")
NO_NVENC = "no GPU here encodes H.264 (A100, H100 and H200 have no NVENC, and a container needs the video capability)"


@dataclass(frozen=True)
class Settings(videos.Files):
    sets: tuple[str, ...] = ("h264_bframes",)
    files: int = 16
    encoders: tuple[str, ...] = ENCODERS
    workers: int = 0
    repeats: int = 3
    out: str = "bench/results/prepare.json"
    toy: ClassVar[str] = "sizes=96x64 files=2 length=40 repeats=1"

    def __post_init__(self) -> None:
        super().__post_init__()
        known(self, encoders=ENCODERS)
        at_least(self, workers=0, repeats=1)


def measure_all(s: Settings) -> dict[str, Any]:
    usable = [encoder for encoder in s.encoders if encoder != "nvenc" or prepare.nvenc_works("h264")]
    left_out = {encoder: NO_NVENC for encoder in s.encoders if encoder not in usable}
    for encoder, reason in left_out.items():
        print(f"left out: {encoder}: {reason}", flush=True)
    sets = []
    for name, paths in s.find().items():
        rounds: dict[str, list[dict[str, float]]] = {encoder: [] for encoder in usable}
        for _ in range(s.repeats):
            for encoder in usable:
                rounds[encoder].append(prepare_all(paths, encoder, s.workers))
        encoders = {encoder: {key: spread(r[key] for r in done) for key in done[0]} for encoder, done in rounds.items()}
        sets.append({"name": name, "files": len(paths), "encoders": encoders})
        print(table(sets[-1]), flush=True)
    return {"sets": sets, "left_out": left_out}


def prepare_all(paths: Sequence[str], encoder: str, workers: int) -> dict[str, float]:
    """Prepare the files once into a folder of its own. Raises ValueError with what was said if one is not prepared."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        listed = Path(folder) / "all.txt"
        listed.write_text("".join(f"{Path(path).absolute()} 0\n" for path in paths))
        words = [str(listed), f"{folder}/prepared", f"root={Path(paths[0]).absolute().parent}"]
        before = time.time()
        with contextlib.redirect_stdout(said):
            status = prepare.main([*words, f"encoder={encoder}", f"workers={workers}"])
        if status:
            raise ValueError(f"encoder={encoder}: {said.getvalue().strip()}")
        seconds = Path(folder, "prepared", "all.txt").stat().st_mtime - before  # the list is written after all files
        size = sum(path.stat().st_size for path in Path(folder, "prepared").rglob("*.mp4"))
    rates = re.search(r"^clips/s of PyAV.*?([\d.]+)\s+([\d.]+)$", said.getvalue(), re.M)
    if not rates:
        raise ValueError(f"pipelines.prepare said no clips/s of PyAV before and after: {said.getvalue().strip()}")
    return {
        "files_per_s": len(paths) / seconds, "megabytes": size / 1e6,
        "clips_per_s_before": float(rates[1]), "clips_per_s_after": float(rates[2]),
    }  # fmt: skip


def table(measured: dict[str, Any]) -> str:
    """A line an encoder."""
    lines = ["", f"{measured['name']}, {measured['files']} files",
             f"{'encoder':10} {'files/s':>20} {'MB':>20} {'clips/s before':>20} {'after':>20}"]  # fmt: skip
    for encoder, found in measured["encoders"].items():
        keys = ("files_per_s", "megabytes", "clips_per_s_before", "clips_per_s_after")
        lines.append(f"{encoder:10} " + " ".join(f"{shown(found[key], 1):>20}" for key in keys))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("prepare", __doc__, Settings, measure_all, arguments, ("av",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
