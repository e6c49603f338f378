"""Clips a second of the whole loader, beside a torch DataLoader with decord and with torchcodec.

    python -m bench.loading [key=value ...] [--dry-run]

    folder      folders of videos, or one video, with commas (default: files of its own, of known structure, see sets)
    sets        which of its own files: h264_bframes,h264_gop250,h264_gop12,vp9_gop12,vp9_gop4 (default),
                any CODEC_gopN, and any of them as pipelines.prepare leaves it: h264_bframes_prepared
    sizes=340x256   their width and height; more with commas       files=8 length=300      how many, of how many frames
    cases       which loaders: clipline,decord,torchcodec,torchcodec_approx,torchcodec_cuda,pynvvideocodec,spdl,
                spdl_cuda,pyav,clipline_host,clipline_dali,dali_untrimmed,dali_reader
    specs=16x4  frames x stride; more with commas      size=224 batch=8 seed=0
    workers= threads=       more with commas (default: as many as cores); the peers have as many workers
    prefetch=2 decoder=auto             as data.*
    cores=0     cores that everything together may use, 0: all      device=auto
    clips=0     clips that are timed in one turn of one case (0: 2048 on a GPU, 128 without)
    repeats=7   turns of each case
    memory=1    ask for the memory of each case, too (0: no, which saves a fresh process for each)
    cache=PATH  where its own files are kept
    out=PATH    the result (default bench/results/decode.json)

Every set, spec and number of workers and threads is a table of its own; a set and what pipelines.prepare makes of it
take turns, and Clipline's rate on prepared files is set beside the best peer's on the files as downloaded, too. Every
case delivers the same clips (files, frame numbers, crop boxes, flips, drawn by Clipline's source) as normalised float32
tensors, on the same cores; the pictures are compared before the clock starts. The peers decode on the CPU, on a machine
with a GPU too, but for torchcodec_cuda, pynvvideocodec and spdl_cuda. The cases take turns in one process, and what
they read ahead is used up before their turn is timed. A ratio is taken within a round of turns. Memory is asked for the
first set alone: the most that a fresh process has, with its workers, which reads nothing but this case's clips. The
result is written whenever a table is finished.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from bench.baselines.cases import CASES, PEERS, batches_of, compare, decoder_name, draw, our_loader
from bench.baselines.loaders import Drawn
from bench.harness import videos
from bench.harness.runner import at_least, command, known, others, shown, spread
from bench.harness.system import Clock, gpu_mebibytes, own_mebibytes, settle
from pipelines.loader import VideoLoader
from utils.device import choose_device
from utils.workers import worker_pool


@dataclass(frozen=True)
class Settings(videos.Files):
    cases: tuple[str, ...] = CASES
    specs: tuple[str, ...] = ("16x4",)
    size: int = 224
    batch: int = 8
    workers: tuple[str, ...] = ()
    threads: tuple[str, ...] = ()
    prefetch: int = 2
    decoder: str = "auto"
    cores: int = 0
    device: str = "auto"
    seed: int = 0
    clips: int = 0
    repeats: int = 7
    memory: int = 1
    out: str = "bench/results/decode.json"
    toy: ClassVar[str] = "sets=h264_bframes,vp9_gop12 sizes=192x144 files=2 length=40 specs=4x2 size=32 batch=2 clips=4 repeats=1 threads=1"  # fmt: skip  # noqa: E501

    def __post_init__(self) -> None:
        super().__post_init__()
        known(self, cases=CASES)
        at_least(self, size=1, batch=1, threads=1, prefetch=1, repeats=1, cores=0, clips=0, workers=0, seed=0, memory=0)
        for word in self.specs:
            if not re.fullmatch(r"[1-9]\d*x\d+", word):
                raise ValueError(f"specs={word}: expected FRAMESxSTRIDE")


class Turns(NamedTuple):
    """How many batches a case delivers: one to compare, those of its turns, and what it reads ahead at the end."""

    warm: int  # more than anybody has read ahead when a turn begins
    timed: int
    repeats: int

    @property
    def all(self) -> int:
        return 1 + self.warm + self.repeats * (self.warm + self.timed) + self.warm


class Running(NamedTuple):
    """The cases that can run here, their workers started: the batches of each, and how its pictures differ."""

    loader: VideoLoader
    cases: dict[str, Iterator[torch.Tensor]]
    pictures: dict[str, dict[str, float]]


def measure_all(s: Settings) -> Iterator[dict[str, Any]]:
    """All tables so far, whenever one is finished."""
    cores = sorted(os.sched_getaffinity(0))[: s.cores or None]
    os.sched_setaffinity(0, cores)  # and so all that we start
    torch.set_num_threads(1)
    on_gpu = choose_device(s.device).type == "cuda"
    s = replace(
        s, workers=s.workers or (str(len(cores)),), threads=s.threads or (str(len(cores)),),
        clips=s.clips or (2048 if on_gpu else 128),
    )  # fmt: skip
    results: list[dict[str, Any]] = []
    for group in groups(s.find()):
        for spec, workers, threads in itertools.product(s.specs, map(int, s.workers), map(int, s.threads)):
            found = measure(group, spec, workers, threads, s)
            if s.memory and (not results or found[0]["name"] == results[0]["name"]):
                for case, figures in found[0]["cases"].items():
                    with worker_pool(1) as pool:
                        paths = group[found[0]["name"]]
                        figures |= pool.submit(memory, case, paths, spec, workers, threads, s).result()
            for result in found:
                print(table(result), flush=True)
            results += found
            yield {"sets": results, "cores": len(cores)}


def before_preparing(name: str) -> str:
    """The name of the set that a prepared one was made of; of others their own."""
    return name.replace("_prepared", "")


def groups(sets: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """Sets that take turns with each other: files as they were, and what pipelines.prepare makes of them."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, paths in sets.items():
        found.setdefault(before_preparing(name), {})[name] = paths
    return list(found.values())


def measure(group: dict[str, list[str]], spec: str, workers: int, threads: int, s: Settings) -> list[dict[str, Any]]:
    """Sets of files: start every case, compare the pictures, take turns."""
    running = {name: start(name, paths, spec, workers, threads, s) for name, paths in group.items()}
    turns = turns_of(workers, s)
    found: dict[str, dict[str, list[dict[str, float]]]]
    found = {name: {case: [] for case in r.cases} for name, r in running.items()}
    for repeat in range(s.repeats):
        for name, r in running.items():
            for case, batches in r.cases.items():
                found[name][case].append(turn(batches, turns, s.batch, r.loader.device))
            rates = "  ".join(f"{case} {done[-1]['clips_per_s']:.1f}" for case, done in found[name].items())
            print(f"{name} {spec} {repeat + 1}/{s.repeats}: {rates}", flush=True)
    rates_of = {
        name: {case: [t["clips_per_s"] for t in done] for case, done in cases.items()} for name, cases in found.items()
    }
    results = []
    for name, r in running.items():
        source = r.loader.source
        results.append({
            "name": name, "spec": spec, "workers": workers, "threads": threads,
            "files": videos.describe(list({row.path: row for row in source.rows}.values())),
            "decoder": decoder_name(source.decoders), "n": s.repeats, "clips_a_turn": turns.timed * s.batch,
            "pictures": r.pictures,
            "cases": {case: {key: spread(t[key] for t in done) for key in done[0]}
                      for case, done in found[name].items()},
            "ratios": ratios(rates_of[name], rates_of.get(before_preparing(name), {}) if "_prepared" in name else {}),
        })  # fmt: skip
    return results


def turns_of(workers: int, s: Settings) -> Turns:
    return Turns(s.prefetch * max(workers, 2) + 2, max(s.clips // s.batch, 1), s.repeats)


def drawn_clips(
    paths: Sequence[str], spec: str, workers: int, threads: int, s: Settings, folder: str
) -> tuple[VideoLoader, list[Drawn]]:
    """Clipline's loader, and the clips of all turns as its source draws them."""
    count = turns_of(workers, s).all * s.batch
    frames, stride = map(int, spec.split("x"))
    loader = our_loader(
        paths, count, Path(folder), choose_device(s.device), seed=s.seed, frames=frames, stride=stride, size=s.size,
        batch=s.batch, workers=workers, threads=threads, prefetch=s.prefetch, decoder=s.decoder,
    )  # fmt: skip
    return loader, draw(loader, count)


def start(name: str, paths: Sequence[str], spec: str, workers: int, threads: int, s: Settings) -> Running:
    """One set of files: the cases with their workers, a first batch of each compared."""
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        loader, drawn = drawn_clips(paths, spec, workers, threads, s, folder)
        cases, first = {}, {}
        for case in s.cases:
            try:
                batches = batches_of(case, loader, drawn, workers, s.prefetch, Path(folder))
                first[case] = next(batches).cpu()
            except RuntimeError as error:
                print(f"left out: {name}: {case}: {str(error).strip().splitlines()[-1]}", flush=True)
                continue
            for _ in range(turns_of(workers, s).warm):
                next(batches)
            cases[case] = batches
            settle()
    if not cases:
        raise ValueError(f"{name}: none of {', '.join(s.cases)} can read it here")
    return Running(loader, cases, compare(first, loader.graph.std))


def memory(case: str, paths: Sequence[str], spec: str, workers: int, threads: int, s: Settings) -> dict[str, int]:
    """The most of this process, which has done nothing else, and of those it starts, while a case reads."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder, contextlib.redirect_stdout(io.StringIO()):
        loader, drawn = drawn_clips(paths, spec, workers, threads, replace(s, repeats=1), folder)
        before = gpu_mebibytes(loader.device)
        batches = batches_of(case, loader, drawn, workers, s.prefetch, Path(folder))
        seen = []
        for number in range(turns_of(workers, s).warm):
            next(batches)
            if number % max(workers, 1) == 0:  # to ask all processes takes a while
                seen.append((own_mebibytes(), gpu_mebibytes(loader.device) - before))
        own, gpu = (round(max(column)) for column in zip(*seen, strict=True))
        return {"memory_mib": own, "gpu_mib": gpu}


def turn(batches: Iterator[torch.Tensor], turns: Turns, batch: int, device: torch.device) -> dict[str, float]:
    """One turn of one case, from a full read-ahead to a full read-ahead."""
    for _ in range(turns.warm):
        next(batches)
    done = torch.cuda.synchronize if device.type == "cuda" else bool
    done()
    before = Clock.now()
    for _ in range(turns.timed):
        next(batches)
    done()
    after = Clock.now()
    settle()
    clips, wall, own = turns.timed * batch, after.wall - before.wall, after.own - before.own
    return {
        "clips_per_s": clips / wall,
        "cpu_ms_per_clip": 1000 * own / clips,
        "cores_used": own / wall,
        "cores_used_by_others": others(before, after),
    }


def ratios(rates: dict[str, list[float]], before: dict[str, list[float]] | None = None) -> dict[str, dict[str, Any]]:
    """Clipline's rate through another's, round by round; best_peer is the fastest of PEERS and dali_reader, and
    best_peer_before the fastest on the files `before` they were prepared."""
    if "clipline" not in rates:
        return {}
    rivals = {"best_peer": best_peer(rates), "best_peer_before": best_peer(before or {})}
    rivals |= {case: rate for case, rate in rates.items() if case != "clipline"}
    return {
        case: spread(ours / theirs for ours, theirs in zip(rates["clipline"], rate, strict=True))
        for case, rate in rivals.items() if rate
    }  # fmt: skip


def best_peer(rates: dict[str, list[float]]) -> list[float]:
    present = [rates[case] for case in (*PEERS, "dali_reader") if case in rates]
    return [max(turn) for turn in zip(*present, strict=True)]


def table(measured: dict[str, Any]) -> str:
    """One set as text: a line a case, median [quartiles]."""
    f = measured["files"]
    lines = [
        "",
        f"{measured['name']}, {measured['spec']} clips, {measured['workers']} workers, {measured['threads']} threads: "
        f"{f['files']} files, "
        f"{', '.join(f['codecs'])}, {', '.join(f['sizes'])}, {f['mean_frames']} frames, "
        f"{f['mean_keyframes']} key frames, {f['mean_kbit_per_s']} kbit/s; decoder {measured['decoder']}; "
        f"{measured['n']} turns of {measured['clips_a_turn']} clips",
        f"{'case':18} {'clips/s':>22} {'CPU ms/clip':>22} {'clipline / it':>22} {'MiB':>6} {'pictures differ':>16}",
    ]
    for case, figures in measured["cases"].items():
        ratio, apart = measured["ratios"].get(case), measured["pictures"].get(case)
        lines.append(
            f"{case:18} {shown(figures['clips_per_s'], 1):>22} {shown(figures['cpu_ms_per_clip'], 1):>22} "
            f"{shown(ratio, 2) if ratio else '':>22} {figures.get('memory_mib', ''):>6} "
            f"{format(apart['mean'], '.2f') + ' of 255' if apart else '':>16}"
        )
    for key in ("best_peer", "best_peer_before"):
        if best := measured["ratios"].get(key):
            lines.append(f"{key.replace('_', ' '):18} {'':22} {'':22} {shown(best, 2):>22}")
    beside = [x for figures in measured["cases"].values() for x in figures["cores_used_by_others"]["all"]]
    lines.append(f"used by other processes meanwhile: {np.mean(beside):.2f} cores on average")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("decode", __doc__, Settings, measure_all, arguments, ("decord", "torchcodec", "torchvision"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
