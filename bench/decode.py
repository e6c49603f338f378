"""Clips a second of the whole loader, beside a torch DataLoader with decord and with torchcodec.

    python -m bench.decode [folder=PATH] [key=value ...]

    folder      any folder of videos, or one video (default: files of its own, of known structure, see sets)
    sets        which of its own files: h264_bframes,h264_gop250,h264_gop12,vp9_gop12,vp9_gop4
    cases       which loaders: clipline,decord,torchcodec,torchcodec_approx,pyav,clipline_host,clipline_dali,
                dali_untrimmed
    frames=16 stride=4 size=224 batch=8 seed=0
    workers=2 threads=2 prefetch=2 decoder=auto     as data.* of a configuration; the peers have the same workers
    cores=2     cores that everything together may use
    clips=128   clips that are timed in one turn of one case      repeats=7   turns of each case
    files=8 width=340 height=256 length=300    its own files      cache=PATH  where they are kept
    out=PATH    the result (default bench/results/decode.json)

Every case delivers the same clips (files, frame numbers, crop boxes, flips, drawn by Clipline's source) as normalised
float32 tensors, on the same cores; the pictures are compared before the clock starts. The cases take turns in one
process, and what they read ahead is used up before their turn is timed. A ratio is taken within a round of turns.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import files, peers
from bench.common import head, shown, spread, write
from bench.machine import Clock, settle
from configs import schema
from configs.words import parse
from pipelines.loader import DALI_CODECS, VideoLoader, build_loader
from pipelines.world import World

PEERS = ("decord", "torchcodec", "torchcodec_approx")  # what a ratio is taken to; pyav is the naive loader
CASES = ("clipline", *PEERS, "pyav", "clipline_host", "clipline_dali", "dali_untrimmed")


@dataclass(frozen=True)
class Settings:
    folder: str = ""
    sets: tuple[str, ...] = tuple(files.KINDS)
    cases: tuple[str, ...] = CASES
    frames: int = 16
    stride: int = 4
    size: int = 224
    batch: int = 8
    workers: int = 2
    threads: int = 2
    prefetch: int = 2
    decoder: str = "auto"
    cores: int = 2
    seed: int = 0
    clips: int = 128
    repeats: int = 7
    files: int = 8
    width: int = 340
    height: int = 256
    length: int = 300
    cache: str = str(Path(tempfile.gettempdir()) / "clipline-bench")
    out: str = "bench/results/decode.json"

    def __post_init__(self) -> None:
        for key, known in {"sets": tuple(files.KINDS), "cases": CASES}.items():
            for word in getattr(self, key):
                if word not in known:
                    raise ValueError(f"{key}={word}: expected some of {','.join(known)}")
        for f in dataclasses.fields(self):
            value, least = getattr(self, f.name), 0 if f.name in ("seed", "stride", "workers") else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{f.name}={value}: expected a whole number of at least {least}")

    @property
    def warm_batches(self) -> int:
        """More than anybody has read ahead when a turn begins."""
        return self.prefetch * max(self.workers, 2) + 2

    @property
    def timed_batches(self) -> int:
        return max(self.clips // self.batch, 1)

    @property
    def steps(self) -> int:
        """Batches that each case delivers: one to compare, all turns, and what is read ahead at the end."""
        return 1 + self.repeats * (self.warm_batches + self.timed_batches) + self.warm_batches


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        _, settings = parse(Settings, arguments)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.cores])  # and so all that we start
        torch.set_num_threads(1)
        if settings.folder:
            sets = {Path(settings.folder).stem: files.find(settings.folder)}
        else:
            s = settings
            sets = files.generate(Path(s.cache), list(s.sets), s.files, s.width, s.height, s.length)
        result = head("decode", settings, ("decord", "torchcodec", "torchvision")) | {"sets": []}
        for name, paths in sets.items():
            result["sets"].append(measure(name, paths, settings))
            print(table(result["sets"][-1]), flush=True)
        write(result, settings.out)
    except (ValueError, OSError) as error:
        print(f"bench.decode: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"written: {settings.out}")
    return 0


def measure(name: str, paths: Sequence[str], settings: Settings) -> dict[str, Any]:
    """One set of files: start every case, compare the pictures, take turns."""
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        loader = our_loader(paths, settings, Path(folder))
        drawn = draw(loader, settings)
        running, first = start(loader, drawn, paths, settings)
        pictures = compare(first, loader.graph.std)
        del first
        turns: dict[str, list[dict[str, float]]] = {case: [] for case in running}
        for repeat in range(settings.repeats):
            for case, batches in running.items():
                turns[case].append(turn(batches, settings))
            shown = "  ".join(f"{case} {turns[case][-1]['clips_per_s']:.1f}" for case in running)
            print(f"{name} {repeat + 1}/{settings.repeats}: {shown}", flush=True)
    rows = {row.path: row for row in loader.source.rows}
    return {
        "name": name,
        "files": files.describe(list(rows.values())),
        "decoder": "host" if loader.source.host else "dali",
        "n": settings.repeats,
        "clips_a_turn": settings.timed_batches * settings.batch,
        "pictures": pictures,
        "cases": {case: {key: spread(t[key] for t in turns[case]) for key in turns[case][0]} for case in turns},
        "ratios": ratios({case: [t["clips_per_s"] for t in turns[case]] for case in turns}),
    }


def our_loader(paths: Sequence[str], settings: Settings, folder: Path) -> VideoLoader:
    """The loader that training would get for a list that names each file often enough for one long epoch."""
    lines = [f"{os.path.abspath(paths[i % len(paths)])} 0\n" for i in range(settings.steps * settings.batch)]
    (folder / "train.txt").write_text("".join(lines))
    wanted = {"data.train": folder / "train.txt", "run.seed": settings.seed}
    keys = ("frames", "stride", "size", "batch", "workers", "threads", "prefetch", "decoder")
    wanted |= {f"data.{key}": getattr(settings, key) for key in keys}
    cfg = schema.load(None, [f"{key}={value}" for key, value in wanted.items()])
    return build_loader(cfg, "train", [], World(), torch.device("cpu"))


def draw(loader: VideoLoader, settings: Settings) -> list[peers.Drawn]:
    """The clips in the order of the loader, as its source draws them."""
    source = dataclasses.replace(loader.source, host=False, trimmed=False)  # gives frame numbers instead of pictures
    drawn = []
    for place in range(settings.steps * settings.batch):
        _, frames, boxes, mirror, info = source.sample(*divmod(place, settings.batch))
        top, left, bottom, right = map(round, boxes[0].tolist())
        row = source.clips[int(info[2])]
        box = (top, left, bottom - top, right - left)
        drawn.append(peers.Drawn(row.path, tuple(frames.tolist()), box, bool(mirror), row.label))
    return drawn


def start(
    loader: VideoLoader, drawn: Sequence[peers.Drawn], paths: Sequence[str], settings: Settings
) -> tuple[dict[str, Iterator[torch.Tensor]], dict[str, torch.Tensor]]:
    """The cases that can run here, each with its workers started, and the first batch of each."""
    graph, running, first = loader.graph, {}, {}
    for case in settings.cases:
        make: Callable[[], Iterable[Any]]
        if case == "clipline":
            make = loader.__iter__
        elif case in ("clipline_host", "clipline_dali", "dali_untrimmed"):  # what else could have been chosen
            host, trimmed = case == "clipline_host", case != "dali_untrimmed"
            readable = host or {row.codec for row in loader.source.rows} <= DALI_CODECS["cpu"]
            if not readable or (host, trimmed) == (loader.source.host, loader.source.trimmed):
                continue
            source = dataclasses.replace(loader.source, host=host, trimmed=trimmed)
            make = VideoLoader(source, dataclasses.replace(graph, host=host), loader.device).__iter__
        elif reason := peers.missing(case, paths[0]):
            print(f"left out: {case}: {reason}", flush=True)
            continue
        else:
            clips = peers.Clips(case, drawn, settings.size, graph.mean, graph.std)
            make = lambda c=clips: peers.batches(c, settings.batch, settings.workers, settings.prefetch)  # noqa: E731
        batches = (batch[0] for batch in make())
        try:
            first[case] = next(batches).clone()
        except RuntimeError as error:
            print(f"left out: {case}: {str(error).strip().splitlines()[-1]}", flush=True)
            continue
        running[case] = batches
        settle()
    return running, first


def compare(first: dict[str, torch.Tensor], std: Sequence[float]) -> dict[str, dict[str, float]]:
    """How far the first batches are from the first case's, in grey levels of 255: mean, and mean of the worst clip."""
    (reference, theirs), *others = first.items()
    levels = 255 * torch.tensor(std).reshape(3, 1, 1, 1)
    differences = {case: ((batch - theirs).abs() * levels).mean((1, 2, 3, 4)) for case, batch in others}
    return {
        case: {"mean": round(d.mean().item(), 3), "worst_clip": round(d.max().item(), 3), "to": reference}
        for case, d in differences.items()
    }


def turn(batches: Iterator[torch.Tensor], settings: Settings) -> dict[str, float]:
    """One turn of one case, from a full read-ahead to a full read-ahead."""
    for _ in range(settings.warm_batches):
        next(batches)
    before = Clock.now()
    for _ in range(settings.timed_batches):
        next(batches)
    after = Clock.now()
    settle()
    clips = settings.timed_batches * settings.batch
    wall, own = after.wall - before.wall, after.own - before.own
    return {
        "clips_per_s": clips / wall,
        "cpu_ms_per_clip": 1000 * own / clips,
        "cores_used": own / wall,
        "cores_used_by_others": max(after.busy - before.busy - own, 0) / wall,
    }


def ratios(rates: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Clipline's rate through another's, round by round; best_peer is the fastest of PEERS in each round."""
    if "clipline" not in rates:
        return {}
    others = {case: rate for case, rate in rates.items() if case != "clipline"}
    present = [others[case] for case in PEERS if case in others]
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
        f"{measured['name']}: {f['files']} files, {', '.join(f['codecs'])}, {', '.join(f['sizes'])}, "
        f"{f['mean_frames']} frames, {f['mean_keyframes']} key frames, {f['mean_kbit_per_s']} kbit/s; "
        f"decoder {measured['decoder']}; {measured['n']} turns of {measured['clips_a_turn']} clips",
        f"{'case':18} {'clips/s':>22} {'CPU ms/clip':>22} {'clipline / it':>22} {'pictures differ':>16}",
    ]
    for case, figures in measured["cases"].items():
        ratio, apart = measured["ratios"].get(case), measured["pictures"].get(case)
        lines.append(
            f"{case:18} {shown(figures['clips_per_s'], 1):>22} {shown(figures['cpu_ms_per_clip'], 1):>22} "
            f"{shown(ratio, 2) if ratio else '':>22} {format(apart['mean'], '.2f') + ' of 255' if apart else '':>16}"
        )
    if best := measured["ratios"].get("best_peer"):
        lines.append(f"{'best peer':18} {'':22} {'':22} {shown(best, 2):>22}")
    others = [x for figures in measured["cases"].values() for x in figures["cores_used_by_others"]["all"]]
    lines.append(f"used by other processes meanwhile: {np.mean(others):.2f} cores on average")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
