"""Measure the training step of probes on a frozen encoder: one, many, and many on stored features.

    python -m bench.probes [key=value ...] [--dry-run]

    network=vjepa2_l    any network with attentive or linear probes
    depth=0             blocks of the encoder (0: all of them)
    num_frames=0 image_size=0       0: the network's own
    kind=attentive      attentive, attentive_4, linear, linear_bn
    num_probes=20       probes of the grid
    batch_size=1        videos per step, of one clip each
    precision=auto device=auto cpu_threads=0    as in bench.train_step
    rounds=7            rounds of every case
    out=PATH            the result (default bench/results/probes.json)

Cases: one probe; num_probes of them; as many poolers of transformers' V-JEPA 2 on the same tokens of the same encoder
(of kind=attentive and attentive_N); and num_probes on tokens that are read from a folder of features. All cases of a
round run one after another, and ratios are within a round. Clips are in memory: decoding, which all share, is left out.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import networks
from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_minimum, run_bench, set_up_torch
from bench.hog import time_call
from configs.schema import Data
from networks.probed_encoder import ProbeGrid
from pipelines.data.feature_shards import LabeledVideo, ShardWriter
from pipelines.feature_loader import FeatureLoader
from training.probe_grid import ProbeSetting, build_probe_optimizers
from training.tasks import ClassifyByProbes
from utils.device import autocast

NUM_CLASSES = 400


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    network: str = "vjepa2_l"
    depth: int = 0
    num_frames: int = 0
    image_size: int = 0
    kind: str = "attentive"
    num_probes: int = 20
    batch_size: int = 1
    precision: str = "auto"
    device: str = "auto"
    cpu_threads: int = 0
    rounds: int = 7
    out: str = "bench/results/probes.json"
    dry_run_args: ClassVar[str] = "network=vjepa2_tiny num_frames=4 image_size=32 depth=1 rounds=1 num_probes=3"

    def __post_init__(self) -> None:
        check_minimum(self, depth=0, num_frames=0, image_size=0, num_probes=1, batch_size=1, cpu_threads=0, rounds=1)


def build_grid(settings: Settings, num_probes: int, device: torch.device) -> ProbeGrid:
    """Build the frozen encoder with as many probes."""
    sizes = {"num_frames": settings.num_frames, "image_size": settings.image_size}
    with torch.device("meta"):
        own = networks.build(settings.network, num_classes=0).kwargs
    sizes = {key: value or own[key] for key, value in sizes.items()}  # type: ignore[index]
    args = {"depth": settings.depth} if settings.depth else {}
    kinds = [settings.kind] * num_probes
    torch.manual_seed(0)
    grid = networks.build(
        "probe_grid", num_classes=NUM_CLASSES, encoder=settings.network, encoder_args=args, kinds=kinds, **sizes
    )
    assert isinstance(grid, ProbeGrid)
    return grid.to(device).train()  # type: ignore[return-value]


def probe_step(grid: ProbeGrid, kind: str, dtype: torch.dtype) -> Callable[[Any], None]:
    """Return the training step of train.py without schedule, clipping and metrics; it takes a batch."""
    settings = [ProbeSetting(kind, 1e-3, 0.01 * index) for index in range(len(grid.probes))]
    optimizers = build_probe_optimizers(grid, settings, name="adamw", fused=True)
    task = ClassifyByProbes()

    def step(batch: Any) -> None:
        with autocast(batch.video.device, dtype):
            loss = task(grid, batch)["loss"]
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def baseline_step(grid: ProbeGrid, settings: Settings, dtype: torch.dtype) -> Callable[[Any], None] | None:
    """Return the same step with poolers of transformers on the tokens of the same encoder; None for linear probes."""
    if not settings.kind.startswith("attentive"):
        return None
    from transformers import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    depth = int(settings.kind.partition("_")[2] or 1)
    device = next(grid.parameters()).device
    config = VJEPA2Config(
        hidden_size=grid.embed_dim, num_attention_heads=grid.encoder_heads, mlp_ratio=4, num_pooler_layers=depth - 1
    )
    config._attn_implementation = "sdpa"
    poolers = [VJEPA2AttentivePooler(config).to(device).train() for _ in range(settings.num_probes)]
    heads = [nn.Linear(grid.embed_dim, NUM_CLASSES).to(device) for _ in poolers]
    parameters = [[*pooler.parameters(), *head.parameters()] for pooler, head in zip(poolers, heads, strict=True)]
    optimizers = [torch.optim.AdamW(part, lr=1e-3, fused=True) for part in parameters]

    def step(batch: Any) -> None:
        with autocast(device, dtype):
            tokens = grid.forward_tokens(batch.video)
            losses = [
                F.cross_entropy(head(pooler(tokens)).float(), batch.label)
                for pooler, head in zip(poolers, heads, strict=True)
            ]
        torch.stack(losses).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def feature_batches(grid: ProbeGrid, video: Tensor, folder: Path) -> Callable[[], Any]:
    """Write the tokens of some videos to a folder; return a function that reads the next batch of them."""
    with torch.no_grad():
        tokens = grid.forward_tokens(video).float().cpu().numpy()
    count = 4 * len(video)
    writer = ShardWriter(folder, {}, [LabeledVideo(f"{n}.mp4", 0) for n in range(count)], ["a"])
    writer.add(np.arange(count), np.concatenate([tokens] * 4), count)
    dtype = torch.float32 if video.device.type == "cpu" else torch.float16
    data = Data(batch_size=len(video))
    loader = FeatureLoader(str(folder), data, train=True, device=video.device, dtype=dtype)

    def endless() -> Any:
        while True:
            yield from loader

    iterator = endless()
    return lambda: next(iterator)


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all cases, round by round."""
    device, dtype = set_up_torch(settings)
    grids = {number: build_grid(settings, number, device) for number in {1, settings.num_probes}}
    grid = grids[settings.num_probes]
    shape = grid.patch_embed.input_shape
    video = torch.randn(settings.batch_size, *shape, device=device)
    batch = SimpleNamespace(video=video, label=torch.randint(NUM_CLASSES, (settings.batch_size,), device=device))
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        read = feature_batches(grid, video, Path(folder) / "features")
        steps = {number: probe_step(built, settings.kind, dtype) for number, built in grids.items()}
        many = steps[settings.num_probes]
        cases: dict[str, Callable[[], None]] = {"one": lambda: steps[1](batch), "many": lambda: many(batch)}
        if baseline := baseline_step(grid, settings, dtype):
            cases["transformers"] = lambda: baseline(batch)
        cases["features"] = lambda: many(read())
        seconds = run_rounds(cases, settings.rounds, device)
    result = {
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "input_shape": list(shape),
        "tokens": grid.forward_tokens(video).shape[1],
        "seconds": {case: summarize(values) for case, values in seconds.items()},
        "cost_over_one": {
            case: summarize(a / b for a, b in zip(values, seconds["one"], strict=True))
            for case, values in seconds.items()
            if case != "one"
        },
        "speedup_of_features": summarize(a / b for a, b in zip(seconds["many"], seconds["features"], strict=True)),
    }
    print(format_table(result, settings))
    return result


def run_rounds(cases: Mapping[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time every case in every round, after a first call of each."""
    for step in cases.values():
        time_call(step, device)
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, step in cases.items():
            seconds[case].append(time_call(step, device))
    return seconds


def format_table(result: Mapping[str, Any], settings: Settings) -> str:
    """Format the cases as text."""
    clip = "x".join(map(str, result["input_shape"][1:]))
    lines = [
        f"{settings.network}, {settings.batch_size} clips of {clip}, {result['tokens']} tokens, {settings.kind}",
        f"{'case':14} {'seconds per step':>24} {'over one probe':>24}",
    ]
    for case, times in result["seconds"].items():
        ratio = result["cost_over_one"].get(case)
        lines.append(f"{case:14} {format_iqr(times, 3):>24} {format_iqr(ratio, 2) if ratio else '':>24}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("probes", __doc__, Settings, measure_all, argv, ("transformers",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
