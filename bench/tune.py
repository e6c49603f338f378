"""Find the fastest settings of the loader for your videos on this machine, and what limits a run.

    python -m bench.tune CONFIG [section.key=value ...] [key=value ...]
    python -m bench.tune --dry-run

    CONFIG          a recipe (YAML), a list as data.train takes it, a folder of videos, or a video
    section.key=    as for train.py; data.decoder, pyav_share, num_workers, dali_threads and prefetch stay as given here
    seconds=120     for everything but reading the list, compiling the network and the sweep
    step=yes        time the training step alone, too; only of a recipe
    prepare=yes     prepare a few videos in a temporary folder, and time those
    sweep=no        measure every candidate afterwards, and compare the answer with the best of them
    sweep_rounds=3  of every candidate; the best of them and the answer then take turns seven times
    out=PATH        also write the result as JSON

Candidates are decoder (or share of both), workers, DALI threads and prefetch. Each is a new loader of a sample of the
videos, from a warm page cache, whose clips are those of training; what it reads ahead at its start is not timed. The
answer is what to add to the command line of train.py, or data.tune=yes, which searches in the same way at the start of
a run. Neither changes a clip of the stream; only a decoder rounds pixels in its own way.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.harness.limits import (
    measure_reading,
    measure_step,
    measure_workers,
    prepare_sample,
)
from bench.harness.result_file import result_metadata, round_sig, summarize, write_result
from bench.harness.system import Usage, cpu_used_by_others
from bench.harness.tune_report import find_limit, format_answer, format_sweep, format_trials
from bench.harness.videos import describe_videos, find_in_folder, generate_videos
from configs import loading
from configs.schema import Config
from pipelines.data.dataset import Dataset, load_dataset
from pipelines.storage import VIDEO_SUFFIXES
from pipelines.tuning.machine import KEYS
from pipelines.tuning.search import Candidate, Search
from pipelines.tuning.trials import Sample, Trials, draw_sample, repeat_to
from pipelines.tuning.tune import Outcome, find_best, read_training_list
from utils.cli import parse_args, run_command
from utils.device import choose_device, choose_dtype, clip_dtype
from utils.distributed import World
from utils.files import temporary_folder

# What each part may use of the time. Starting and ending loaders takes the rest.
SEARCH, WORKERS, READING, PREPARING, STEP = 0.55, 0.03, 0.02, 0.1, 0.1
DUEL = 7  # turns of the answer and the best of a sweep
DRY_RUN = (
    "data.num_frames=4 data.frame_stride=2 data.image_size=32 data.batch_size=2 data.num_workers=0 run.device=cpu "
    "model.name=vivit_tiny run.cpu_threads=1 seconds=4 sweep=yes sweep_rounds=1"
)


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    seconds: int = 120
    step: bool = True
    prepare: bool = True
    sweep: bool = False
    sweep_rounds: int = 3
    out: str = ""

    def __post_init__(self) -> None:
        for key in ("seconds", "sweep_rounds"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: expected a whole number of at least 1")


@dataclass(frozen=True)
class Subject:
    """Hold what is tuned: a configuration, and the videos that it trains on."""

    name: str
    cfg: Config
    dataset: Dataset
    fixed: frozenset[str]
    has_network: bool


def read_subject(source: str, overrides: Sequence[str]) -> Subject:
    """Read a recipe, a list, a folder of videos or a video. Raises ValueError as load_config() and load_dataset()."""
    is_recipe = source.endswith((".yaml", ".yml"))
    cfg = loading.load_config(source if is_recipe else None, overrides)
    path = Path(source)
    if is_recipe:
        if not cfg.data.train:
            raise ValueError("data.train: expected a training list, or a folder of videos")
        dataset = read_training_list(cfg.data)
    elif path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir() and _has_videos(path):
        dataset = load_dataset([(video, 0) for video in find_in_folder(source)])
    else:
        cfg = loading.replace_values(cfg, "data", train=source)
        dataset = read_training_list(cfg.data)
    given = {key.removeprefix("data.") for key in loading.override_keys(overrides)}
    chosen = {"decoder", "pyav_share"} & cfg.data.model_fields_set
    return Subject(source, cfg, dataset, frozenset((given | chosen) & set(KEYS)), is_recipe)


def _has_videos(folder: Path) -> bool:
    return any(file.suffix.lower() in VIDEO_SUFFIXES for file in folder.iterdir())


def measure(subject: Subject, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the result so far, whenever a part is measured."""
    cfg, seconds = subject.cfg, settings.seconds
    device = choose_device(cfg.run.device)
    dtype = clip_dtype(choose_dtype(cfg.run.precision, device))
    sample = draw_sample(subject.dataset, cfg.run.seed, whole_index=False)
    if not sample.infos:
        raise ValueError(f"{subject.name}: none of the videos that were looked at can be read")
    needed = cfg.data.batch_size // cfg.data.aug_repeats
    if len(sample.infos) < needed:
        print(f"{len(sample.infos)} videos are fewer than the {needed} of a batch: they are repeated to measure anyway")
    print(describe_subject(subject, sample, device), flush=True)
    trials = Trials(repeat_to(sample, needed), cfg.data, device, dtype, cfg.run.seed, World(), max_seconds=seconds / 12)
    outcome = find_best(trials, subject.fixed, SEARCH * seconds)
    print(format_trials(outcome), flush=True)
    result: dict[str, Any] = {
        "name": Path(subject.name).stem,
        "files": describe_videos(sample.infos),
        "spec": f"{cfg.data.num_frames}x{cfg.data.frame_stride}",
        "batch_size": cfg.data.batch_size,
        "device": str(device),
        "configured": outcome.space.start._asdict(),
        "answer": outcome.best._asdict(),
        "clips_per_s": {
            "configured": summarize_trials(outcome, outcome.space.start),
            "answer": summarize_trials(outcome, outcome.best),
        },
        "speedup": round_sig(outcome.speedup),
        "num_candidates": len(outcome.space.all_candidates()),
        "trials": [[*candidate, *map(round_sig, rates)] for candidate, rates in outcome.run.rates.items()],
    }
    yield result
    limits = measure_limits(subject, settings, outcome)
    result["limits"] = limits | {"limit": find_limit(limits)}
    print(format_answer(result, cfg.data.train or "LIST", cfg.data.image_size), flush=True)
    yield result
    if settings.sweep:
        result["sweep"] = sweep(outcome, settings)
        print(format_sweep(result["sweep"]), flush=True)
        yield result


def summarize_trials(outcome: Outcome, candidate: Candidate) -> dict[str, Any]:
    """Return median and quartiles of a candidate's clips per second."""
    return summarize(outcome.run.rates.get(candidate) or [0.0])


def measure_limits(subject: Subject, settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """Measure in clips per second what may limit the run beside the loader, and the gain of prepared files."""
    trials, best, seconds = outcome.trials, outcome.best, settings.seconds
    with trials.open(best) as loader:
        workers = measure_workers(loader, best.num_workers, WORKERS * seconds)
        reading = measure_reading(loader.source, best.num_workers, READING * seconds)
        uses_dali = loader.source.decoders.uses_dali
    limits: dict[str, Any] = {
        "loader": round_sig(outcome.clips_per_s),
        "workers": round_sig(workers),
        "reading": round_sig(reading.clips_per_s),
        "reading_is_cold": reading.is_cold,
        "bytes_per_clip": round(reading.bytes_per_clip),
        "uses_dali": uses_dali,
    }
    if settings.prepare:
        limits |= measure_prepared(trials, best, PREPARING * seconds)
    if settings.step and subject.has_network:
        limits |= time_step(subject, trials.device, STEP * seconds)
    elif settings.step:
        print("the training step is left out: a list has no network; give a recipe", flush=True)
    return limits


def measure_prepared(trials: Trials, best: Candidate, seconds: float) -> dict[str, Any]:
    """Prepare some videos and return how many times faster they are than their originals, in turns."""
    data = trials.data
    with temporary_folder("clipline-tune-") as folder:
        samples = prepare_sample(trials.sample, Path(folder), data.image_size, seconds)
        if not samples[1].infos:
            print("prepared files are left out: not one was ready in time; give more seconds", flush=True)
            return {}
        needed = max(data.batch_size // data.aug_repeats, 32)
        before, after = (trials.with_sample(repeat_to(sample, needed)) for sample in samples)
        clips, end = 4 * data.batch_size, time.monotonic() + 1.5 * seconds
        ratios: list[float] = []
        while not ratios or len(ratios) < 3 and time.monotonic() < end:
            rates = [part(best, clips) for part in (before, after)]
            if not all(rates):
                reason = next(iter((before.failures | after.failures).values()))
                print(f"prepared files are left out: {reason}", flush=True)
                return {}
            ratios.append(rates[1] / rates[0])
            clips = max(clips, round(max(rates) * seconds / 12))
    return {"prepared_speedup": summarize(ratios), "prepared_files": len(samples[1].infos)}


def time_step(subject: Subject, device: torch.device, seconds: float) -> dict[str, Any]:
    """Return the clips per second of the training step; nothing, with a line, if the memory is too small for it."""
    try:
        speed = measure_step(subject.cfg, max(len(subject.dataset.classes), 2), device, seconds)
    except torch.OutOfMemoryError:
        print(f"the training step is left out: {device} has too little memory for data.batch_size", flush=True)
        return {}
    return {"step": round_sig(speed.clips_per_s), "step_clips": speed.clips}


def sweep(outcome: Outcome, settings: Settings) -> dict[str, Any]:
    """Measure every candidate in turns, then the answer and the fastest one alone: how near is the answer to it?"""
    clips = outcome.run.clips_per_trial()
    candidates = outcome.space.all_candidates()
    run = Search(lambda candidate, _: outcome.trials(candidate, clips), float("inf"))
    for number in range(settings.sweep_rounds):
        begin = time.monotonic()
        for candidate in candidates:
            if number == 0 or run.median(candidate):
                run.try_once(candidate)
        print(f"sweep {number + 1}/{settings.sweep_rounds}: {time.monotonic() - begin:.0f} s", flush=True)
    ranked = sorted((c for c in candidates if run.median(c)), key=run.median, reverse=True)
    fastest = ranked[0]
    ratios = [1.0]
    if fastest != outcome.best:
        ratios = [outcome.trials(outcome.best, 2 * clips) / outcome.trials(fastest, 2 * clips) for _ in range(DUEL)]
    return {
        "num_candidates": len(candidates),
        "rounds": settings.sweep_rounds,
        "fastest": fastest._asdict(),
        "answer_over_fastest_in_sweep": round_sig(run.median(outcome.best) / run.median(fastest)),
        "answer_over_fastest": summarize(ratios),
        "slowest_over_fastest": round_sig(run.median(ranked[-1]) / run.median(fastest)),
        "trials": [[*candidate, *map(round_sig, rates)] for candidate, rates in run.rates.items()],
    }


def describe_subject(subject: Subject, sample: Sample, device: torch.device) -> str:
    """Describe what is measured in one line."""
    data, files = subject.cfg.data, describe_videos(sample.infos)
    stays = f"; {', '.join(sorted(subject.fixed))} stay as they are" if subject.fixed else ""
    return (
        f"{subject.name}: {len(sample.infos)} of {len(subject.dataset.videos)} videos ({', '.join(files['codecs'])}, "
        f"{', '.join(files['sizes'][:3])}), {data.num_frames}x{data.frame_stride} clips of {data.image_size} pixels, "
        f"batches of {data.batch_size}, {device}{stays}"
    )


def tune_command(argv: Sequence[str]) -> int:
    """Measure what the arguments ask for."""
    arguments = [argument.removeprefix("--") for argument in argv if argument != "--dry-run"]
    dry_run = len(arguments) < len(argv)
    with temporary_folder("clipline-dry-run-") as folder:
        if dry_run:
            generate_videos(Path(folder), "h264_gop12", 3, width=64, height=48, length=20)
            arguments = [f"{folder}/64x48_20/h264_gop12", *DRY_RUN.split(), *arguments]
        overrides = [argument for argument in arguments[1:] if "." in argument.partition("=")[0]]
        _, settings = parse_args(Settings, [argument for argument in arguments[1:] if argument not in overrides])
        subject = read_subject(arguments[0], overrides)
        if dry_run:
            subject = replace(subject, has_network=True)
        _measure_and_write(subject, settings)
    if dry_run:
        print("dry run: everything runs; the figures mean nothing")
    return 0


def _measure_and_write(subject: Subject, settings: Settings) -> None:
    metadata, before = result_metadata("tune", settings, ()), Usage.now()
    for result in measure(subject, settings):
        if settings.out:
            used = {"cores_used_by_others": cpu_used_by_others(before, Usage.now())}
            Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
            write_result(Path(settings.out), metadata | used | {"sets": [result]})
    if settings.out:
        print(f"written: {settings.out}")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_command("bench.tune", __doc__ or "", tune_command, argv, errors=(ValueError, OSError))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
