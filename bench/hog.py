"""MaskFeat's HOG targets beside scikit-image's, and their share of a training step.

    python -m bench.hog [key=value ...] [--dry-run]

    frames=8 size=224      frames of a clip that targets are made of (16x4 clips: every second of 16)
    batch=0                clips at once (0: 16 on a GPU, 1 without); scikit-image takes a colour of a frame at a time
    network=maskfeat_mvit_v2_s     whose training step the share is of (network= leaves it out)
    repeats=7              turns of each case       threads=1      torch's threads on a CPU; scikit-image has one
    device=auto            auto takes a GPU if there is one
    out=PATH               the result (default bench/results/hog.json)

Cases: "compiled" is what a compiled run computes, "eager" the same without torch.compile, "scikit-image" a loop over
frames and colours as VideoTransformer-pytorch has it. They take turns; a ratio is taken within a round of turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import networks
from bench.harness.runner import at_least, command, shown, spread
from networks.hog import hog
from training.tasks import MaskFeat
from utils.device import autocast, choose_device, choose_dtype


@dataclass(frozen=True)
class Settings:
    frames: int = 8
    size: int = 224
    batch: int = 0
    network: str = "maskfeat_mvit_v2_s"
    repeats: int = 7
    threads: int = 1
    device: str = "auto"
    out: str = "bench/results/hog.json"
    toy: ClassVar[str] = "frames=2 size=32 repeats=1 network="

    def __post_init__(self) -> None:
        at_least(self, frames=1, size=1, batch=0, repeats=1, threads=1)
        if self.size % 16:
            raise ValueError(f"size={self.size}: expected a multiple of 16")
        if self.network and self.network not in networks.PRETRAINING:
            raise ValueError(f"network={self.network}: expected one of {', '.join(networks.PRETRAINING)}")


def measure_all(s: Settings) -> dict[str, Any]:
    device = choose_device(s.device)
    s = replace(s, batch=s.batch or (16 if device.type == "cuda" else 1))
    torch.set_num_threads(s.threads)
    result = {"device": str(device)} | measure(s, device)
    print(table(result))
    if s.network:
        result["step"] = measure_step(s, device)
        print(step_line(result["step"]))
    return result


def measure(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Milliseconds a clip of each case, and how often scikit-image's time goes into ours."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (settings.batch * settings.frames, settings.size, settings.size, 3), np.uint8)
    video = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device) / 255
    cases: dict[str, Callable[[], Any]] = {"compiled": lambda: compiled(video), "eager": lambda: hog(video)}
    compiled = torch.compile(hog)
    try:
        from skimage.feature import hog as theirs
    except ImportError:
        print("left out: scikit-image: not installed")
    else:
        cases["scikit-image"] = lambda: [
            theirs(frame[..., colour], 9, (8, 8), (1, 1), "L2", feature_vector=False)
            for frame in pictures for colour in range(3)
        ]  # fmt: skip
    turns: dict[str, list[float]] = {case: [] for case in cases}
    for case in cases.values():
        timed(case, device)  # the first time compiles
    for _ in range(settings.repeats):
        for name, case in cases.items():
            turns[name].append(1000 * timed(case, device) / settings.batch)
    result: dict[str, Any] = {
        "batch": settings.batch,
        "ms_a_clip": {name: spread(times) for name, times in turns.items()},
    }
    if peer := turns.get("scikit-image"):
        mine = {name: times for name, times in turns.items() if name != "scikit-image"}
        result["times_faster"] = {
            name: spread(slow / fast for slow, fast in zip(peer, times, strict=True)) for name, times in mine.items()
        }
    return result


def measure_step(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Seconds of a step (forward, loss, backward) as a run has it, and of the targets in it."""
    network = networks.build(settings.network).to(device).train()
    dtype = choose_dtype("auto", device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        network.compile()
    task = MaskFeat(network, compiled=True)  # type: ignore[arg-type]
    shape = (settings.batch, *network.patch_embed.input_shape)  # type: ignore[union-attr,misc]
    seeds = [(0, 0, row) for row in range(settings.batch)]
    batch = SimpleNamespace(video=torch.randn(shape, device=device), seeds=seeds)

    def step() -> None:
        with autocast(device, dtype):
            loss = task(network, batch)["loss"]
        loss.backward()
        network.zero_grad()

    def targets() -> Tensor:
        return task.targets(batch.video, task.grid, task.frames, task.window, task.gradient)

    steps, parts = [], []
    timed(step, device), timed(targets, device)
    for _ in range(min(settings.repeats, 5)):
        steps.append(timed(step, device))
        parts.append(timed(targets, device))
    return {
        "network": settings.network, "clip": list(batch.video.shape), "compiled": on_gpu, "precision": str(dtype),
        "step_ms": spread(1000 * whole for whole in steps), "targets_ms": spread(1000 * part for part in parts),
        "share_percent": spread(100 * part / whole for part, whole in zip(parts, steps, strict=True)),
    }  # fmt: skip


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes, on a GPU until it is done there."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    before = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before


def table(result: dict[str, Any]) -> str:
    """A line a case: milliseconds a clip, and how many times faster than scikit-image."""
    lines = [f"{'case':14} {'ms a clip':>24} {'times faster':>24}"]
    for case, times in result["ms_a_clip"].items():
        faster = result.get("times_faster", {}).get(case)
        lines.append(f"{case:14} {shown(times, 2):>24} {shown(faster, 1) if faster else '':>24}")
    return "\n".join(lines)


def step_line(step: dict[str, Any]) -> str:
    return (
        f"a step of {step['network']}, clips {'x'.join(map(str, step['clip']))}: {shown(step['step_ms'], 1)} ms, "
        f"its targets {shown(step['targets_ms'], 2)} ms, {shown(step['share_percent'], 2)} %"
    )


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("hog", __doc__, Settings, measure_all, arguments, ("scikit-image",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
