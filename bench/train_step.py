"""Measure the training step alone, with the clips in memory: forward, loss, backward, optimizer.

    python -m bench.train_step [key=value ...] [--dry-run]

    networks=       timesformer_b,vivit_b,videomae_b,mvit_v2_s (default), also mvit_v1_b, vjepa2_l, videoprism_b,
                    hiera_b, dinov2_b
    cases=          clipline,clipline_compiled,clipline_checkpoint,baseline,baseline_compiled
    batch_size=     clips per step (default: 16 on a GPU, 1 without); several separated by commas are measured in turn
    num_frames=0 image_size=0 depth=0       0: the network's own; depth is not for MViT and Hiera
    precision=auto  fp32, bf16; auto is bf16 on a GPU
    device=auto     auto uses a GPU if there is one
    cpu_threads=0   torch threads on a CPU (0: all cores)
    rounds=7        rounds of every case
    steps_per_round=0       (0: 10 on a GPU, else 1)
    out=PATH        the result (default bench/results/train_step.json)

The baseline is the same network as transformers implements it, MViT as torchvision and Hiera as timm does. All cases of
a round run one after another, and speed-ups are ratios within a round. clipline_checkpoint recomputes every block in
the backward pass. "Saved for backward" is the memory that a step keeps until its backward pass, "peak", on a GPU only,
the largest memory of a case. Utilization is the achieved fraction of the rate at which the device multiplies large
matrices of that precision, measured first; a network's multiply-adds count once forward and twice backward,
recomputation not.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import networks
from bench.baselines.networks import build_baseline
from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_choices, check_minimum, run_bench, set_up_torch
from bench.hog import time_call
from networks.flops import count_flops, count_parameters
from training.optimizers import build_optimizer
from utils.device import autocast

CASES = ("clipline", "clipline_compiled", "clipline_checkpoint", "baseline", "baseline_compiled")
NETWORKS = (
    "timesformer_b",
    "vivit_b",
    "videomae_b",
    "mvit_v2_s",
    "mvit_v1_b",
    "vjepa2_l",
    "videoprism_b",
    "hiera_b",
    "dinov2_b",
)
NUM_CLASSES = 400


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    networks: tuple[str, ...] = NETWORKS[:4]
    cases: tuple[str, ...] = CASES
    batch_size: tuple[str, ...] = ()
    num_frames: int = 0
    image_size: int = 0
    depth: int = 0
    precision: str = "auto"
    device: str = "auto"
    cpu_threads: int = 0
    rounds: int = 7
    steps_per_round: int = 0
    out: str = "bench/results/train_step.json"
    dry_run_args: ClassVar[str] = (
        "networks=timesformer_b,vivit_b,videomae_b num_frames=4 image_size=32 depth=1 rounds=1 precision=fp32"
    )

    def __post_init__(self) -> None:
        check_choices(self, networks=NETWORKS, cases=CASES, precision=("auto", "fp32", "bf16"))
        check_minimum(self, num_frames=0, image_size=0, depth=0, cpu_threads=0)
        check_minimum(self, rounds=1, steps_per_round=0, batch_size=1)

    def network_arguments(self, name: str) -> dict[str, Any]:
        """Return the constructor arguments of a network."""
        sizes = {"num_frames": self.num_frames, "image_size": self.image_size, "depth": self.depth}
        arguments: dict[str, Any] = {key: value for key, value in sizes.items() if value}
        if name.startswith(("mvit", "hiera")):
            arguments.pop("depth", None)
        if name.startswith("dinov2") and "depth" in arguments:
            arguments["encoder_args"] = {"depth": arguments.pop("depth")}
        if not name.startswith("mvit"):  # transformers has no drop path; that of torchvision's MViT is the same as ours
            arguments["drop_path"] = 0.0
        return arguments


class StepCase:
    """One case: its network, its training step, and the memory that the step needs."""

    def __init__(self, case: str, name: str, settings: Settings, video: Tensor, label: Tensor, dtype: torch.dtype):
        device, arguments = video.device, settings.network_arguments(name)
        torch.manual_seed(0)
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if case.startswith("clipline"):
            if case == "clipline_checkpoint":
                arguments["checkpoint_blocks"] = len(build_on_meta(name, settings).blocks)  # type: ignore[arg-type]
            network = networks.build(name, num_classes=NUM_CLASSES, **arguments)
        else:
            network = build_baseline(name, NUM_CLASSES, video.shape[1:], settings.depth)
        network = network.to(device).train()
        if case.endswith("compiled"):
            network.compile()
        self.step = training_step(network, video, label, dtype)
        time_call(self.step, device)  # the first call compiles
        self.figures = {"parameters": count_parameters(network), **measure_memory(self.step, device, before)}


def build_on_meta(name: str, settings: Settings) -> nn.Module:
    """Build a network without memory for its weights."""
    with torch.device("meta"):
        return networks.build(name, num_classes=NUM_CLASSES, **settings.network_arguments(name))


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all networks and batch sizes; those that do not fit in memory are left out."""
    device, dtype = set_up_torch(settings)
    rate = matrix_rate(device, dtype)
    results = []
    for name in settings.networks:
        for batch_size in map(int, settings.batch_size or ("16" if device.type == "cuda" else "1",)):
            with contextlib.suppress(torch.OutOfMemoryError):
                results.append(measure(name, batch_size, settings, device=device, dtype=dtype, rate=rate))
                print(format_table(results[-1]), flush=True)
                continue
            torch.cuda.empty_cache()  # here, where nothing refers to the networks any more
            print(f"left out: {name}, {batch_size} clips: {device} has not enough memory", flush=True)
    return {
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "matrix_gflops": round(rate / 1e9, 1),
        "networks": results,
    }


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the multiply-adds per second of square matrix products, the best of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end:  # until the clock frequency has risen
        time_call(lambda: a @ b, device)
    return side**3 / min(time_call(lambda: a @ b, device) for _ in range(5))


def measure(
    name: str, batch_size: int, settings: Settings, *, device: torch.device, dtype: torch.dtype, rate: float
) -> dict[str, Any]:
    """Measure all cases of one network at one batch size; `rate` is what matrix_rate() returns."""
    torch._dynamo.reset()  # otherwise sizes that differ from the last network's would be compiled as dynamic ones
    plan = build_on_meta(name, settings)
    input_shape: tuple[int, ...] = plan.patch_embed.input_shape  # type: ignore[union-attr,assignment]
    flops = count_flops(plan)
    video = torch.randn(batch_size, *input_shape, device=device)
    label = torch.randint(NUM_CLASSES, (batch_size,), device=device)
    cases = {case: StepCase(case, name, settings, video, label, dtype) for case in settings.cases}
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    steps = settings.steps_per_round or (10 if device.type == "cuda" else 1)
    for _ in range(settings.rounds):
        for case, built in cases.items():
            seconds[case].append(time_call(lambda step=built.step: [step() for _ in range(steps)], device) / steps)
    return {
        "network": name,
        "input_shape": list(input_shape),
        "batch_size": batch_size,
        "gflops": round(flops / 1e9, 2),
        "cases": {
            case: {
                "clips_per_s": summarize(batch_size / s for s in seconds[case]),
                **built.figures,
                "utilization": summarize(3 * flops * batch_size / s / rate for s in seconds[case]),
            }
            for case, built in cases.items()
        },
        "speedups": speedups(seconds),
    }


def speedups(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return how many times faster each case of ours is than the baselines and than our plain one, round by round."""
    return {
        f"{case} / {other}": summarize(b / a for a, b in zip(seconds[case], seconds[other], strict=True))
        for case in seconds
        for other in seconds
        if case.startswith("clipline") and case != other and (other.startswith("baseline") or other == "clipline")
    }


def training_step(network: nn.Module, video: Tensor, label: Tensor, dtype: torch.dtype) -> Callable[[], Any]:
    """Return the training step of train.py without lr schedule, gradient clipping and metrics."""
    optimizer = build_optimizer(network, "adamw", 1e-4, fused=True)

    def step() -> None:
        with autocast(video.device, dtype):
            out = network(video)
            logits = out if isinstance(out, Tensor) else out.logits
        F.cross_entropy(logits.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_memory(step: Callable[[], Any], device: torch.device, before: int) -> dict[str, float]:
    """Return the MiB that a step saves for its backward pass, each storage counted once.

    On a GPU also the peak beyond `before`, the bytes allocated before the network was built.
    """
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step()
    figures = {"saved_for_backward_mib": round(sum(saved.values()) / 2**20, 1)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        time_call(step, device)
        figures["peak_mib"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    return figures


def format_table(result: Mapping[str, Any]) -> str:
    """Format one network as text, one line per case."""
    clip = "x".join(map(str, result["input_shape"][1:]))
    lines = [
        f"{result['network']}, {result['batch_size']} clips of {clip}, {result['gflops']} GFLOPs",
        f"{'case':20} {'clips/s':>24} {'saved for backward, MiB':>24} {'utilization':>12} {'case / baseline':>16}",
    ]
    for case, figures in result["cases"].items():
        speedup = result["speedups"].get(f"{case} / baseline")
        lines.append(
            f"{case:20} {format_iqr(figures['clips_per_s'], 3):>24} {figures['saved_for_backward_mib']:>24.0f} "
            f"{100 * figures['utilization']['median']:>10.0f} % {speedup['median'] if speedup else '':>16}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("train_step", __doc__, Settings, measure_all, argv, ("transformers", "timm", "torchvision"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
