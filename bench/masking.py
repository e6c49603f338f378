"""Measure the step of masked pre-training over the mask ratio, and how many clips per second the loader must bring.

    python -m bench.masking [key=value ...] [--dry-run]

    network=pretrain_videomae_b     or another of task.name=mae
    ratios=0.5,0.75,0.9,0.95        shares of the patches that are hidden
    decoder_ratio=0.5               also the last but one ratio with so much left out by the decoder (0: not)
    baseline=yes                    also transformers' VideoMAEForPreTraining at the same ratio (VideoMAE only)
    compiled=no                     yes: also both with torch.compile
    batch_size=0        clips per step (0: 16 on a GPU, 1 without)
    num_frames=0 image_size=0 depth=0       0: the network's own
    precision=auto device=auto cpu_threads=0    as in bench.train_step
    rounds=5            rounds of every case
    steps_per_round=0   (0: 10 on a GPU, else 1)
    loader_seconds=5    seconds for which the loader is measured (0: not), on H.264 videos of 340x256 pixels that are
                        written for it into the folder cache=
    out=PATH            the result (default bench/results/masking.json)

"fine-tuning" is the step of the same encoder as a classifier, which sees all patches. All cases of a round run one
after another, and ratios are within a round. "Loaders" is how many loaders like the measured one, each with two
workers, a step at this ratio keeps busy. "Saved" is the memory that a step keeps for its backward pass, "peak", on a
GPU only, the largest memory beyond weights and optimizer.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import networks
from bench.baselines.networks import build_masked_baseline
from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_choices, check_minimum, run_bench, set_up_torch
from bench.harness.videos import generate_videos
from bench.hog import time_call
from bench.train_step import measure_memory, training_step
from networks import PRETRAINING_TASKS
from networks.flops import count_parameters
from networks.videomae import VideoMAE
from pipelines.loader import VideoLoader
from training.optimizers import build_optimizer
from training.pretraining_tasks import MAETask
from utils.device import autocast, clip_dtype

FINE_TUNING, NUM_CLASSES = "fine-tuning", 400


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    network: str = "pretrain_videomae_b"
    ratios: tuple[str, ...] = ("0.5", "0.75", "0.9", "0.95")
    decoder_ratio: float = 0.5
    baseline: str = "yes"
    compiled: str = "no"
    batch_size: int = 0
    num_frames: int = 0
    image_size: int = 0
    depth: int = 0
    precision: str = "auto"
    device: str = "auto"
    cpu_threads: int = 0
    rounds: int = 5
    steps_per_round: int = 0
    loader_seconds: float = 5.0
    cache: str = str(Path(tempfile.gettempdir()) / "clipline-bench")
    out: str = "bench/results/masking.json"
    dry_run_args: ClassVar[str] = (
        "network=pretrain_videomae_tiny num_frames=4 image_size=32 depth=1 rounds=1 loader_seconds=0.1"
    )

    def __post_init__(self) -> None:
        check_choices(self, network=PRETRAINING_TASKS["mae"], baseline=("yes", "no"), compiled=("yes", "no"))
        check_minimum(self, batch_size=0, num_frames=0, image_size=0, depth=0, cpu_threads=0, rounds=1)
        check_minimum(self, steps_per_round=0)


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all cases, then the loader."""
    device, dtype = set_up_torch(settings)
    sizes = {key: value for key in ("num_frames", "image_size") if (value := getattr(settings, key))}
    args: dict[str, Any] = sizes | ({"backbone_args": {"depth": settings.depth}} if settings.depth else {})
    with torch.device("meta"):
        plan: Any = networks.build(settings.network, **args)
    batch_size = settings.batch_size or (16 if device.type == "cuda" else 1)
    clip = tuple(plan.patch_embed.input_shape)
    batch = SimpleNamespace(
        video=torch.randn(batch_size, *clip, device=device), seeds=[(0, 0, number) for number in range(batch_size)]
    )
    steps: dict[str, Callable[[], Any]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for case, network, step in build_cases(settings, plan, args, batch, dtype):
        steps[case] = step
        time_call(step, device)  # the first step makes the state of the optimizer
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0  # weights and optimizers so far
        figures[case] = {"parameters": count_parameters(network), **measure_memory(step, device, before)}
    seconds: dict[str, list[float]] = {case: [] for case in steps}
    count = settings.steps_per_round or (10 if device.type == "cuda" else 1)
    for _ in range(settings.rounds):
        for case, step in steps.items():
            seconds[case].append(time_call(lambda step=step: [step() for _ in range(count)], device) / count)
    loader = measure_loader(settings, clip, device, dtype)
    result = {
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "network": settings.network,
        "input_shape": list(clip),
        "batch_size": batch_size,
        "loader_clips_per_s": loader,
        "cases": {
            case: figures[case]
            | {
                "clips_per_s": summarize(batch_size / s for s in seconds[case]),
                "speedup": summarize(b / a for a, b in zip(seconds[case], seconds[FINE_TUNING], strict=True)),
                "loaders": summarize(batch_size / s / loader for s in seconds[case]) if loader else None,
            }
            for case in seconds
        },
    }
    print(format_table(result), flush=True)
    return result


def build_cases(
    settings: Settings, plan: Any, args: Mapping[str, Any], batch: Any, dtype: torch.dtype
) -> Iterator[tuple[str, nn.Module, Callable[[], Any]]]:
    """Yield the name, the network and the step of each case."""
    device = batch.video.device
    encoder = plan.kwargs["backbone"]
    kwargs = plan.backbone.kwargs | {"num_classes": NUM_CLASSES, "pooling": "fc_norm"}
    if "q_pool" in kwargs:  # of a Hiera all stages are pooled in fine-tuning
        kwargs["q_pool"] = None
    classifier = networks.build(encoder, **kwargs)
    label = torch.randint(NUM_CLASSES, (len(batch.video),), device=device)
    classifier = classifier.to(device).train()
    yield FINE_TUNING, classifier, training_step(classifier, batch.video, label, dtype)
    network: Any = networks.build(settings.network, **args).to(device).train()
    tasks = {f"{ratio} hidden": MAETask(network, ratio=float(ratio)) for ratio in settings.ratios}
    main_ratio = float(settings.ratios[-2 if len(settings.ratios) > 1 else 0])
    if settings.decoder_ratio:
        task = MAETask(network, ratio=main_ratio, decoder_ratio=settings.decoder_ratio)
        tasks[f"{main_ratio} hidden, {settings.decoder_ratio} not decoded"] = task
    for case, task in tasks.items():
        yield case, network, pretraining_step(network, lambda task=task: task(network, batch)["loss"], device, dtype)
    main_task = MAETask(network, ratio=main_ratio)
    if settings.compiled == "yes":
        torch._dynamo.reset()  # otherwise what was compiled for other sizes would be used
        fast = torch.compile(network)
        step = pretraining_step(network, lambda: main_task(fast, batch)["loss"], device, dtype)
        yield f"{main_ratio} hidden, compiled", network, step
    if settings.baseline == "yes" and isinstance(network, VideoMAE):
        baseline = build_masked_baseline(network).to(device).train()
        mask = torch.from_numpy(main_task.draw_masks(batch)).flatten(1).to(device)
        clips = batch.video.transpose(1, 2)
        case = f"{main_ratio} hidden, transformers"
        yield case, baseline, pretraining_step(baseline, lambda: baseline(clips, mask).loss, device, dtype)
        if settings.compiled == "yes":
            fast_baseline = torch.compile(baseline)
            step = pretraining_step(baseline, lambda: fast_baseline(clips, mask).loss, device, dtype)
            yield f"{case}, compiled", baseline, step


def pretraining_step(
    network: nn.Module, compute_loss: Callable[[], Tensor], device: torch.device, dtype: torch.dtype
) -> Callable[[], Any]:
    """Return the training step of train.py without lr schedule, gradient clipping and metrics."""
    optimizer = build_optimizer(network, "adamw", 1e-4, fused=True)

    def step() -> None:
        with autocast(device, dtype):
            loss = compute_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_loader(settings: Settings, clip: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the clips per second of the loader alone, over videos that are written for it; None if it is not asked."""
    if not settings.loader_seconds:
        return None
    _, num_frames, height, _ = clip
    videos = generate_videos(Path(settings.cache), "h264_bframes", 8, width=340, height=256, length=300)
    options: dict[str, Any] = {"num_frames": num_frames, "image_size": height, "frame_stride": 4}
    options |= {"device": device, "dtype": clip_dtype(dtype), "batch_size": 8, "num_workers": 2}
    with VideoLoader([(path, 0) for path in videos] * 8, **options) as loader:
        next(iter(loader))  # the workers have started
        count, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < settings.loader_seconds:
            for batch in loader:  # one epoch
                count += len(batch.video)
        return round(count / seconds, 2) if seconds else None


def format_table(result: Mapping[str, Any]) -> str:
    """Format the cases as text, one line each."""
    clip = "x".join(map(str, result["input_shape"][1:]))
    loader = result["loader_clips_per_s"]
    lines = [f"{result['network']}, {result['batch_size']} clips of {clip}; the loader brings {loader} clips/s"]
    lines.append(f"{'case':36} {'clips/s':>24} {'times fine-tuning':>22} {'saved, MiB':>11} {'loaders':>8}")
    for case, figures in result["cases"].items():
        loaders = f"{figures['loaders']['median']:.2f}" if figures["loaders"] else ""
        lines.append(
            f"{case:36} {format_iqr(figures['clips_per_s'], 3):>24} {format_iqr(figures['speedup'], 2):>22} "
            f"{figures['saved_for_backward_mib']:>11.0f} {loaders:>8}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("masking", __doc__, Settings, measure_all, argv, ("transformers",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
