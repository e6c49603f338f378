"""Measure what adapters save: trained weights, the file that is kept, memory and the time of a training step.

    python -m bench.adapters [key=value ...] [--dry-run]

    network=videomae_b
    adapters=lora,bias,prompt,none      none: full fine-tuning; also st_adapter and aim for image encoders on frames
    batch_size=0        clips per step (0: 16 on a GPU, 1 without)
    num_frames=0 image_size=0           0: the network's own
    precision=auto device=auto cpu_threads=0    as in bench.train_step
    rounds=5            rounds of every case
    steps_per_round=0   (0: 10 on a GPU, else 1)
    out=PATH            the result (default bench/results/adapters.json)

All cases of a round run one after another, and ratios are within a round. "State" is what a step keeps beside the
weights: gradients and the two moments of AdamW. "Saved" is what it keeps for its backward pass; "peak", on a GPU only,
the largest memory of all. The file is that of best/, in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import networks
from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_choices, check_minimum, run_bench, set_up_torch
from bench.hog import time_call
from bench.train_step import measure_memory, training_step
from networks import VARIANTS
from networks.adapters import ADAPTERS, HEADS, add_adapter

FULL, NUM_CLASSES = "none", 400


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    network: str = "videomae_b"
    adapters: tuple[str, ...] = ("lora", "bias", "prompt", FULL)
    batch_size: int = 0
    num_frames: int = 0
    image_size: int = 0
    precision: str = "auto"
    device: str = "auto"
    cpu_threads: int = 0
    rounds: int = 5
    steps_per_round: int = 0
    out: str = "bench/results/adapters.json"
    dry_run_args: ClassVar[str] = "network=videomae_tiny num_frames=4 image_size=32 rounds=1"

    def __post_init__(self) -> None:
        check_choices(self, network=VARIANTS, adapters=(*ADAPTERS, FULL))
        check_minimum(self, batch_size=0, num_frames=0, image_size=0, cpu_threads=0, rounds=1, steps_per_round=0)


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all cases."""
    device, dtype = set_up_torch(settings)
    batch_size = settings.batch_size or (16 if device.type == "cuda" else 1)
    steps: dict[str, Callable[[], Any]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name in settings.adapters:
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        network = build_case(settings, name).to(device).train()
        clip = tuple(network.patch_embed.input_shape)  # type: ignore[arg-type,union-attr]
        video = torch.randn(batch_size, *clip, device=device)
        label = torch.randint(NUM_CLASSES, (batch_size,), device=device)
        steps[name] = training_step(network, video, label, dtype)
        time_call(steps[name], device)  # the first step makes the state of the optimizer
        figures[name] = {**count_weights(network), **measure_memory(steps[name], device, before)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    count = settings.steps_per_round or (10 if device.type == "cuda" else 1)
    for _ in range(settings.rounds):
        for name, step in steps.items():
            seconds[name].append(time_call(lambda step=step: [step() for _ in range(count)], device) / count)
    full = seconds.get(FULL)
    result = {
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "network": settings.network,
        "input_shape": list(clip),
        "batch_size": batch_size,
        "cases": {
            name: figures[name]
            | {
                "clips_per_s": summarize(batch_size / s for s in seconds[name]),
                "speedup": summarize(b / a for a, b in zip(seconds[name], full, strict=True)) if full else None,
            }
            for name in seconds
        },
    }
    print(format_table(result), flush=True)
    return result


def build_case(settings: Settings, name: str) -> nn.Module:
    """Build the network with an adapter, of which only that and the head are trained."""
    sizes = {key: value for key in ("num_frames", "image_size") if (value := getattr(settings, key))}
    network = networks.build(settings.network, num_classes=NUM_CLASSES, **sizes)
    if name != FULL:
        trained = set(add_adapter(network, name))
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(key in trained or key.startswith(HEADS))
    return network


def count_weights(network: nn.Module) -> dict[str, float]:
    """Return the millions of weights, of which trained, and the MiB that are kept in a file and beside the weights."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, is_trained in sizes if is_trained)
    return {
        "parameters_m": round(total / 1e6, 2),
        "trained_m": round(trained / 1e6, 3),
        "file_mib": round(4 * trained / 2**20, 2),
        "state_mib": round(3 * 4 * trained / 2**20, 1),
    }


def format_table(result: dict[str, Any]) -> str:
    """Format the result as text, one line per case."""
    columns = f"{'trained, M':>11} {'file, MiB':>10} {'state, MiB':>11} {'saved, MiB':>11} {'clips/s':>24} speedup"
    lines = [f"{'adapter':12} {columns}"]
    for name, row in result["cases"].items():
        numbers = f"{row['trained_m']:11.3f} {row['file_mib']:10.1f} {row['state_mib']:11.1f}"
        speedup = f"{row['speedup']['median']:.2f}" if row["speedup"] else ""
        saved = row["saved_for_backward_mib"]
        lines.append(f"{name:12} {numbers} {saved:11.1f} {format_iqr(row['clips_per_s'], 2):>24} {speedup}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("adapters", __doc__, Settings, measure_all, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
