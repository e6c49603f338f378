"""Measure a network at several thresholds of run-length tokenization, on real clips: patches kept, clips per second.

    python -m bench.run_length [files=VIDEO,VIDEO,...] [key=value ...] [--dry-run]

    files=              videos whose clips are scored (default: a square that moves over a still picture)
    network=videomae_b  a ViViT with joint attention, VideoMAE or V-JEPA 2
    thresholds=0.05,0.1,0.2,0.4     in units of the normalized input
    num_clips=4         clips per video, each a batch of its own
    num_frames=16 frame_stride=4 image_size=224
    depth=0             blocks of the network (0: its own number)
    precision=auto device=auto cpu_threads=0    as in bench.train_step
    rounds=3            passes over the clips
    out=PATH            the result (default bench/results/run_length.json)

The weights are random: what is measured is how many patches real videos repeat, and what leaving them out saves. All
thresholds of a batch are measured one after another, and ratios are within a batch.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

import networks
from bench.harness.runner import check_minimum, run_bench, set_up_torch
from configs.schema import Eval
from evaluation.run_length_report import ThresholdTest, describe_timing
from pipelines.decode.encoder import encode_video
from pipelines.loader import EvalVideoLoader
from utils.device import autocast, clip_dtype


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    files: tuple[str, ...] = ()
    network: str = "videomae_b"
    thresholds: tuple[str, ...] = ("0.05", "0.1", "0.2", "0.4")
    num_clips: int = 4
    num_frames: int = 16
    frame_stride: int = 4
    image_size: int = 224
    depth: int = 0
    precision: str = "auto"
    device: str = "auto"
    cpu_threads: int = 0
    rounds: int = 3
    out: str = "bench/results/run_length.json"
    dry_run_args: ClassVar[str] = "network=vivit_tiny num_clips=1 num_frames=4 image_size=32 depth=1 rounds=1"

    def __post_init__(self) -> None:
        check_minimum(self, num_clips=1, num_frames=1, frame_stride=1, image_size=1, depth=0, cpu_threads=0, rounds=1)


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all thresholds over clips of the files."""
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        return measure(settings, list(settings.files) or [write_moving_square(Path(folder) / "square.mp4")])


def write_moving_square(path: Path) -> str:
    """Write a video of 4 seconds, 256x256, in which a square moves over a still picture."""
    background = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    frames = []
    for index in range(100):
        frame = background.copy()
        frame[96:160, 2 * index : 2 * index + 56] = 255
        frames.append(frame)
    encode_video(path, frames, 25, "h264", crf=18)
    return str(path)


def measure(settings: Settings, files: Sequence[str]) -> dict[str, Any]:
    """Measure all thresholds; the first pass over the clips only warms up."""
    device, dtype = set_up_torch(settings)
    sizes = {"num_frames": settings.num_frames, "image_size": settings.image_size}
    args = sizes | ({"depth": settings.depth} if settings.depth else {})
    network = networks.build(settings.network, num_classes=400, **args).to(device).eval()
    loader = EvalVideoLoader(
        [(path, 0) for path in files],
        test=Eval(num_clips=settings.num_clips, num_crops=1, batch_size=1),
        device=device,
        dtype=clip_dtype(dtype),
        classes=["video"],
        frame_stride=settings.frame_stride,
        num_workers=1,
        **sizes,
    )

    def score(video: torch.Tensor) -> torch.Tensor:
        with autocast(device, dtype):
            return network(video.flatten(0, 1)).float()

    thresholds = [float(threshold) for threshold in settings.thresholds]
    with torch.inference_mode(), loader:
        for number in range(settings.rounds + 1):
            if number <= 1:
                test = ThresholdTest(network, thresholds)
            for batch in loader:
                for clip in range(settings.num_clips):
                    test(score, batch.video[:, clip : clip + 1])
    timings = test.timings()
    for timing in timings:
        print(f"threshold {timing.threshold:<6g} {describe_timing(timing)}", flush=True)
    return {
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "files": ", ".join(Path(path).name for path in files),
        "thresholds": [{key: round(value, 5) for key, value in timing._asdict().items()} for timing in timings],
    }


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("run_length", __doc__, Settings, measure_all, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
