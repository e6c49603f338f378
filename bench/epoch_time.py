"""The epoch-time table: from the loop that VideoTransformer-pytorch began with, one change at a time, to the ceiling.

    python -m bench.epoch_time [key=value ...] [--dry-run]

    folder      folders of videos, or one video, with commas (default: files of its own, as in bench.loading)
    sets=h264_bframes sizes=340x256 files=8 length=300 cache=PATH      its own files
    cases       base,recipes,indices_first,batch_8,workers_4,interval_24,dali_decode,trimmed,zero_copy,amp,compiled,
                prepared,repeated_aug,synthetic; a case left out is not measured, but those after it still build on it
    network=auto     timesformer_b on a GPU; on a CPU the same with width 48 and one block, small enough for the loaders
                     to matter; or any name of python -m networks.flops
    batch=8 stride=24 workers=4      from dali_decode on      frames=8 size=224     of all
    threads=4 device=auto  cores=0      cores that everything together may use, 0: all
    clips=0     clips that are timed in one turn of one case (0: 1024 on a GPU, 128 without), or more, so that all
                workers have made as many                     repeats=5
    out=PATH    the result (default bench/results/epoch_time.json)

Every row is the row before and one change, and every row is trained: forward, loss, backward, optimiser. The first six
are those of VideoTransformer-pytorch's own table. Cases take turns, each with workers of its own; a ratio is taken
within a round. Waiting is the share of time in which nothing computes for want of clips, computing the share between
the beginning and the end of steps on the device. A CPU computes on all cores but one, as in train.py, and in the
synthetic row, where no data is decoded, on all. Bytes are what all processes read, by the kernel's account. An epoch
goes over 240,436 videos, Kinetics-400's for training (with repeated_aug two clips of each), on as many machines or GPUs
as it says, which are assumed to slow each other down in nothing.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from bench.baselines.training_loops import Stream, Trainer, Way, read
from bench.harness import videos
from bench.harness.runner import at_least, command, known, shown, spread
from bench.harness.system import Clock, GpuUse, settle
from pipelines.decode.video_info import read_row
from training.metrics import Meter
from utils.device import choose_device

KINETICS = 240_436
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "base": ({}, "decord reads all frames, then picks; fp32, eager, loss read at each step"),
    "recipes": ({"lean": True}, "pinned memory, fused optimiser, nothing read back at each step"),
    "indices_first": ({"loader": "decord"}, "decord reads the frames of the clip"),
    "batch_8": ({"batch": 8}, "batch 16 to 8"),
    "workers_4": ({"workers": 4}, "workers 8 to 4"),
    "interval_24": ({"stride": 24}, "frame interval 16 to 24"),
    "dali_decode": ({"loader": "clipline"}, "Clipline's loader, from the first frame to the last of the clip"),
    "trimmed": ({"trimmed": True}, "only what the clip's frames depend on is decoded"),
    "zero_copy": ({"copied": False}, "DALI's buffers are the network's input"),
    "amp": ({"amp": True}, "bf16 autocast, clips in fp16"),
    "compiled": ({"compiled": True}, "torch.compile"),
    "prepared": ({"prepared": True}, "files as pipelines.prepare leaves them"),
    "repeated_aug": ({"repeats": 2}, "two crops of each decoded clip"),
    "synthetic": ({"loader": "none"}, "no data: the same batch again and again"),
}
# An epoch in VideoTransformer-pytorch's own table, of Kinetics on 8 GPUs.
PUBLISHED = {"base": "9 h and more", "recipes": "1 h and more", "indices_first": "0.5 h", "batch_8": "33.32 min",
             "workers_4": "35.52 min", "interval_24": "44.35 min"}  # fmt: skip
SMALL = ("model.name=timesformer_b", "model.args.width=48", "model.args.depth=1", "model.args.heads=1")


@dataclass(frozen=True)
class Settings(videos.Files):
    sets: tuple[str, ...] = ("h264_bframes",)
    cases: tuple[str, ...] = tuple(CHANGES)
    network: str = "auto"
    batch: int = 8
    stride: int = 24
    workers: int = 4
    frames: int = 8
    size: int = 224
    threads: int = 4
    device: str = "auto"
    cores: int = 0
    clips: int = 0
    repeats: int = 5
    out: str = "bench/results/epoch_time.json"
    toy: ClassVar[str] = "sizes=64x48 files=2 length=200 frames=4 size=32 clips=4 repeats=1 threads=1 network=toy"

    def __post_init__(self) -> None:
        super().__post_init__()
        known(self, cases=CHANGES)
        at_least(self, batch=1, stride=0, workers=1, frames=1, size=1, threads=1, cores=0, clips=0, repeats=1)

    def words(self, device: torch.device) -> list[str]:
        """The network, as a configuration has it."""
        small = self.network == "auto" and device.type == "cpu"
        named = {"auto": ["model.name=timesformer_b"], "toy": [*SMALL, "model.args.width=24"]}
        network = list(SMALL) if small else named.get(self.network, [f"model.name={self.network}"])
        return [*network, f"data.frames={self.frames}", f"data.size={self.size}"]


def ways(s: Settings) -> dict[str, Way]:
    """Each case as the case before and its change; from Clipline's first on as was asked for."""
    way, found = Way(), {}
    for name, (change, _) in CHANGES.items():
        own = {"batch": s.batch, "stride": s.stride, "workers": s.workers} if name == "dali_decode" else {}
        found[name] = way = replace(way, **change, **own)
    return found


def changes(s: Settings) -> dict[str, str]:
    """Each case in words, with the numbers that the first has, and what else the settings change."""
    said = {name: words for name, (_, words) in CHANGES.items()}
    found = [ways(s)[name] for name in ("base", "interval_24", "dali_decode")]
    first, last, ours = ({"clips a batch": w.batch, "workers": w.workers, "frames apart": w.stride} for w in found)
    said["base"] += "".join(f"; {number} {key}" for key, number in first.items())
    said["dali_decode"] += "".join(f"; {number} {key}" for key, number in ours.items() if number != last[key])
    return said


def measure_all(s: Settings) -> dict[str, Any]:
    if s.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: s.cores])
    device = choose_device(s.device)
    sets = []
    for name, paths in s.find().items():
        sets.append({"name": name, **measure(paths, s, device)})
        print(table(sets[-1]), flush=True)
    return {"device": str(device), "network": s.words(device), "sets": sets}


def measure(paths: Sequence[str], s: Settings, device: torch.device) -> dict[str, Any]:
    """One set of files: every case in turn, several times."""
    chosen = {name: way for name, way in ways(s).items() if name in s.cases}
    clips = s.clips or (1024 if device.type == "cuda" else 128)
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        kinds = {name: (way.trainer, way.cores if device.type == "cpu" else 0) for name, way in chosen.items()}
        trainers: dict[tuple[Any, int], Trainer] = {}
        streams: dict[str, Stream] = {}
        for name, way in chosen.items():
            wanted = way.prepared and way.loader != "none"
            here = videos.prepared(list(paths), Path(s.cache)) if wanted else paths
            count = (timed(way, clips) + 3 * way.wave) * way.batch  # one wave before, two are read ahead
            what = count, s.frames, s.size, s.threads, device, Path(folder) / name
            streams[name] = read(way, here, *what)
            if kinds[name] not in trainers:
                trainers[kinds[name]] = Trainer(way, s.words(device), device)
                trainers[kinds[name]].warm_up(read(replace(way, loader="none"), here, *what), device)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
        for repeat in range(s.repeats):
            for name, way in chosen.items():
                trainer = trainers[kinds[name]]
                found[name].append(turn(streams[name], trainer, way, timed(way, clips), device))
                settle()
            rates = "  ".join(f"{name} {turns[-1]['clips_per_s']:.1f}" for name, turns in found.items())
            print(f"{repeat + 1}/{s.repeats}: {rates}", flush=True)
    rows = []
    for name, way in chosen.items():
        rates = [t["clips_per_s"] for t in found[name]]
        keys = set.intersection(*(set(t) for t in found[name]))
        row = {"case": name, "what": changes(s)[name], "published": PUBLISHED.get(name, ""), "way": vars(way),
               "decoder": streams[name].decoder,
               **{key: spread(t[key] for t in found[name]) for key in found[name][0] if key in keys},
               "pictures_per_clip": round(streams[name].pictures, 1),
               "epoch_minutes_1": spread(KINETICS * way.repeats / rate / 60 for rate in rates),
               "epoch_minutes_8": spread(KINETICS * way.repeats / rate / 60 / 8 for rate in rates)}  # fmt: skip
        for key, other in (("to_base", "base"), ("of_ceiling", "synthetic")):
            if other in found:
                theirs = [t["clips_per_s"] for t in found[other]]
                row[key] = spread(a / b for a, b in zip(rates, theirs, strict=True))
        rows.append(row)
    return {"files": videos.describe([read_row(path) for path in paths]), "n": s.repeats, "clips_a_turn": clips,
            "cases": rows}  # fmt: skip


def timed(way: Way, clips: int) -> int:
    """Batches of a turn: whole waves, so that it matters not where in one it begins."""
    return way.wave * math.ceil(clips / way.batch / way.wave)


def turn(stream: Stream, trainer: Trainer, way: Way, batches: int, device: torch.device) -> dict[str, float]:
    """One turn of one case, with workers of its own: a wave of batches first, then the clock runs."""
    torch.set_num_threads(way.cores)
    meter = Meter(device)
    waited = meter.waiting(stream.open())
    for _ in range(way.wave):
        trainer.step(next(waited), meter)
    meter.read()
    with GpuUse(device) as use:
        looked, before = Clock.now(), Clock.now()  # to look is to read, too
        meter.restart()
        for _ in range(batches):
            trainer.step(next(waited), meter)
        row = meter.read()  # waits for the device
        after = Clock.now()
    clips = batches * way.batch
    return {
        "clips_per_s": row["clips_per_s"], "s_per_step": row["seconds"] / batches, "waiting": row["data"],
        "computing": row["compute"], "other": row["other"],
        "bytes_per_clip": (after.read - before.read - (before.read - looked.read)) / clips,
        "cores_used": (after.own - before.own) / (after.wall - before.wall), **use.shares(),
    }  # fmt: skip


def table(measured: dict[str, Any]) -> str:
    """A line a case."""
    lines = ["", f"{'case':14} {'clips/s':>18} {'waiting':>8} {'computing':>9} {'pictures':>8} {'kB':>6} "
                 f"{'epoch, 1':>9} {'epoch, 8':>9} {'x base':>7} {'of ceiling':>10}"]  # fmt: skip
    for row in measured["cases"]:
        hours = [f"{row[f'epoch_minutes_{n}']['median'] / 60:.1f} h" for n in (1, 8)]
        ratio = f"{row['to_base']['median']:.2f}" if "to_base" in row else ""
        share = f"{100 * row['of_ceiling']['median']:.0f} %" if "of_ceiling" in row else ""
        lines.append(
            f"{row['case']:14} {shown(row['clips_per_s'], 1):>18} {100 * row['waiting']['median']:>6.0f} % "
            f"{100 * row['computing']['median']:>7.0f} % {row['pictures_per_clip']:>8.1f} "
            f"{row['bytes_per_clip']['median'] / 1000:>6.0f} {hours[0]:>9} {hours[1]:>9} {ratio:>7} {share:>10}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("epoch_time", __doc__, Settings, measure_all, arguments, ("decord", "torchvision"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
