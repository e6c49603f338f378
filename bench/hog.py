"""Measure MaskFeat's HOG targets beside scikit-image's, and their share of a training step.

    python -m bench.hog [key=value ...] [--dry-run]

    num_frames=8 image_size=224     frames of a clip that targets are made of (16x4 clips: every second of 16)
    batch_size=0    clips at once (0: 16 on a GPU, 1 without); scikit-image processes one color of one frame at a time
    network=maskfeat_mvit_v2_s      whose training step the share refers to (empty: none)
    rounds=7        rounds of every case
    cpu_threads=1   torch threads on a CPU; scikit-image uses one
    device=auto     auto uses a GPU if there is one
    out=PATH        the result (default bench/results/hog.json)

`compiled` is what a compiled run computes, `eager` the same without torch.compile, `scikit-image` a loop over frames
and colors as in VideoTransformer-pytorch. All cases of a round run one after another, and ratios are taken within a
round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import networks
from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_minimum, run_bench
from networks.hog import hog
from training.pretraining_tasks import MaskFeatTask
from utils.device import autocast, choose_device, choose_dtype


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    num_frames: int = 8
    image_size: int = 224
    batch_size: int = 0
    network: str = "maskfeat_mvit_v2_s"
    rounds: int = 7
    cpu_threads: int = 1
    device: str = "auto"
    out: str = "bench/results/hog.json"
    dry_run_args: ClassVar[str] = "num_frames=2 image_size=32 rounds=1 network="

    def __post_init__(self) -> None:
        check_minimum(self, num_frames=1, image_size=1, batch_size=0, rounds=1, cpu_threads=1)
        if self.image_size % 16:
            raise ValueError(f"image_size={self.image_size}: expected a multiple of 16")
        if self.network and self.network not in networks.PRETRAINING:
            raise ValueError(f"network={self.network}: expected one of {', '.join(networks.PRETRAINING)}")


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure the targets by themselves, and their share of a step."""
    device = choose_device(settings.device)
    settings = replace(settings, batch_size=settings.batch_size or (16 if device.type == "cuda" else 1))
    torch.set_num_threads(settings.cpu_threads)
    result = {"device": str(device)} | measure(settings, device)
    print(format_table(result))
    if settings.network:
        result["step"] = measure_step(settings, device)
        print(format_step(result["step"]))
    return result


def measure(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Return the milliseconds per clip of each case, and how much faster ours are than scikit-image."""
    cases = hog_cases(settings, device)
    rounds: dict[str, list[float]] = {case: [] for case in cases}
    for compute in cases.values():
        time_call(compute, device)  # the first call compiles
    for _ in range(settings.rounds):
        for case, compute in cases.items():
            rounds[case].append(1000 * time_call(compute, device) / settings.batch_size)
    result: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "ms_per_clip": {case: summarize(times) for case, times in rounds.items()},
    }
    if baseline := rounds.pop("scikit-image", None):
        result["speedups"] = {
            case: summarize(slow / fast for slow, fast in zip(baseline, times, strict=True))
            for case, times in rounds.items()
        }
    return result


def hog_cases(settings: Settings, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return the functions that compute the targets of the same random clips."""
    rng = np.random.default_rng(0)
    shape = settings.batch_size * settings.num_frames, settings.image_size, settings.image_size, 3
    frames = rng.integers(0, 256, shape, np.uint8)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).to(device) / 255
    compiled = torch.compile(hog)
    cases: dict[str, Callable[[], Any]] = {"compiled": lambda: compiled(video), "eager": lambda: hog(video)}
    try:
        from skimage.feature import hog as skimage_hog
    except ImportError:
        print("left out: scikit-image is not installed")
    else:
        cases["scikit-image"] = lambda: [
            skimage_hog(frame[..., color], 9, (8, 8), (1, 1), "L2", feature_vector=False)
            for frame in frames
            for color in range(3)
        ]
    return cases


def measure_step(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Time a step (forward, loss, backward) as in a run, and the targets that it computes."""
    network = networks.build(settings.network).to(device).train()
    dtype = choose_dtype("auto", device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        network.compile()
    task = MaskFeatTask(network, compiled=True)  # type: ignore[arg-type]
    shape = (settings.batch_size, *network.patch_embed.input_shape)  # type: ignore[union-attr,misc]
    seeds = [(0, 0, sample_index) for sample_index in range(settings.batch_size)]
    batch = SimpleNamespace(video=torch.randn(shape, device=device), seeds=seeds)

    def step() -> None:
        with autocast(device, dtype):
            loss = task(network, batch)["loss"]
        loss.backward()
        network.zero_grad()

    def targets() -> Tensor:
        return task.targets(batch.video, task.grid, task.frames, task.window, task.gradient)

    step_times, target_times = [], []
    for compute in (step, targets):
        time_call(compute, device)  # the first call compiles
    for _ in range(min(settings.rounds, 5)):
        step_times.append(time_call(step, device))
        target_times.append(time_call(targets, device))
    return {
        "network": settings.network,
        "input_shape": list(batch.video.shape),
        "compiled": on_gpu,
        "precision": str(dtype),
        "step_ms": summarize(1000 * seconds for seconds in step_times),
        "targets_ms": summarize(1000 * seconds for seconds in target_times),
        "share_percent": summarize(100 * part / whole for part, whole in zip(target_times, step_times, strict=True)),
    }


def time_call(function: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that a call takes, on a GPU until its work is done there."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    before = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before


def format_table(result: Mapping[str, Any]) -> str:
    """Format the cases as text: milliseconds per clip, and how many times faster than scikit-image."""
    lines = [f"{'case':14} {'ms per clip':>24} {'speed-up':>24}"]
    for case, times in result["ms_per_clip"].items():
        speedup = result.get("speedups", {}).get(case)
        lines.append(f"{case:14} {format_iqr(times, 2):>24} {format_iqr(speedup, 1) if speedup else '':>24}")
    return "\n".join(lines)


def format_step(step: Mapping[str, Any]) -> str:
    """Format the training step as one line."""
    shape = "x".join(map(str, step["input_shape"]))
    return (
        f"a step of {step['network']}, clips {shape}: {format_iqr(step['step_ms'], 1)} ms, "
        f"its targets {format_iqr(step['targets_ms'], 2)} ms, {format_iqr(step['share_percent'], 2)} %"
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("hog", __doc__, Settings, measure_all, argv, ("scikit-image",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
