"""Clips a second of the whole loader, beside a torch DataLoader with decord and with torchcodec.

    python -m bench.decode [key=value ...] [--dry-run]

    folder      folders of videos, or one video, with commas (default: files of its own, of known structure, see sets)
    sets        which of its own files: h264_bframes,h264_gop250,h264_gop12,vp9_gop12,vp9_gop4 (default),
                any CODEC_gopN, and any of them as pipelines.prepare leaves it: h264_bframes_prepared
    sizes=340x256   their width and height; more with commas       files=8 length=300      how many, of how many frames
    cases       which loaders: clipline,decord,torchcodec,torchcodec_approx,pyav,clipline_host,clipline_dali,
                dali_untrimmed,dali_reader
    specs=16x4  frames x stride; more with commas      size=224 batch=8 seed=0
    workers=2 threads=2     more with commas; the peers have as many workers      prefetch=2 decoder=auto  as data.*
    cores=2     cores that everything together may use              device=auto
    clips=128   clips that are timed in one turn of one case        repeats=7   turns of each case
    cache=PATH  where its own files are kept
    out=PATH    the result (default bench/results/decode.json)

Every set, spec and number of workers and threads is a table of its own. Every case delivers the same clips (files,
frame numbers, crop boxes, flips, drawn by Clipline's source) as normalised float32 tensors, on the same cores; the
pictures are compared before the clock starts. The cases take turns in one process, and what they read ahead is used up
before their turn is timed. A ratio is taken within a round of turns. Memory is the most that a case added, seen after
each of its first batches.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from bench import files, peers
from bench.common import at_least, command, known, shown, spread
from bench.loaders import dali_reader, draw, our_loader, variant
from bench.machine import Clock, gpu_mebibytes, own_mebibytes, settle
from configs.device import choose_device
from pipelines.loader import VideoLoader

PEERS = ("decord", "torchcodec", "torchcodec_approx")  # and dali_reader: what a ratio is taken to; pyav is naive
OURS = {"clipline_host": (True, True), "clipline_dali": (False, True), "dali_untrimmed": (False, False)}
CASES = ("clipline", *PEERS, "pyav", *OURS, "dali_reader")


@dataclass(frozen=True)
class Settings(files.Files):
    cases: tuple[str, ...] = CASES
    specs: tuple[str, ...] = ("16x4",)
    size: int = 224
    batch: int = 8
    workers: tuple[str, ...] = ("2",)
    threads: tuple[str, ...] = ("2",)
    prefetch: int = 2
    decoder: str = "auto"
    cores: int = 2
    device: str = "auto"
    seed: int = 0
    clips: int = 128
    repeats: int = 7
    out: str = "bench/results/decode.json"
    toy: ClassVar[str] = "sets=h264_bframes,vp9_gop12 sizes=64x48 files=2 length=40 specs=4x2 size=32 batch=2 clips=4 repeats=1 threads=1"  # fmt: skip  # noqa: E501

    def __post_init__(self) -> None:
        super().__post_init__()
        known(self, cases=CASES)
        at_least(self, size=1, batch=1, threads=1, prefetch=1, cores=1, clips=1, repeats=1, workers=0, seed=0)
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


def measure_all(s: Settings) -> dict[str, Any]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: s.cores])  # and so all that we start
    torch.set_num_threads(1)
    results = []
    for name, paths in s.find().items():
        for spec in s.specs:
            for workers, threads in itertools.product(map(int, s.workers), map(int, s.threads)):
                results.append(measure(name, paths, spec, workers, threads, s))
                print(table(results[-1]), flush=True)
    return {"sets": results}


def measure(name: str, paths: Sequence[str], spec: str, workers: int, threads: int, s: Settings) -> dict[str, Any]:
    """One set of files: start every case, compare the pictures, take turns."""
    turns = Turns(s.prefetch * max(workers, 2) + 2, max(s.clips // s.batch, 1), s.repeats)
    frames, stride = map(int, spec.split("x"))
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        loader = our_loader(
            paths, turns.all * s.batch, Path(folder), choose_device(s.device), seed=s.seed, frames=frames,
            stride=stride, size=s.size, batch=s.batch, workers=workers, threads=threads, prefetch=s.prefetch,
            decoder=s.decoder,
        )  # fmt: skip
        running, first, memory = start(loader, turns, workers, s, Path(folder))
        pictures = compare(first, loader.graph.std)
        del first
        found: dict[str, list[dict[str, float]]] = {case: [] for case in running}
        for repeat in range(s.repeats):
            for case, batches in running.items():
                found[case].append(turn(batches, turns, s.batch))
            rates = "  ".join(f"{case} {found[case][-1]['clips_per_s']:.1f}" for case in running)
            print(f"{name} {spec} {repeat + 1}/{s.repeats}: {rates}", flush=True)
    rows = {row.path: row for row in loader.source.rows}
    return {
        "name": name, "spec": spec, "workers": workers, "threads": threads,
        "files": files.describe(list(rows.values())),
        "decoder": "host" if loader.source.host else "dali", "n": s.repeats, "clips_a_turn": turns.timed * s.batch,
        "pictures": pictures,
        "cases": {case: {key: spread(t[key] for t in found[case]) for key in found[case][0]}
                  | memory[case] for case in found},
        "ratios": ratios({case: [t["clips_per_s"] for t in found[case]] for case in found}),
    }  # fmt: skip


def start(
    loader: VideoLoader, turns: Turns, workers: int, s: Settings, folder: Path
) -> tuple[dict[str, Iterator[torch.Tensor]], dict[str, torch.Tensor], dict[str, dict[str, int]]]:
    """The cases that can run here, each with its workers started; the first batch and the memory of each."""
    drawn = draw(loader, turns.all * s.batch)
    running, first, memory, gpu = {}, {}, {}, {}
    for case in s.cases:
        before = own_mebibytes(), gpu_mebibytes(loader.device)
        batches = _batches(case, loader, drawn, workers, s, folder)
        if isinstance(batches, str):
            print(f"left out: {case}: {batches}", flush=True)
        elif batches:
            try:
                first[case] = next(batches).cpu()
                memory[case] = max(own_mebibytes() for _ in range(turns.warm) if next(batches) is not None) - before[0]
                gpu[case] = gpu_mebibytes(loader.device) - before[1]
            except RuntimeError as error:
                print(f"left out: {case}: {str(error).strip().splitlines()[-1]}", flush=True)
                continue
            running[case] = batches
            settle()
    return running, first, {case: {"memory_mib": round(memory[case]), "gpu_mib": round(gpu[case])} for case in running}


def _batches(
    case: str, loader: VideoLoader, drawn: Sequence[peers.Drawn], workers: int, s: Settings, folder: Path
) -> Iterator[torch.Tensor] | str | None:
    """The clips of a case; None if it would be another one again; or why it cannot be had."""
    if case == "clipline":
        return (batch.video for batch in loader)
    if case in OURS:  # what else could have been chosen
        if OURS[case] == (loader.source.host, loader.source.trimmed):
            return None
        other = variant(loader, *OURS[case])
        return (batch.video for batch in other) if other else None
    if case == "dali_reader":
        return dali_reader(loader, drawn, folder) if variant(loader, False, True) else None
    if reason := peers.missing(case, drawn[0].path):
        return reason
    clips = peers.Clips(case, drawn, s.size, loader.graph.mean, loader.graph.std)
    pairs = peers.batches(clips, s.batch, workers, s.prefetch, pin=loader.device.type == "cuda")
    return (video.to(loader.device, non_blocking=True) for video, _ in pairs)


def compare(first: dict[str, torch.Tensor], std: Sequence[float]) -> dict[str, dict[str, float]]:
    """How far the first batches are from the first case's, in grey levels of 255: mean, and mean of the worst clip."""
    (reference, theirs), *others = first.items()
    levels = 255 * torch.tensor(std).reshape(3, 1, 1, 1)
    differences = {case: ((batch - theirs).abs() * levels).mean((1, 2, 3, 4)) for case, batch in others}
    return {
        case: {"mean": round(d.mean().item(), 3), "worst_clip": round(d.max().item(), 3), "to": reference}
        for case, d in differences.items()
    }


def turn(batches: Iterator[torch.Tensor], turns: Turns, batch: int) -> dict[str, float]:
    """One turn of one case, from a full read-ahead to a full read-ahead."""
    for _ in range(turns.warm):
        next(batches)
    before = Clock.now()
    for _ in range(turns.timed):
        last = next(batches)
    if last.is_cuda:
        torch.cuda.synchronize()
    after = Clock.now()
    settle()
    clips, wall, own = turns.timed * batch, after.wall - before.wall, after.own - before.own
    return {
        "clips_per_s": clips / wall,
        "cpu_ms_per_clip": 1000 * own / clips,
        "cores_used": own / wall,
        "cores_used_by_others": max(after.busy - before.busy - own, 0) / wall,
    }


def ratios(rates: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Clipline's rate through another's, round by round; best_peer is the fastest of PEERS and dali_reader."""
    if "clipline" not in rates:
        return {}
    others = {case: rate for case, rate in rates.items() if case != "clipline"}
    present = [others[case] for case in (*PEERS, "dali_reader") if case in others]
    if present:
        others = {"best_peer": [max(turn) for turn in zip(*present, strict=True)]} | others
    return {
        case: spread(ours / theirs for ours, theirs in zip(rates["clipline"], rate, strict=True))
        for case, rate in others.items()
    }


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
            f"{shown(ratio, 2) if ratio else '':>22} {figures['memory_mib']:>6} "
            f"{format(apart['mean'], '.2f') + ' of 255' if apart else '':>16}"
        )
    if best := measured["ratios"].get("best_peer"):
        lines.append(f"{'best peer':18} {'':22} {'':22} {shown(best, 2):>22}")
    others = [x for figures in measured["cases"].values() for x in figures["cores_used_by_others"]["all"]]
    lines.append(f"used by other processes meanwhile: {np.mean(others):.2f} cores on average")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("decode", __doc__, Settings, measure_all, arguments, ("decord", "torchcodec", "torchvision"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
