"""What bench.gpu runs, in the order of its value: the benches' settings that fit some minutes, and toy ones.

The limits are reckoned for an H100 with 16 cores; none of them has been seen on a GPU. A process that imports torch and
DALI takes 5 to 10 s to begin with. A part's limit keeps it from taking the time of those after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.harness.gpu_machine import missing_package
from bench.harness.schedule import Part, Task
from bench.report import gpu_summary as headlines

PARTS = ("card", "tests", "decode", "loader", "step", "data_over_synthetic", "epoch_time", "hog", "prepare")
NEEDS_GPU = "it needs a GPU"
DRY_LIMITS = 10  # times as long: a dry run asks whether everything runs, on machines that are slow and busy, too
FILES = "sets=h264_bframes,h264_bframes_prepared"
# A batch of 28, since DALI decodes the videos of a batch side by side: no more threads than that can work.
SWEEP = "cases=clipline specs=16x4 batch=28 prefetch=1 repeats=2 memory=0"
PEERS = f"{FILES} sizes=340x256 specs=16x4 batch=16 workers=16 threads=14 clips=256 repeats=2 memory=0"
STEP = "amp=bf16 batch=16 repeats=3 steps=5 cases=ours_compiled,peer_compiled,ours,peer"
OVER = "cases=prepared,synthetic batch=8 stride=4 workers=16 threads=14 clips=512 repeats=3"
Make = Callable[..., Task]
TOY_FILES = "sizes=192x144 files=2 length=40"
TOY_DECODE = f"{TOY_FILES} specs=4x2 size=32 batch=2 clips=4 repeats=1 memory=0 workers=1 threads=1"
TOY_STEP = "frames=4 size=32 depth=1 repeats=1 amp=fp32 cases=ours,peer"
TOY_EPOCHS = "network=toy sizes=64x48 files=2 length=40 frames=4 size=32 clips=4 repeats=1 threads=1 stride=4 workers=1"


def build_parts(folder: Path, on_gpu: bool, dry: bool) -> list[Part]:
    """Return all parts, whose tasks write into the folder; `dry` for toy sizes, of tasks that are alike the first."""

    def bench(name: str, module: str, real: str, toy: str, limit: float, **more: object) -> Task:
        words = ["--dry-run", *toy.split()] if dry else real.split()
        limit *= DRY_LIMITS if dry else 1
        return Task(name, (f"bench.{module}", *words, f"out={folder / name}.json"), limit, **more)  # type: ignore[arg-type]

    def alike(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        return tasks[:1] if dry else tasks

    only_gpu = "" if on_gpu else NEEDS_GPU
    parts = [
        Part("card", 40, (bench("card", "card", "", "", 40, least=5),), headlines.card),
        Part("tests", 90, (bench("tests", "gpu_tests", "", "", 90, least=20),), headlines.tests),
        Part("decode", 175, decode_tasks(bench), headlines.decode),
        Part("loader", 150, loader_tasks(bench, only_gpu), headlines.loader),
        Part("step", 190, alike(step_tasks(bench)), headlines.step),
        Part("data_over_synthetic", 230, alike(over_synthetic_tasks(bench)), headlines.data_over_synthetic),
        Part("epoch_time", 200, (epoch_time_task(bench),), headlines.epoch_time),
        Part("hog", 80, (bench("hog", "hog", "repeats=5", "", 80, least=40),), headlines.hog),
        Part("prepare", 60, (bench("prepare", "prepare", "", "", 60, least=20),), headlines.prepare),
    ]
    return [replace(part, limit=DRY_LIMITS * part.limit) for part in parts] if dry else parts


def decode_tasks(bench: Make) -> tuple[Task, ...]:
    """NVDEC with ever more threads, the host, and both, on files whose sessions NVDEC can keep (352x256) and cannot
    (340x256), as downloaded and prepared. A table of NVDEC takes about 15 s, and is written when it is there."""
    tables = f"{FILES} {SWEEP}"
    toy = f"sets=vp9_gop12 {TOY_DECODE} cases=clipline"  # which DALI decodes on a CPU, too
    return (
        bench("decode_nvdec", "decode", f"{tables} sizes=352x256 decoder=dali workers=6 clips=224 threads=14,28,4,20,8",
              f"{toy} decoder=dali", 100),
        bench("decode_host", "decode", f"{tables} sizes=352x256 decoder=host workers=16 clips=448 threads=4",
              f"{toy} decoder=host", 35),
        bench("decode_both", "decode", f"{tables} sizes=352x256 decoder=both workers=16 clips=448 threads=14",
              f"{toy} decoder=both", 35, optional=True),
        # As downloaded alone, and fewer clips: 50 to 70 ms for each session, if they do not overlap, are 17 clips/s.
        bench("decode_nvdec_340", "decode", f"sets=h264_bframes {SWEEP} sizes=340x256 decoder=dali workers=4 threads=14"
              " repeats=1 clips=56", f"{toy} decoder=dali", 50),
    )  # fmt: skip


def loader_tasks(bench: Make, only_gpu: str) -> tuple[Task, ...]:
    """Clipline's loader beside the peers on the CPU, and beside each that decodes on the GPU: in a process of its own,
    since a crash or a hang of one should not cost the others' figures."""
    one = PEERS.replace(FILES, "sets=h264_bframes")
    toy = f"sets=h264_bframes {TOY_DECODE}"
    packages = {"torchcodec_cuda": "torchcodec", "pynvvideocodec": "PyNvVideoCodec", "spdl_cuda": "spdl.io"}
    on_gpu = (
        bench(f"loader_{case}", "decode", f"{one} cases=clipline,{case}", f"{toy} cases=clipline,{case}", 45, least=25,
              unavailable=only_gpu or missing_package(package))
        for case, package in packages.items()
    )  # fmt: skip
    cases = "cases=clipline,torchcodec,spdl"
    return (bench("loader", "decode", f"{PEERS} {cases}", f"{toy} {cases}", 75, least=40), *on_gpu)


def step_tasks(bench: Make) -> tuple[Task, ...]:
    """A training step of each network, beside its peer. Compiling both takes most of the time."""
    limits = {"timesformer_b": 120, "vivit_b": 100, "mvit_v2_s": 120, "videomae_b": 100}
    return tuple(
        bench(f"step_{name}", "step", f"networks={name} {STEP}", f"networks={name} {TOY_STEP}", limit, least=60)
        for name, limit in limits.items()
    )


def over_synthetic_tasks(bench: Make) -> tuple[Task, ...]:
    """Training with data, over training on the same batch again and again: what the loader costs."""
    frames = {"timesformer_b": 8, "vivit_b": 16, "mvit_v2_s": 16}
    return tuple(
        bench(f"over_synthetic_{name}", "epoch_time", f"network={name} frames={count} {OVER}",
              f"{TOY_EPOCHS} cases=prepared,synthetic", 90, least=50)
        for name, count in frames.items()
    )  # fmt: skip


def epoch_time_task(bench: Make) -> Task:
    """The epoch-time table; without decord only from Clipline's first row on."""
    no_decord = missing_package("decord")
    ours = "cases=dali_decode,trimmed,zero_copy,amp,compiled,prepared,repeated_aug,synthetic" if no_decord else ""
    real = f"network=timesformer_b batch=8 workers=8 threads=14 clips=256 repeats=2 {ours}"
    return bench("epoch_time", "epoch_time", real, f"{TOY_EPOCHS} cases=dali_decode,trimmed,amp", 200, least=90)
