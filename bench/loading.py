"""Measure clips/s of the whole loader beside torch DataLoaders with other decoders.

    python -m bench.loading [key=value ...] [--dry-run]

    folder=         folders of videos, or single videos, separated by commas (default: generated videos, see sets)
    sets=           which generated videos: h264_bframes,h264_gop250,h264_gop12,vp9_gop12,vp9_gop4 (default), any
                    CODEC_gopN, mixed (five sizes and three frame rates in one list), and any of them after
                    pipelines.prepare: h264_bframes_prepared
    sizes=340x256   their width and height; several separated by commas
    files=8 length=300       their number, and frames per file
    cases=          loaders: clipline,decord2,torchcodec,torchcodec_approx,video_reader_rs,pyav,spdl_window,
                    spdl_sample,torchcodec_cuda,pynvvideocodec,spdl_cuda,clipline_pyav,clipline_dali,dali_untrimmed,
                    dali_reader (default: all); also decord, if that is installed instead of decord2
    specs=16x4      frames x stride of the clips; several separated by commas
    image_size=224 batch_size=8 seed=0
    num_workers= dali_threads=      several separated by commas (default: the number of cores); the baselines have as
                    many workers
    prefetch=2 decoder=auto         as in the section data of a configuration
    cores=0         cores that everything together may use, 0: all
    device=auto     auto uses a GPU if there is one
    clips_per_round=0       clips timed per round and case (0: 2048 on a GPU, 128 without)
    rounds=7        rounds of every case
    memory=yes      measure the memory of each case too, each in a new process
    cache=PATH      folder of the generated videos
    out=PATH        the result (default bench/results/loading.json)

Every set, spec and number of workers and threads is a table of its own. A set and its prepared version share their
rounds, and Clipline on prepared files is also compared with the best baseline on the original files.

Every case delivers the same clips (files, frame numbers, crop boxes and flips, drawn by Clipline's source) as
normalized float32 tensors, on the same cores; their pixels are compared before anything is timed. The baselines decode
on the CPU, also on a machine with a GPU, except torchcodec_cuda, pynvvideocodec and spdl_cuda. Those of SPDL read in
threads, the others on a CPU in workers of a torch DataLoader. What is not installed is left out with a line.

All cases of a round run one after another in one process, and what they have read ahead is used up before the clock
starts. Speed-ups are ratios within a round. Memory is measured for the first set only: the peak of a new process that
reads only this case's clips, with its workers. The result is written after each table.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from bench.baselines.cases import BASELINES, CASES, DEFAULT_CASES, decoder_name
from bench.baselines.rounds import LoaderSetup, RunningCases, measure_memory, run_round, start_cases
from bench.harness.ffmpeg import restart_with_ffmpeg
from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_choices, check_minimum, run_bench
from bench.harness.videos import VideoSettings, describe_videos
from utils.device import choose_device
from utils.workers import worker_pool

PACKAGES = ("decord", "decord2", "torchcodec", "video_reader-rs", "spdl_io", "torchvision")


@dataclass(frozen=True)
class Settings(VideoSettings):
    """The settings of this benchmark; the module's help explains them."""

    cases: tuple[str, ...] = DEFAULT_CASES
    specs: tuple[str, ...] = ("16x4",)
    image_size: int = 224
    batch_size: int = 8
    num_workers: tuple[str, ...] = ()
    dali_threads: tuple[str, ...] = ()
    prefetch: int = 2
    decoder: str = "auto"
    cores: int = 0
    device: str = "auto"
    seed: int = 0
    clips_per_round: int = 0
    rounds: int = 7
    memory: bool = True
    out: str = "bench/results/loading.json"
    dry_run_args: ClassVar[str] = (
        "sets=h264_bframes,vp9_gop12 sizes=192x144 files=2 length=40 specs=4x2 image_size=32 batch_size=2 "
        "clips_per_round=4 rounds=1 dali_threads=1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, cases=CASES)
        check_minimum(self, image_size=1, batch_size=1, dali_threads=1, prefetch=1, rounds=1)
        check_minimum(self, cores=0, clips_per_round=0, num_workers=0, seed=0)
        for spec in self.specs:
            if not re.fullmatch(r"[1-9]\d*x\d+", spec):
                raise ValueError(f"specs={spec}: expected FRAMESxSTRIDE")


RoundResults = dict[str, list[dict[str, float]]]  # of each case, one entry per round


def measure_all(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield all tables so far, whenever one is finished."""
    cores = sorted(os.sched_getaffinity(0))[: settings.cores or None]
    os.sched_setaffinity(0, cores)  # inherited by every process that is started
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for setups in plan_tables(settings, len(cores)):
        tables = measure(setups)
        if settings.memory and (not results or tables[0]["name"] == results[0]["name"]):
            add_memory(tables[0], setups[0])
        for table in tables:
            print(format_table(table), flush=True)
        results += tables
        yield {"sets": results, "cores": len(cores)}


def plan_tables(settings: Settings, num_cores: int) -> Iterator[list[LoaderSetup]]:
    """Yield what is measured together: the sets of a group, for each spec and number of workers and threads."""
    device = choose_device(settings.device)
    choices = itertools.product(
        group_prepared(settings.find_videos()),
        settings.specs,
        settings.num_workers or (str(num_cores),),
        settings.dali_threads or (str(num_cores),),
    )
    for group, spec, num_workers, dali_threads in choices:
        num_frames, frame_stride = map(int, spec.split("x"))
        yield [
            LoaderSetup(
                name=name,
                paths=paths,
                cases=settings.cases,
                num_frames=num_frames,
                frame_stride=frame_stride,
                image_size=settings.image_size,
                batch_size=settings.batch_size,
                num_workers=int(num_workers),
                dali_threads=int(dali_threads),
                prefetch=settings.prefetch,
                decoder=settings.decoder,
                device=device,
                seed=settings.seed,
                num_rounds=settings.rounds,
                clips_per_round=settings.clips_per_round or (2048 if device.type == "cuda" else 128),
            )
            for name, paths in group.items()
        ]


def original_name(name: str) -> str:
    """Return the name of the set that a prepared one was made of; other names are returned unchanged."""
    return name.replace("_prepared", "")


def group_prepared(sets: Mapping[str, list[str]]) -> list[dict[str, list[str]]]:
    """Group each set with its prepared version; the sets of a group share their rounds."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name, paths in sets.items():
        groups.setdefault(original_name(name), {})[name] = paths
    return list(groups.values())


def measure(setups: Sequence[LoaderSetup]) -> list[dict[str, Any]]:
    """Start every case of a group of sets, compare their pixels, and run the rounds."""
    running = [start_cases(setup) for setup in setups]
    results: list[RoundResults] = [{case: [] for case in cases.batches} for cases in running]
    for number in range(setups[0].num_rounds):
        for cases, rounds_of_case in zip(running, results, strict=True):
            for case, rounds in rounds_of_case.items():
                rounds.append(run_round(cases, case))
            rates = "  ".join(f"{case} {rounds[-1]['clips_per_s']:.1f}" for case, rounds in rounds_of_case.items())
            print(f"{cases.setup.name} {cases.setup.spec} {number + 1}/{cases.setup.num_rounds}: {rates}", flush=True)
    rates_by_name = {
        setup.name: {case: [figures["clips_per_s"] for figures in rounds] for case, rounds in rounds_of_case.items()}
        for setup, rounds_of_case in zip(setups, results, strict=True)
    }
    return [
        make_table(cases, rounds_of_case, rates_by_name) for cases, rounds_of_case in zip(running, results, strict=True)
    ]


def make_table(
    cases: RunningCases, rounds_of_case: RoundResults, rates_by_name: Mapping[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Return the result of one set; `rates_by_name` has the clips/s of all sets of the group."""
    setup = cases.setup
    original = rates_by_name.get(original_name(setup.name), {}) if "_prepared" in setup.name else {}
    return {
        "name": setup.name,
        "spec": setup.spec,
        "num_workers": setup.num_workers,
        "dali_threads": setup.dali_threads,
        "files": describe_videos(list({info.path: info for info in cases.loader.infos}.values())),
        "decoder": decoder_name(cases.loader.source.decoders),
        "rounds": setup.num_rounds,
        "clips_per_round": setup.rounds.timed * setup.batch_size,
        "frame_differences": cases.frame_differences,
        "cases": {
            case: {key: summarize(done[key] for done in rounds) for key in rounds[0]}
            for case, rounds in rounds_of_case.items()
        },
        "speedups": speedups(rates_by_name[setup.name], original),
    }


def add_memory(table: dict[str, Any], setup: LoaderSetup) -> None:
    """Add the memory of each case to a table, measured in a new process each."""
    for case, figures in table["cases"].items():
        with worker_pool(1) as pool:
            figures |= pool.submit(measure_memory, case, setup).result()


def speedups(rates: Mapping[str, list[float]], original: Mapping[str, list[float]] | None = None) -> dict[str, Any]:
    """Return Clipline's clips/s divided by those of each other case, round by round.

    best_baseline is the fastest baseline of each round, best_baseline_unprepared the fastest one on the `original`
    files of a prepared set.
    """
    if "clipline" not in rates:
        return {}
    denominators = {
        "best_baseline": best_baseline(rates),
        "best_baseline_unprepared": best_baseline(original or {}),
        **{case: values for case, values in rates.items() if case != "clipline"},
    }
    return {
        name: summarize(rate / other for rate, other in zip(rates["clipline"], values, strict=True))
        for name, values in denominators.items()
        if values
    }


def best_baseline(rates: Mapping[str, list[float]]) -> list[float]:
    """Return the clips/s of the fastest baseline of each round."""
    present = [rates[case] for case in (*BASELINES, "dali_reader") if case in rates]
    return [max(values) for values in zip(*present, strict=True)]


def format_table(table: Mapping[str, Any]) -> str:
    """Format one set as text: one line per case, median [quartiles]."""
    files = table["files"]
    lines = [
        "",
        f"{table['name']}, {table['spec']} clips, {table['num_workers']} workers, {table['dali_threads']} threads: "
        f"{files['files']} files, {', '.join(files['codecs'])}, {', '.join(files['sizes'])}, "
        f"{files['mean_frames']} frames, {files['mean_keyframes']} key frames, {files['mean_kbit_per_s']} kbit/s; "
        f"decoder {table['decoder']}; {table['rounds']} rounds of {table['clips_per_round']} clips",
        f"{'case':18} {'clips/s':>22} {'CPU ms/clip':>22} {'clipline / case':>22} {'MiB':>6} {'pixels differ by':>16}",
    ]
    for case, figures in table["cases"].items():
        speedup, difference = table["speedups"].get(case), table["frame_differences"].get(case)
        lines.append(
            f"{case:18} {format_iqr(figures['clips_per_s'], 1):>22} {format_iqr(figures['cpu_ms_per_clip'], 1):>22} "
            f"{format_iqr(speedup, 2) if speedup else '':>22} {figures.get('memory_mib', ''):>6} "
            f"{format(difference['mean'], '.2f') + ' of 255' if difference else '':>16}"
        )
    for key in ("best_baseline", "best_baseline_unprepared"):
        if speedup := table["speedups"].get(key):
            lines.append(f"{key.replace('_', ' '):24} {'':16} {'':22} {format_iqr(speedup, 2):>22}")
    used = [value for figures in table["cases"].values() for value in figures["cores_used_by_others"]["samples"]]
    lines.append(f"CPU used by other processes meanwhile: {np.mean(used):.2f} cores on average")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("loading", __doc__, Settings, measure_all, argv, PACKAGES)


if __name__ == "__main__":
    restart_with_ffmpeg()
    sys.exit(main(sys.argv[1:]))
