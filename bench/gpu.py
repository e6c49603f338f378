"""Measure on a GPU that is available for some minutes, once, with the most important parts first.

    python -m bench.gpu [minutes=9] [out=FOLDER] [parts=capabilities,tests,...] [--dry-run]

    minutes     for everything; what does not fit is left out, and the summary says so
    out         folder of all results and logs (default bench/results/gpu_NAME); results measured again are replaced
    parts       capabilities, tests, decoders, loaders, train_step, data_over_synthetic, epoch_time, hog, prepare;
                always in this order

Every part consists of processes that are killed, with their children, at their own time limit. A result is written as
soon as it is there, and summary.txt and summary.json are rewritten after each process, so that an interruption costs
only the measurement under way. results.zip contains all files. If the environment variable OUT names a folder, as on
rented machines that return a few files, the summaries and results.zip are copied there each time. --dry-run runs
everything in a small size, with or without a GPU. The exit status is 0 if everything that was started succeeded.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_parts import PARTS, build_parts
from bench.harness.ffmpeg import ffmpeg_libraries
from bench.harness.gpu_machine import gpu_name, slug
from bench.harness.schedule import ROOT, Progress, run_parts, write_summary
from utils.cli import parse_args, run_command


@dataclass(frozen=True)
class Settings:
    """The settings of this command; the module's help explains them."""

    minutes: float = 9.0
    out: str = ""
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        for name in self.parts:
            if name not in PARTS:
                raise ValueError(f"parts={name}: expected some of {','.join(PARTS)}")
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes}: expected more than 0")


def measure(settings: Settings, folder: Path, gpu: str, dry_run: bool, started: float) -> bool:
    """Run the parts, and return whether everything that was started succeeded."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else None
    if copy_folder:
        copy_folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(
        title=f"{gpu or 'no GPU'}{', dry run: the figures mean nothing' if dry_run else ''}",
        parts=[part for part in build_parts(folder, bool(gpu), dry_run) if part.name in settings.parts],
        folder=folder,
        budget_s=60 * settings.minutes,
        started=started,
        copy_folder=copy_folder,
    )
    with tempfile.TemporaryDirectory(prefix="clipline-ffmpeg-") as links:
        try:
            run_parts(progress, task_environment(Path(links), dry_run))
            return progress.succeeded
        except KeyboardInterrupt:
            print("interrupted: finished results are kept", file=sys.stderr)
            return False
        finally:
            write_summary(progress)
            print((folder / "summary.txt").read_text(), end="", flush=True)
            copied = f"; summaries and results.zip are also in {copy_folder}" if copy_folder else ""
            print(f"results are in {folder}{copied}", flush=True)


def task_environment(links: Path, dry_run: bool) -> dict[str, str]:
    """Return the environment of the tasks; FFmpeg's libraries are linked in `links` if the system has none."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    if dry_run:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # compiling small networks takes longer than everything else
    if libraries := ffmpeg_libraries(links):
        print("FFmpeg is not installed: torchcodec and SPDL use the libraries that come with PyAV", flush=True)
        previous = [environment["LD_LIBRARY_PATH"]] if environment.get("LD_LIBRARY_PATH") else []
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([*previous, *libraries])
    return environment


def work(argv: Sequence[str]) -> int:
    """Measure all parts; return 1 if a task that was started failed."""
    started = time.monotonic()
    arguments = [argument for argument in argv if argument != "--dry-run"]
    dry_run = len(arguments) < len(argv)
    _, settings = parse_args(Settings, arguments)
    gpu = gpu_name()
    if not gpu and not dry_run:
        raise ValueError("torch finds no GPU here; --dry-run runs everything in a small size without one")
    with tempfile.TemporaryDirectory(prefix="clipline-dry-run-") as temporary:
        default = Path(temporary) if dry_run else ROOT / "bench" / "results" / f"gpu_{slug(gpu)}"
        folder = Path(settings.out).absolute() if settings.out else default
        return 0 if measure(settings, folder, gpu, dry_run, started) else 1


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_command("bench.gpu", __doc__, work, argv, needs_arguments=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
