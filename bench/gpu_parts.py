"""The parts of bench.gpu in the order of their value: which benchmarks run, with settings that fit some minutes.

The time limits are estimates for an H100 with 16 cores; none of them has been tried on a GPU. A process that imports
torch and DALI takes 5 to 10 s to start. The limit of a part keeps it from using the time of later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.harness.gpu_machine import missing_package
from bench.harness.schedule import Part, Task
from bench.report import gpu_summary as headlines

PARTS = (
    "capabilities",
    "tests",
    "decoders",
    "loaders",
    "train_step",
    "data_over_synthetic",
    "epoch_time",
    "hog",
    "masking",
    "prepare",
)
NEEDS_GPU = "it needs a GPU"
DRY_RUN_FACTOR = 10  # for all limits, because a dry run must also pass on slow and busy machines
FILES = "sets=h264_bframes,h264_bframes_prepared"
# DALI decodes the videos of a batch in parallel, so no more threads than the 28 videos of a batch can be busy.
SWEEP = "cases=clipline specs=16x4 batch_size=28 prefetch=1 rounds=2 memory=no"
BASELINES = (
    f"{FILES} sizes=340x256 specs=16x4 batch_size=16 num_workers=16 dali_threads=14 clips_per_round=256 rounds=2 "
    "memory=no"
)
STEP = (
    "precision=bf16 batch_size=16 rounds=3 steps_per_round=5 "
    "cases=clipline_compiled,baseline_compiled,clipline,baseline"
)
OVER_SYNTHETIC = (
    "cases=prepared,synthetic batch_size=8 frame_stride=4 num_workers=16 dali_threads=14 clips_per_round=512 rounds=3"
)
CLIPLINE_ROWS = "cases=dali_decode,trimmed,zero_copy,amp,compiled,prepared,repeated_aug,synthetic"
# The settings of a dry run.
SMALL_LOADING = (
    "sizes=192x144 files=2 length=40 specs=4x2 image_size=32 batch_size=2 clips_per_round=4 rounds=1 memory=no "
    "num_workers=1 dali_threads=1"
)
SMALL_STEP = "num_frames=4 image_size=32 depth=1 rounds=1 precision=fp32 cases=clipline,baseline"
SMALL_EPOCHS = (
    "network=toy sizes=64x48 files=2 length=40 num_frames=4 image_size=32 clips_per_round=4 rounds=1 dali_threads=1 "
    "frame_stride=4 num_workers=1"
)
MakeTask = Callable[..., Task]


def build_parts(folder: Path, on_gpu: bool, dry_run: bool) -> list[Part]:
    """Return all parts, with tasks that write into the folder. A dry run has one task of each kind, in a small size."""

    def task(
        name: str, module: str, settings: str = "", dry_run_settings: str = "", *, limit_s: float, **options: object
    ) -> Task:
        words = ["--dry-run", *dry_run_settings.split()] if dry_run else settings.split()
        limit_s *= DRY_RUN_FACTOR if dry_run else 1
        return Task(name, (f"bench.{module}", *words, f"out={folder / name}.json"), limit_s, **options)  # type: ignore[arg-type]

    def similar(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        return tasks[:1] if dry_run else tasks

    only_gpu = "" if on_gpu else NEEDS_GPU
    tasks: dict[str, tuple[float, tuple[Task, ...]]] = {  # limit of the part in seconds, and its tasks
        "capabilities": (40, (task("capabilities", "gpu_capabilities", limit_s=40, min_s=5),)),
        "tests": (90, (task("tests", "gpu_tests", limit_s=90, min_s=20),)),
        "decoders": (175, decoder_tasks(task)),
        "loaders": (150, loader_tasks(task, only_gpu)),
        "train_step": (190, similar(train_step_tasks(task))),
        "data_over_synthetic": (230, similar(over_synthetic_tasks(task))),
        "epoch_time": (200, (epoch_time_task(task),)),
        "masking": (120, (task("masking", "masking", "rounds=3 precision=bf16 compiled=yes", limit_s=120, min_s=40),)),
        "hog": (80, (task("hog", "hog", "rounds=5", limit_s=80, min_s=40),)),
        "prepare": (60, (task("prepare", "prepare", limit_s=60, min_s=20),)),
    }
    parts = [Part(name, *tasks[name], getattr(headlines, name)) for name in PARTS]
    return [replace(part, limit_s=DRY_RUN_FACTOR * part.limit_s) for part in parts] if dry_run else parts


def decoder_tasks(task: MakeTask) -> tuple[Task, ...]:
    """Measure NVDEC with different numbers of threads, PyAV, and both.

    NVDEC can keep its sessions for files of 352x256 pixels and cannot for 340x256. A table of NVDEC takes about 15 s
    and is written as soon as it is finished.
    """
    both_kinds = f"{FILES} {SWEEP} sizes=352x256"
    small = f"sets=vp9_gop12 {SMALL_LOADING} cases=clipline"  # DALI decodes VP9 on a CPU, too
    return (
        task(
            "decoders_nvdec",
            "loading",
            f"{both_kinds} decoder=dali num_workers=6 clips_per_round=224 dali_threads=14,28,4,20,8",
            f"{small} decoder=dali",
            limit_s=100,
        ),
        task(
            "decoders_pyav",
            "loading",
            f"{both_kinds} decoder=pyav num_workers=16 clips_per_round=448 dali_threads=4",
            f"{small} decoder=pyav",
            limit_s=35,
        ),
        task(
            "decoders_both",
            "loading",
            f"{both_kinds} decoder=both num_workers=16 clips_per_round=448 dali_threads=14",
            f"{small} decoder=both",
            limit_s=35,
            optional=True,
        ),
        # Original files only, and fewer clips: 50 to 70 ms per session, if they do not overlap, make 17 clips/s.
        task(
            "decoders_nvdec_340",
            "loading",
            f"sets=h264_bframes {SWEEP} sizes=340x256 decoder=dali num_workers=4 dali_threads=14 rounds=1 "
            "clips_per_round=56",
            f"{small} decoder=dali",
            limit_s=50,
        ),
    )


def loader_tasks(task: MakeTask, only_gpu: str) -> tuple[Task, ...]:
    """Measure Clipline's loader beside the baselines.

    Those that decode on the GPU have a process each, so that a crash or a hang of one does not cost the others'
    figures. `only_gpu` is the reason why they cannot run here, if there is one.
    """
    original_files = BASELINES.replace(FILES, "sets=h264_bframes")
    small = f"sets=h264_bframes {SMALL_LOADING}"
    packages = {"torchcodec_cuda": "torchcodec", "pynvvideocodec": "PyNvVideoCodec", "spdl_cuda": "spdl.io"}
    gpu_tasks = (
        task(
            f"loaders_{case}",
            "loading",
            f"{original_files} cases=clipline,{case}",
            f"{small} cases=clipline,{case}",
            limit_s=45,
            min_s=25,
            unavailable=only_gpu or missing_package(package),
        )
        for case, package in packages.items()
    )
    cases = "cases=clipline,torchcodec,spdl_window"
    return (
        task("loaders", "loading", f"{BASELINES} {cases}", f"{small} {cases}", limit_s=75, min_s=40),
        *gpu_tasks,
    )


def train_step_tasks(task: MakeTask) -> tuple[Task, ...]:
    """Measure the training step of each network beside its baseline. Compiling both takes most of the time."""
    limits = {"timesformer_b": 120, "vivit_b": 100, "mvit_v2_s": 120, "videomae_b": 100}
    return tuple(
        task(
            f"train_step_{name}",
            "train_step",
            f"networks={name} {STEP}",
            f"networks={name} {SMALL_STEP}",
            limit_s=limit_s,
            min_s=60,
        )
        for name, limit_s in limits.items()
    )


def over_synthetic_tasks(task: MakeTask) -> tuple[Task, ...]:
    """Measure training on files beside training on the same batch again and again: the cost of loading."""
    num_frames = {"timesformer_b": 8, "vivit_b": 16, "mvit_v2_s": 16}
    return tuple(
        task(
            f"over_synthetic_{name}",
            "epoch_time",
            f"network={name} num_frames={frames} {OVER_SYNTHETIC}",
            f"{SMALL_EPOCHS} cases=prepared,synthetic",
            limit_s=90,
            min_s=50,
        )
        for name, frames in num_frames.items()
    )


def epoch_time_task(task: MakeTask) -> Task:
    """Measure the epoch-time table; without decord only the rows from Clipline's first on."""
    cases = CLIPLINE_ROWS if missing_package("decord") else ""
    return task(
        "epoch_time",
        "epoch_time",
        f"network=timesformer_b batch_size=8 num_workers=8 dali_threads=14 clips_per_round=256 rounds=2 {cases}",
        f"{SMALL_EPOCHS} cases=dali_decode,trimmed,amp",
        limit_s=200,
        min_s=90,
    )
