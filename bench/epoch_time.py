"""Measure an epoch of training from VideoTransformer-pytorch's first loop to the ceiling, one change at a time.

    python -m bench.epoch_time [key=value ...] [--dry-run]

    folder=         folders of videos, or single videos, separated by commas (default: generated videos)
    sets=h264_bframes sizes=340x256 files=8 length=300 cache=PATH       generated videos, as in bench.loading
    cases=          base,recipes,indices_first,batch_8,workers_4,interval_24,dali_decode,trimmed,zero_copy,amp,compiled,
                    prepared,repeated_aug,synthetic; a case that is left out is not measured, but later ones include it
    network=auto    timesformer_b on a GPU; on a CPU the same with embed_dim 48 and one block, small enough for the
                    loaders to matter; or any name that python -m networks.flops lists
    batch_size=8 frame_stride=24 num_workers=4      from dali_decode on
    num_frames=8 image_size=224     of all cases
    dali_threads=4 device=auto
    cores=0         cores that everything together may use, 0: all
    clips_per_round=0       clips timed per round and case (0: 1024 on a GPU, 128 without); rounded up until all workers
                    have delivered equally many
    rounds=5        rounds of every case
    out=PATH        the result (default bench/results/epoch_time.json)

Each row is the row before with one change, and each is trained: forward, loss, backward, optimizer. The first six rows
are those of VideoTransformer-pytorch's own table. All cases of a round run one after another, each with new workers,
and ratios are taken within a round. "Waiting for data" is the fraction of time in which nothing computes because no
batch is ready, "computing" the fraction between begin and end of the steps on the device. A CPU computes on all cores
but one, as in train.py, and on all of them in the row `synthetic`, where nothing is decoded. Bytes are what all
processes read, as counted by the kernel. An epoch has 240,436 videos, the training set of Kinetics-400 (with
repeated_aug two clips of each), and the machines or GPUs it is divided among are assumed not to slow each other down.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from bench.baselines.training_loops import BatchStream, ClipSettings, Trainer, Variant, open_stream
from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_choices, check_minimum, run_bench
from bench.harness.system import GpuUtilization, Usage, wait_until_idle
from bench.harness.videos import VideoSettings, describe_videos, prepare_videos
from pipelines.decode.video_info import read_video_info
from training.metrics import StepMetrics
from utils.device import choose_device

KINETICS_VIDEOS = 240_436
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "base": ({}, "decord decodes all frames, then selects; fp32, eager, loss read at each step"),
    "recipes": ({"optimized": True}, "pinned memory, fused optimizer, nothing read back at each step"),
    "indices_first": ({"loader": "decord"}, "decord decodes the frames of the clip"),
    "batch_8": ({"batch_size": 8}, "batch size 16 to 8"),
    "workers_4": ({"num_workers": 4}, "workers 8 to 4"),
    "interval_24": ({"frame_stride": 24}, "frame stride 16 to 24"),
    "dali_decode": ({"loader": "clipline"}, "Clipline's loader, from the first frame to the last of the clip"),
    "trimmed": ({"trimmed": True}, "only what the clip's frames depend on is decoded"),
    "zero_copy": ({"copied": False}, "DALI's buffers are the network's input"),
    "amp": ({"amp": True}, "bf16 autocast, clips in fp16"),
    "compiled": ({"compiled": True}, "torch.compile"),
    "prepared": ({"prepared": True}, "files re-encoded by pipelines.prepare"),
    "repeated_aug": ({"aug_repeats": 2}, "two crops of each decoded clip"),
    "synthetic": ({"loader": "none"}, "no data: the same batch again and again"),
}
# An epoch of Kinetics on 8 GPUs in VideoTransformer-pytorch's own table.
PUBLISHED = {
    "base": "9 h and more",
    "recipes": "1 h and more",
    "indices_first": "0.5 h",
    "batch_8": "33.32 min",
    "workers_4": "35.52 min",
    "interval_24": "44.35 min",
}
SMALL = ("model.name=timesformer_b", "model.args.embed_dim=48", "model.args.depth=1", "model.args.num_heads=1")
NETWORKS = {"auto": ("model.name=timesformer_b",), "toy": (*SMALL, "model.args.embed_dim=24")}


@dataclass(frozen=True)
class Settings(VideoSettings):
    """The settings of this benchmark; the module's help explains them."""

    sets: tuple[str, ...] = ("h264_bframes",)
    cases: tuple[str, ...] = tuple(CHANGES)
    network: str = "auto"
    batch_size: int = 8
    frame_stride: int = 24
    num_workers: int = 4
    num_frames: int = 8
    image_size: int = 224
    dali_threads: int = 4
    device: str = "auto"
    cores: int = 0
    clips_per_round: int = 0
    rounds: int = 5
    out: str = "bench/results/epoch_time.json"
    dry_run_args: ClassVar[str] = (
        "sizes=64x48 files=2 length=200 num_frames=4 image_size=32 clips_per_round=4 rounds=1 dali_threads=1 "
        "network=toy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, cases=CHANGES)
        check_minimum(self, batch_size=1, frame_stride=0, num_workers=1, num_frames=1, image_size=1)
        check_minimum(self, dali_threads=1, cores=0, clips_per_round=0, rounds=1)

    def config_overrides(self, device: torch.device) -> list[str]:
        """Return the network as overrides of a configuration."""
        if self.network == "auto" and device.type == "cpu":
            network = SMALL
        else:
            network = NETWORKS.get(self.network, (f"model.name={self.network}",))
        return [*network, f"data.num_frames={self.num_frames}", f"data.image_size={self.image_size}"]

    def batches_per_round(self, variant: Variant, device: torch.device) -> int:
        """Return the number of timed batches: a multiple of those in flight, so that the phase does not matter."""
        clips = self.clips_per_round or (1024 if device.type == "cuda" else 128)
        return variant.batches_in_flight * math.ceil(clips / variant.batch_size / variant.batches_in_flight)


def variants(settings: Settings) -> dict[str, Variant]:
    """Return each case as the case before with its change; from dali_decode on with the sizes of the settings."""
    variant, result = Variant(), {}
    sizes = {
        "batch_size": settings.batch_size,
        "frame_stride": settings.frame_stride,
        "num_workers": settings.num_workers,
    }
    for name, (change, _) in CHANGES.items():
        result[name] = variant = replace(variant, **change, **(sizes if name == "dali_decode" else {}))
    return result


def describe_changes(settings: Settings) -> dict[str, str]:
    """Describe each case in words, with the sizes of the first one and those that the settings change."""
    descriptions = {name: text for name, (_, text) in CHANGES.items()}
    chosen = [variants(settings)[name] for name in ("base", "interval_24", "dali_decode")]
    first, before, after = (
        {"clips per batch": v.batch_size, "workers": v.num_workers, "frames apart": v.frame_stride} for v in chosen
    )
    descriptions["base"] += "".join(f"; {number} {unit}" for unit, number in first.items())
    descriptions["dali_decode"] += "".join(
        f"; {number} {unit}" for unit, number in after.items() if number != before[unit]
    )
    return descriptions


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all sets of files."""
    if settings.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.cores])
    device = choose_device(settings.device)
    sets = []
    for name, paths in settings.find_videos().items():
        sets.append({"name": name, **measure(paths, settings, device)})
        print(format_table(sets[-1]), flush=True)
    return {"device": str(device), "network": settings.config_overrides(device), "sets": sets}


def measure(paths: Sequence[str], settings: Settings, device: torch.device) -> dict[str, Any]:
    """Measure all cases on one set of files, in several rounds."""
    chosen = {name: variant for name, variant in variants(settings).items() if name in settings.cases}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        streams, trainers = start_cases(chosen, paths, settings, device, Path(folder))
        for number in range(settings.rounds):
            for name, variant in chosen.items():
                batches = settings.batches_per_round(variant, device)
                rounds[name].append(run_round(streams[name], trainers[name], variant, batches, device))
                wait_until_idle()
            rates = "  ".join(f"{name} {results[-1]['clips_per_s']:.1f}" for name, results in rounds.items())
            print(f"{number + 1}/{settings.rounds}: {rates}", flush=True)
    descriptions = describe_changes(settings)
    return {
        "files": describe_videos([read_video_info(path) for path in paths]),
        "rounds": settings.rounds,
        "clips_per_round": settings.clips_per_round or (1024 if device.type == "cuda" else 128),
        "cases": [
            {
                "case": name,
                "change": descriptions[name],
                "published": PUBLISHED.get(name, ""),
                "variant": vars(variant),
                "decoder": streams[name].decoder,
                "frames_decoded_per_clip": round(streams[name].frames_decoded_per_clip, 1),
                **summarize_case(name, variant, rounds),
            }
            for name, variant in chosen.items()
        ],
    }


def start_cases(
    chosen: Mapping[str, Variant], paths: Sequence[str], settings: Settings, device: torch.device, folder: Path
) -> tuple[dict[str, BatchStream], dict[str, Trainer]]:
    """Make the stream and the trainer of each case; cases with the same network and step share a trainer."""
    streams: dict[str, BatchStream] = {}
    trainers: dict[str, Trainer] = {}
    shared: dict[Any, Trainer] = {}
    for name, variant in chosen.items():
        re_encoded = variant.prepared and variant.loader != "none"
        files = prepare_videos(paths, Path(settings.cache)) if re_encoded else paths
        # Batches in flight: once before the timed ones, and twice read ahead.
        num_batches = settings.batches_per_round(variant, device) + 3 * variant.batches_in_flight
        clips = ClipSettings(
            num_clips=num_batches * variant.batch_size,
            num_frames=settings.num_frames,
            image_size=settings.image_size,
            dali_threads=settings.dali_threads,
            device=device,
            folder=folder / name,
        )
        streams[name] = open_stream(variant, files, clips)
        key = variant.trainer_key, variant.compute_cores if device.type == "cpu" else 0
        if key not in shared:
            shared[key] = Trainer(variant, settings.config_overrides(device), device)
            shared[key].warm_up(open_stream(replace(variant, loader="none"), files, clips), device)
        trainers[name] = shared[key]
    return streams, trainers


def run_round(
    stream: BatchStream, trainer: Trainer, variant: Variant, num_batches: int, device: torch.device
) -> dict[str, float]:
    """Time one round of one case with new workers, after the batches that were in flight first."""
    torch.set_num_threads(variant.compute_cores)
    metrics = StepMetrics(device)
    batches = metrics.timed(stream.open())
    for _ in range(variant.batches_in_flight):
        trainer.step(next(batches), metrics)
    metrics.compute_and_reset()
    with GpuUtilization(device) as utilization:
        first, before = Usage.now(), Usage.now()  # a reading reads files itself, which is subtracted below
        metrics.reset()
        for _ in range(num_batches):
            trainer.step(next(batches), metrics)
        means = metrics.compute_and_reset()  # waits for the device
        after = Usage.now()
    num_clips = num_batches * variant.batch_size
    read_bytes = after.read_bytes - before.read_bytes - (before.read_bytes - first.read_bytes)
    return {
        "clips_per_s": means["clips_per_s"],
        "s_per_step": means["seconds"] / num_batches,
        "data_time_frac": means["data_time_frac"],
        "compute_frac": means["compute_frac"],
        "other_frac": means["other_frac"],
        "bytes_per_clip": read_bytes / num_clips,
        "cores_used": (after.tree_cpu_s - before.tree_cpu_s) / (after.wall_s - before.wall_s),
        **utilization.means(),
    }


def summarize_case(name: str, variant: Variant, rounds: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Summarize the rounds of a case: its figures, the epoch they amount to, and its ratios to base and synthetic."""
    rates = [figures["clips_per_s"] for figures in rounds[name]]
    keys = set.intersection(*(set(figures) for figures in rounds[name]))  # a GPU may not report every time
    clips_per_epoch = KINETICS_VIDEOS * variant.aug_repeats
    row = {key: summarize(figures[key] for figures in rounds[name]) for key in rounds[name][0] if key in keys}
    row |= {f"epoch_minutes_{n}": summarize(clips_per_epoch / rate / 60 / n for rate in rates) for n in (1, 8)}
    for key, other in (("speedup_over_base", "base"), ("fraction_of_ceiling", "synthetic")):
        if other in rounds:
            other_rates = [figures["clips_per_s"] for figures in rounds[other]]
            row[key] = summarize(a / b for a, b in zip(rates, other_rates, strict=True))
    return row


def format_table(table: Mapping[str, Any]) -> str:
    """Format one set as text, one line per case."""
    lines = [
        "",
        f"{'case':14} {'clips/s':>18} {'waiting':>8} {'computing':>9} {'frames':>8} {'kB':>6} "
        f"{'epoch, 1':>9} {'epoch, 8':>9} {'speed-up':>8} {'of ceiling':>10}",
    ]
    for row in table["cases"]:
        hours = [f"{row[f'epoch_minutes_{n}']['median'] / 60:.1f} h" for n in (1, 8)]
        speedup = f"{row['speedup_over_base']['median']:.2f}" if "speedup_over_base" in row else ""
        ceiling = f"{100 * row['fraction_of_ceiling']['median']:.0f} %" if "fraction_of_ceiling" in row else ""
        lines.append(
            f"{row['case']:14} {format_iqr(row['clips_per_s'], 1):>18} {100 * row['data_time_frac']['median']:>6.0f} % "
            f"{100 * row['compute_frac']['median']:>7.0f} % {row['frames_decoded_per_clip']:>8.1f} "
            f"{row['bytes_per_clip']['median'] / 1000:>6.0f} {hours[0]:>9} {hours[1]:>9} {speedup:>8} {ceiling:>10}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("epoch_time", __doc__, Settings, measure_all, argv, ("decord", "decord2", "torchvision"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
