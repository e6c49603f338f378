"""All that is worth measuring on a GPU that is there for some minutes, once, in the order of its value.

    python -m bench.gpu [minutes=9] [out=FOLDER] [parts=card,tests,...] [--dry-run]

    minutes     for everything; what would not fit in is left out, which the summary says
    out         the folder of all results and logs (default bench/results/gpu_CARD); what is measured again is replaced
    parts       card, tests, decode, loader, step, data_over_synthetic, epoch_time, hog, prepare; always in this order

Every part is made of processes that are killed, with their children, at a time limit of their own; a result is in the
folder as soon as it is there, and summary.txt and summary.json are rewritten after each process, so that a cut at any
time loses only what was being measured. results.zip holds all files. Where the environment has OUT, a folder that a
rented machine hands back, the summaries and results.zip are copied there each time: such machines hand back few files.
--dry-run runs everything at toy size, without a GPU, too. The exit status is 0 if all that was begun succeeded.
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
from bench.harness.gpu_machine import card_name, ffmpeg_libraries, slug
from bench.harness.schedule import ROOT, Progress, run_parts, write_summary
from utils.cli import parse


@dataclass(frozen=True)
class Settings:
    minutes: float = 9.0
    out: str = ""
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        for name in self.parts:
            if name not in PARTS:
                raise ValueError(f"parts={name}: expected some of {','.join(PARTS)}")
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes}: expected more than 0")


def measure(settings: Settings, folder: Path, card: str, dry: bool, begun: float) -> bool:
    """Run the parts, and return whether all that was begun succeeded."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = Path(os.environ["OUT"]) if os.environ.get("OUT") else None
    if copies:
        copies.mkdir(parents=True, exist_ok=True)
    parts = [part for part in build_parts(folder, bool(card), dry) if part.name in settings.parts]
    title = f"{card or 'no GPU'}{', dry run: the figures mean nothing' if dry else ''}"
    progress = Progress(title, parts, folder, 60 * settings.minutes, begun=begun, copies=copies)
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    if dry:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # to compile toys takes longer than everything else
    with tempfile.TemporaryDirectory(prefix="clipline-ffmpeg-") as links:
        if libraries := ffmpeg_libraries(Path(links)):
            print("no FFmpeg is installed: torchcodec and SPDL get the libraries that PyAV brings", flush=True)
            before = [environment["LD_LIBRARY_PATH"]] if environment.get("LD_LIBRARY_PATH") else []
            environment["LD_LIBRARY_PATH"] = os.pathsep.join([*before, *libraries])
        try:
            run_parts(progress, environment)
            return progress.succeeded
        except KeyboardInterrupt:
            print("interrupted: what is finished stays", file=sys.stderr)
            return False
        finally:
            write_summary(progress)
            print((folder / "summary.txt").read_text(), end="", flush=True)
            print(
                f"in {folder}{f', and of it the summaries and results.zip in {copies}' if copies else ''}", flush=True
            )


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    begun = time.monotonic()
    words = [word for word in arguments if word != "--dry-run"]
    dry = len(words) < len(arguments)
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        _, settings = parse(Settings, words)
        card = card_name()
        if not card and not dry:
            raise ValueError("torch finds no GPU here; --dry-run runs everything at toy size without one")
        with tempfile.TemporaryDirectory(prefix="clipline-dry-run-") as temporary:
            default = Path(temporary) if dry else ROOT / "bench" / "results" / f"gpu_{slug(card)}"
            folder = Path(settings.out).absolute() if settings.out else default
            return 0 if measure(settings, folder, card, dry, begun) else 1
    except (ValueError, OSError) as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first part, or once more while the last summary was written
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
