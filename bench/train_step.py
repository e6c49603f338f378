"""A training step alone, the clips being there already: forward, loss, backward, optimiser.

    python -m bench.train_step [key=value ...] [--dry-run]

    networks    timesformer_b,vivit_b,videomae_b,mvit_v2_s (default), also mvit_v1_b
    cases       ours,ours_compiled,ours_checkpoint,peer,peer_compiled
    batch=      clips a step (default: 16 on a GPU, 1 without); more, with commas, are one row each
    frames=0 size=0 depth=0      0: the network's own; depth is not for MViT
    amp=auto    fp32, bf16; auto is bf16 on a GPU        device=auto     threads=0   torch's on a CPU (0: all cores)
    repeats=7   turns of each case                       steps=0         steps in a turn (0: 10 on a GPU, else 1)
    out=PATH    the result (default bench/results/step.json)

The peer is transformers' TimeSformer, ViViT or VideoMAE, or torchvision's MViT: the same network, as that library
builds it. Cases take turns, and a ratio is taken within a round. `ours_checkpoint` recomputes every block on the way
back. `held` is what a step keeps for its way back; on a GPU `peak` is all memory of a case at once. Utilisation is of
the rate at which the device multiplies large matrices of that precision, measured before, and counts a network's
multiply-adds once forward and twice back, recomputation not.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import networks
from bench.baselines.networks import build_peer
from bench.harness.runner import at_least, command, known, shown, spread
from bench.hog import timed
from networks.flops import count_flops, count_parameters
from training.optimizers import build_optimizer
from utils.device import autocast, choose_device, choose_dtype

CASES = ("ours", "ours_compiled", "ours_checkpoint", "peer", "peer_compiled")
NETWORKS = ("timesformer_b", "vivit_b", "videomae_b", "mvit_v2_s", "mvit_v1_b")
CLASSES = 400


@dataclass(frozen=True)
class Settings:
    networks: tuple[str, ...] = NETWORKS[:4]
    cases: tuple[str, ...] = CASES
    batch: tuple[str, ...] = ()
    frames: int = 0
    size: int = 0
    depth: int = 0
    amp: str = "auto"
    device: str = "auto"
    threads: int = 0
    repeats: int = 7
    steps: int = 0
    out: str = "bench/results/step.json"
    toy: ClassVar[str] = "networks=timesformer_b,vivit_b,videomae_b frames=4 size=32 depth=1 repeats=1 amp=fp32"

    def __post_init__(self) -> None:
        known(self, networks=NETWORKS, cases=CASES, amp=("auto", "fp32", "bf16"))
        at_least(self, frames=0, size=0, depth=0, threads=0, repeats=1, steps=0, batch=1)


def measure_all(s: Settings) -> dict[str, Any]:
    device = choose_device(s.device)
    dtype = choose_dtype(s.amp, device)
    torch.set_num_threads(s.threads or len(os.sched_getaffinity(0)))
    rate = matrix_rate(device, dtype)
    rows = []
    for name in s.networks:
        for batch in map(int, s.batch or ("16" if device.type == "cuda" else "1",)):
            with contextlib.suppress(torch.OutOfMemoryError):
                rows.append(measure(name, batch, s, device, dtype, rate))
                print(table(rows[-1]), flush=True)
                continue
            torch.cuda.empty_cache()  # here, where nothing holds the networks any more
            print(f"left out: {name}, {batch} clips: {device} has not enough memory", flush=True)
    return {"device": str(device), "precision": str(dtype).removeprefix("torch."),
            "matrix_gflops": round(rate / 1e9, 1), "rows": rows}  # fmt: skip


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds a second of square matrix products, the best of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end:  # until the clocks are up
        timed(lambda: a @ b, device)
    return side**3 / min(timed(lambda: a @ b, device) for _ in range(5))


def measure(
    name: str, batch: int, s: Settings, device: torch.device, dtype: torch.dtype, rate: float
) -> dict[str, Any]:
    """One network at one batch size: every case in turn."""
    torch._dynamo.reset()  # else sizes that differ from the last network's would be compiled as variable ones
    sizes = {"num_frames": s.frames, "image_size": s.size, "depth": s.depth}
    kwargs = {key: value for key, value in sizes.items() if value}
    if name.startswith("mvit") and s.depth:
        kwargs.pop("depth")
    if not name.startswith("mvit"):  # transformers drops no paths; torchvision's MViT does as ours
        kwargs["drop_path"] = 0.0
    with torch.device("meta"):
        plan = networks.build(name, num_classes=CLASSES, **kwargs)
    shape: tuple[int, ...] = plan.patch_embed.input_shape  # type: ignore[union-attr,assignment]
    flops = count_flops(plan)
    video, label = torch.randn(batch, *shape, device=device), torch.randint(CLASSES, (batch,), device=device)
    steps: dict[str, Callable[[], Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for case in s.cases:
        torch.manual_seed(0)
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if case.startswith("ours"):
            more = {"checkpoint_blocks": len(plan.blocks)} if case == "ours_checkpoint" else {}  # type: ignore[arg-type]
            network = networks.build(name, num_classes=CLASSES, **kwargs | more)
        else:
            network = build_peer(name, CLASSES, shape, s.depth)
        network = network.to(device).train()
        if case.endswith("compiled"):
            network.compile()
        steps[case] = training_step(network, video, label, dtype)
        timed(steps[case], device)  # the first time compiles
        about[case] = {"parameters": count_parameters(network), **memory(steps[case], device, before)}
    turns: dict[str, list[float]] = {case: [] for case in steps}
    count = s.steps or (10 if device.type == "cuda" else 1)
    for _ in range(s.repeats):
        for case, step in steps.items():
            turns[case].append(timed(lambda step=step: [step() for _ in range(count)], device) / count)
    cases = {
        case: {"clips_per_s": spread(batch / t for t in times), **about[case],
               "utilisation": spread(3 * flops * batch / t / rate for t in times)}
        for case, times in turns.items()
    }  # fmt: skip
    ratios = {
        f"{case} / {other}": spread(b / a for a, b in zip(turns[case], turns[other], strict=True))
        for case in cases for other in cases
        if case.startswith("ours") and case != other and (other.startswith("peer") or other == "ours")
    }  # fmt: skip
    return {"network": name, "clip": list(shape), "batch": batch, "gflops": round(flops / 1e9, 2), "cases": cases,
            "times_faster": ratios}  # fmt: skip


def training_step(network: nn.Module, video: Tensor, label: Tensor, dtype: torch.dtype) -> Callable[[], Any]:
    """As train.py's, without what is not the network's: rates, clipping, counting."""
    optimizer = build_optimizer(network, "adamw", 1e-4, fused=True)

    def step() -> None:
        with autocast(video.device, dtype):
            out = network(video)
            logits = out if isinstance(out, Tensor) else out.logits
        F.cross_entropy(logits.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory(step: Callable[[], Any], device: torch.device, before: int) -> dict[str, float]:
    """MiB that a step holds for the way back, each storage once; on a GPU also its peak, beyond what was there `before`
    the network."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    found = {"held_mib": round(sum(held.values()) / 2**20, 1)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        timed(step, device)
        found["peak_mib"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    return found


def table(row: dict[str, Any]) -> str:
    """A line a case."""
    clip = "x".join(map(str, row["clip"][1:]))
    lines = [f"{row['network']}, {row['batch']} clips of {clip}, {row['gflops']} GFLOPs",
             f"{'case':16} {'clips/s':>24} {'held MiB':>9} {'utilisation':>12} {'x peer':>7}"]  # fmt: skip
    for case, found in row["cases"].items():
        peer = row["times_faster"].get(f"{case} / peer")
        lines.append(
            f"{case:16} {shown(found['clips_per_s'], 3):>24} {found['held_mib']:>9.0f} "
            f"{100 * found['utilisation']['median']:>10.0f} % {peer['median'] if peer else '':>7}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("step", __doc__, Settings, measure_all, arguments, ("transformers", "torchvision"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
