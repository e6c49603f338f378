"""Measure training in a loop of ten lines with Clipline's loader beside train.py.

    python -m bench.own_loop [key=value ...] [--dry-run]

    folder=         folders of videos, or single videos, separated by commas (default: generated videos)
    sets=h264_bframes sizes=340x256 files=8 length=300 cache=PATH       generated videos, as in bench.loading
    network=        its name and arguments, as for train.py, separated by commas (default: a TimeSformer of one block
                    with embed_dim=48, as in bench.epoch_time, so that the loader decides)
    num_frames=16 frame_stride=4 image_size=224 batch_size=8 num_workers=2      as in the section data
    cpu_threads=1   of torch, in both
    device=auto     auto uses a GPU if there is one
    steps=40        steps of each run; the first half is not timed
    rounds=7        runs of each, in turns
    out=PATH        the result (default bench/results/own_loop.json)

Each run is a new process, in fp32 and without torch.compile. The loop is that of docs/loader.md: forward, loss,
backward, AdamW. train.py also clips gradients, follows its schedule, counts metrics and writes them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_minimum, run_bench
from bench.harness.system import wait_until_idle
from bench.harness.videos import VideoSettings, describe_videos
from pipelines.decode.video_info import read_video_info
from training.history import read_metrics
from utils.device import choose_device
from utils.files import temporary_folder

ROOT = Path(__file__).resolve().parents[1]
LOOP = """
import json, sys, time, torch
from torch.nn import functional as F
from networks import build
from pipelines.loader import VideoLoader

list_file, data_keys, network_name, network_args, device, threads, last_untimed = json.loads(sys.argv[1])
torch.set_num_threads(threads)
with VideoLoader(list_file, device=device, **data_keys) as loader:
    network = build(network_name, num_classes=len(loader.classes), **network_args).to(loader.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for step, batch in enumerate(loader, 1):
        loss = F.cross_entropy(network(batch.video), batch.label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == last_untimed:
            print(loss.item(), begin := time.perf_counter())
    print(loss.item(), time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class Settings(VideoSettings):
    """The settings of this benchmark; the module's help explains them."""

    sets: tuple[str, ...] = ("h264_bframes",)
    network: tuple[str, ...] = ("timesformer_b", "embed_dim=48", "depth=1", "num_heads=1")
    num_frames: int = 16
    frame_stride: int = 4
    image_size: int = 224
    batch_size: int = 8
    num_workers: int = 2
    cpu_threads: int = 1
    device: str = "auto"
    steps: int = 40
    rounds: int = 7
    out: str = "bench/results/own_loop.json"
    dry_run_args: ClassVar[str] = (
        "sizes=64x48 files=2 length=40 num_frames=4 frame_stride=2 image_size=32 batch_size=2 num_workers=1 steps=4 "
        "rounds=1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, num_frames=1, frame_stride=0, image_size=1, batch_size=1, num_workers=0, cpu_threads=1)
        check_minimum(self, steps=2, rounds=1)

    @property
    def data_keys(self) -> dict[str, int]:
        """Return the keys of the section data that both share."""
        keys = ("num_frames", "frame_stride", "image_size", "batch_size", "num_workers")
        return {key: getattr(self, key) for key in keys}

    @property
    def network_args(self) -> dict[str, int]:
        """Return the arguments of the network's constructor."""
        pairs = (argument.partition("=") for argument in self.network[1:])
        return {key: int(value) for key, _, value in pairs}

    @property
    def num_timed_clips(self) -> int:
        """Count the clips of the second half of a run."""
        return (self.steps - self.steps // 2) * self.batch_size


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all sets of files."""
    device = str(choose_device(settings.device))
    sets = []
    for name, paths in settings.find_videos().items():
        sets.append({"name": name, **measure(paths, settings, device)})
        print(format_table(sets[-1]), flush=True)
    return {"device": device, "sets": sets}


def measure(paths: Sequence[str], settings: Settings, device: str) -> dict[str, Any]:
    """Measure both on one set of files, in turns."""
    rates: dict[str, list[float]] = {"own_loop": [], "train": []}
    with temporary_folder("clipline-bench-") as folder:
        list_file = Path(folder) / "train.txt"
        count = settings.steps * settings.batch_size
        list_file.write_text("".join(f"{os.path.abspath(paths[i % len(paths)])} {i % 2}\n" for i in range(count)))
        for number in range(settings.rounds):
            rates["own_loop"].append(time_own_loop(list_file, settings, device))
            wait_until_idle()
            rates["train"].append(time_train(list_file, Path(folder) / f"run{number}", settings, device))
            wait_until_idle()
            print(
                f"{number + 1}/{settings.rounds}: " + "  ".join(f"{k} {v[-1]:.1f}" for k, v in rates.items()),
                flush=True,
            )
    return {
        "files": describe_videos([read_video_info(path) for path in paths]),
        "rounds": settings.rounds,
        "clips_per_s": {name: summarize(values) for name, values in rates.items()},
        "own_loop_over_train": summarize(a / b for a, b in zip(rates["own_loop"], rates["train"], strict=True)),
    }


def time_own_loop(list_file: Path, settings: Settings, device: str) -> float:
    """Run the loop in a new process and return its clips per second."""
    name, args = settings.network[0], settings.network_args
    sizes = {"num_frames": settings.num_frames, "image_size": settings.image_size}
    values = [str(list_file), settings.data_keys, name, args | sizes, device, settings.cpu_threads, settings.steps // 2]
    output = _run([sys.executable, "-c", LOOP, json.dumps(values)])
    return settings.num_timed_clips / float(output.split()[-1])


def time_train(list_file: Path, run_dir: Path, settings: Settings, device: str) -> float:
    """Run train.py for one epoch and return its clips per second, as its metrics have them."""
    keys = {
        "data.train": list_file,
        **{f"data.{key}": value for key, value in settings.data_keys.items()},
        "model.name": settings.network[0],
        **{f"model.args.{key}": value for key, value in settings.network_args.items()},
        "optim.epochs": 1,
        "optim.warmup_epochs": 0,
        "run.device": device.partition(":")[0],
        "run.precision": "fp32",
        "run.compile": "no",
        "run.cpu_threads": settings.cpu_threads,
        "run.log_interval": settings.steps // 2,
        "run.name": run_dir.name,
        "run.output_dir": run_dir.parent,
    }
    _run([sys.executable, "train.py", *(f"{key}={value}" for key, value in keys.items())])
    rows = [row for row in read_metrics(run_dir) if row["kind"] == "train" and row["step"] > settings.steps // 2]
    return sum(row["clips"] for row in rows) / sum(row["seconds"] for row in rows)


def _run(command: Sequence[str]) -> str:
    """Run a command in the repository and return its output. Raises RuntimeError with the last lines if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])}: {done.stderr[-2000:]}")
    return done.stdout


def format_table(table: Mapping[str, Any]) -> str:
    """Format one set as text."""
    rates = "  ".join(f"{name} {format_iqr(rate, 1)} clips/s" for name, rate in table["clips_per_s"].items())
    return f"{table['name']}: {rates}  own loop / train.py {format_iqr(table['own_loop_over_train'], 3)}"


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("own_loop", __doc__, Settings, measure_all, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
