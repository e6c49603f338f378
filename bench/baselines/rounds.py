"""Start the loaders of a table, and time their rounds."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.baselines.cases import clipline_loader, draw_clips, frame_differences, open_batches
from bench.baselines.clips import DrawnClip
from bench.harness.system import Usage, cpu_used_by_others, gpu_memory_mib, process_tree_memory_mib, wait_until_idle
from pipelines.loader import VideoLoader


class Rounds(NamedTuple):
    """The number of batches that a case delivers: one to compare, those of its rounds, and what is read ahead at the
    end."""

    warmup: int  # more than any case has read ahead when a round begins
    timed: int
    num_rounds: int

    @property
    def all_batches(self) -> int:
        """Count the batches of a whole measurement."""
        return 1 + self.warmup + self.num_rounds * (self.warmup + self.timed) + self.warmup


@dataclass(frozen=True, kw_only=True)
class LoaderSetup:
    """The subject of one table: a set of files, how they are read, by which cases, and how often."""

    name: str
    paths: Sequence[str]
    cases: Sequence[str]
    num_frames: int
    frame_stride: int
    image_size: int
    batch_size: int
    num_workers: int
    dali_threads: int
    prefetch: int
    decoder: str
    device: torch.device
    seed: int
    num_rounds: int
    clips_per_round: int

    @property
    def rounds(self) -> Rounds:
        """Derive the numbers of batches."""
        warmup = self.prefetch * max(self.num_workers, 2) + 4
        timed = max(self.clips_per_round // self.batch_size, 1)
        return Rounds(warmup=warmup, timed=timed, num_rounds=self.num_rounds)

    @property
    def spec(self) -> str:
        """Name the clips, frames x stride."""
        return f"{self.num_frames}x{self.frame_stride}"

    def draw(self, folder: str) -> tuple[VideoLoader, list[DrawnClip]]:
        """Build Clipline's loader, and draw the clips of all rounds with its source."""
        num_clips = self.rounds.all_batches * self.batch_size
        loader = clipline_loader(
            self.paths,
            num_clips,
            Path(folder),
            device=self.device,
            seed=self.seed,
            num_frames=self.num_frames,
            frame_stride=self.frame_stride,
            image_size=self.image_size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            dali_threads=self.dali_threads,
            prefetch=self.prefetch,
            decoder=self.decoder,
        )
        return loader, draw_clips(loader, num_clips)


class RunningCases(NamedTuple):
    """The cases of a table that can run here, with their workers started."""

    setup: LoaderSetup
    loader: VideoLoader
    batches: dict[str, Iterator[torch.Tensor]]
    frame_differences: dict[str, dict[str, Any]]


def start_cases(setup: LoaderSetup) -> RunningCases:
    """Start the cases of one set with their workers, and compare a first batch of each.

    Raises ValueError if none of them can run here.
    """
    running, first_batches = {}, {}
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        loader, drawn_clips = setup.draw(folder)
        for case in setup.cases:
            try:
                batches = open_batches(case, loader, drawn_clips, Path(folder))
                first_batches[case] = next(batches).cpu()
            except RuntimeError as error:
                print(f"left out: {setup.name}: {case}: {str(error).strip().splitlines()[-1]}", flush=True)
                continue
            for _ in range(setup.rounds.warmup):
                next(batches)
            running[case] = batches
            wait_until_idle()
    if not running:
        raise ValueError(f"{setup.name}: none of {', '.join(setup.cases)} can read it here")
    return RunningCases(setup, loader, running, frame_differences(first_batches, loader.pipeline.std))


def run_round(cases: RunningCases, case: str) -> dict[str, float]:
    """Time one round of one case. The read-ahead is full at its begin and at its end."""
    rounds, batches, device = cases.setup.rounds, cases.batches[case], cases.loader.device
    for _ in range(rounds.warmup):
        next(batches)
    _synchronize(device)
    before = Usage.now()
    for _ in range(rounds.timed):
        next(batches)
    _synchronize(device)
    after = Usage.now()
    wait_until_idle()
    clips, seconds = rounds.timed * cases.setup.batch_size, after.wall_s - before.wall_s
    cpu_s = after.tree_cpu_s - before.tree_cpu_s
    return {
        "clips_per_s": clips / seconds,
        "cpu_ms_per_clip": 1000 * cpu_s / clips,
        "cores_used": cpu_s / seconds,
        "cores_used_by_others": cpu_used_by_others(before, after),
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_memory(case: str, setup: LoaderSetup) -> dict[str, int]:
    """Return the peak memory in MiB of this process, which has done nothing else, and of its workers."""
    torch.set_num_threads(1)
    setup = replace(setup, num_rounds=1)
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder, contextlib.redirect_stdout(io.StringIO()):
        loader, drawn_clips = setup.draw(folder)
        gpu_before = gpu_memory_mib(loader.device)
        batches = open_batches(case, loader, drawn_clips, Path(folder))
        readings = []
        for number in range(setup.rounds.warmup):
            next(batches)
            if number % max(setup.num_workers, 1) == 0:  # reading the memory of all processes takes a while
                readings.append((process_tree_memory_mib(), gpu_memory_mib(loader.device) - gpu_before))
        memory, gpu_memory = (round(max(column)) for column in zip(*readings, strict=True))
        return {"memory_mib": memory, "gpu_mib": gpu_memory}
