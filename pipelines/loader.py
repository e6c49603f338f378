"""Batches on the device: runs a graph, hands its buffers to torch without a copy, counts unreadable videos.

loader = build_loader(cfg, "train", classes, world, device)
for batch in loader:            # the rest of the current epoch
    batch.video                 # (B, C, T, H, W), normalised, on the device; DALI's own buffer
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from configs.keys import WIDER
from configs.schema import Config
from pipelines import order
from pipelines.augment import parse
from pipelines.graph import Graph, build_pipeline, mean_colour
from pipelines.index import Row, build_index, cache_path, coverage
from pipelines.labels import is_subset
from pipelines.lists import Clip, first_of_each_class, read_list
from pipelines.packed import pack
from pipelines.readers import Readers
from pipelines.source import Info, Source, Status, Unreadable, Views
from pipelines.world import World

DALI_CODECS = {"cpu": {"vp8", "vp9", "mjpeg"}, "cuda": {"vp8", "vp9", "mjpeg", "h264", "hevc", "av1", "mpeg4"}}


class Batch(NamedTuple):
    video: torch.Tensor  # train (B, C, T, H, W), repeats side by side; eval (B, V, C, T, H, W); float16 or float32
    label: torch.Tensor  # (B,) int64
    sample: torch.Tensor  # (B,) int64, the row of the list; -1: not to be scored (padding, or could not be read)
    seeds: tuple[tuple[int, ...], ...]  # on the host: (seed, epoch, row[, repeat]), for what else is drawn for a clip

    @property
    def classes(self) -> torch.Tensor:
        """(B,) class numbers; of mixed clips, whose label is (B, num_classes) shares, the larger one's."""
        return self.label if self.label.ndim == 1 else self.label.argmax(-1)


class VideoLoader:
    """Iterates over epochs of a source; `state_dict()` is (epoch, samples seen) and restores the exact stream; on
    another number of ranks it goes on with samples that the epoch has not seen.

    `bad` maps rows to the reason why they could not be read: replaced in training, not scored in evaluation.
    """

    def __init__(self, source: Source, graph: Graph, device: torch.device, max_bad: float = 1.0):
        self.source, self.graph, self.device, self.max_bad = source, graph, device, max_bad
        self.epoch, self.step = 0, 0
        self.bad: dict[int, str] = {}
        self._readers: Readers | None = None

    def __len__(self) -> int:
        return self.source.steps

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the current step to the end of the epoch; DALI already works on the next epoch meanwhile."""
        while self.step < len(self):
            batch = self._next()
            self.step += 1
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        epochs, step = divmod(self.step, len(self))  # between the last step and the next epoch they are the same place
        return {"epoch": self.epoch + epochs, "seen": step * self.source.batch * self.source.world.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        s = self.source
        done = order.steps_done(state["seen"], s.batch, s.world.size, s.accumulate)
        self.epoch, self.step = (state["epoch"], done) if done < len(self) else (state["epoch"] + 1, 0)
        self._readers = None

    def _next(self) -> Batch:
        step = self.epoch * len(self) + self.step
        for attempt in range(2):
            if self._readers is None:
                source = dataclasses.replace(self.source, start=step)
                self._readers = Readers(build_pipeline(self.graph, source, self.source.batch))
            try:
                clips, infos = self._readers.run()
                video, info = torch.from_dlpack(clips.as_tensor()), np.array(infos.as_tensor())
            except Exception as error:  # of which kind, DALI decides where a reader has died: see what it is below
                if died := self._readers.died():
                    self._readers.abandon()
                    self._readers = None
                    if attempt:
                        raise Unreadable(f"{died}, again, while reading: {', '.join(self._paths(step))}") from None
                    print(f"{died}: the readers start anew at step {step}", file=sys.stderr, flush=True)
                    continue
                if not isinstance(error, RuntimeError):  # one file that the decoder refuses fails the whole batch
                    if type(error) is not Exception:
                        raise
                    self._readers = None  # so DALI reports an exception in a worker: here it is raised as what it is
                video, info = self._one_by_one(step)
            break
        assert (info[:, Info._fields.index("step")] == step).all(), f"the stream is out of step: {info} at {step}"
        return self._batch(video, [Info(*row) for row in info.tolist()])

    def add_bad(self, found: Sequence[Mapping[int, str]]) -> None:
        """Rows and reasons, of other processes too. Raises Unreadable, in training, for more than `max_bad` allows."""
        for part in found:
            self.bad.update(part)
        if self.source.views.train and len(self.bad) > self.max_bad * len(self.source.clips):
            named = "\n".join(f"  {self.source.clips[row].path}: {why}" for row, why in sorted(self.bad.items()))
            raise Unreadable(
                f"{len(self.bad)} of {len(self.source.clips)} videos cannot be read, more than "
                f"data.max_bad={self.max_bad} allows:\n{named}"
            )

    def _paths(self, step: int) -> list[str]:
        return [self.source.clips[self.source.row_of(step, slot)[0]].path for slot in range(self.source.batch)]

    def _one_by_one(self, step: int) -> tuple[torch.Tensor, np.ndarray]:
        """The batch of a step sample by sample, without the videos that the decoder refuses."""
        alone = dataclasses.replace(self.graph, prefetch=1, workers=0)
        videos: list[torch.Tensor] = []
        infos: list[np.ndarray] = []
        fed: list[tuple[np.ndarray, ...]] = []
        pipe = None
        for slot in range(self.source.batch):
            refused: set[int] = set()
            while len(videos) == slot:
                arrays = self.source.sample(step, slot, refused)
                fed[:] = [arrays]
                pipe = pipe or build_pipeline(alone, _first_of(fed), batch=1)
                try:
                    clip, _ = pipe.run()
                except RuntimeError:
                    refused.add(Info(*arrays[-1].tolist()).used)
                    pipe = None
                    continue
                videos.append(torch.from_dlpack(clip.as_tensor()))
                infos.append(arrays[-1])
        return torch.cat(videos), np.stack(infos)

    def _batch(self, video: torch.Tensor, infos: Sequence[Info]) -> Batch:
        for info in infos:
            if info.status in (Status.REPLACED, Status.FAILED) and info.row not in self.bad:
                self.add_bad([{info.row: self.source.reason(info.row)}])
        v = self.source.views
        for slot, info in enumerate(infos):
            if info.turns:  # few videos are: the graph need not know
                for number, view in enumerate(torch.rot90(video[slot], info.turns, (-2, -1))):
                    video[slot, number] = view.flip(-1) if info.mirror >> number & 1 else view
        if v.train:
            video = video.flatten(0, 1)
            infos = [info for info in infos for _ in range(v.repeats)]
        scored = [i.used if i.status in (Status.OK, Status.REPLACED) else -1 for i in infos]
        numbers = torch.tensor([[i.label for i in infos], scored], dtype=torch.int64)
        if self.device.type == "cuda":
            numbers = numbers.pin_memory().to(self.device, non_blocking=True)
        seeds = (
            (self.source.seed, info.step // len(self) if v.train else 0, info.row, number % v.repeats)
            for number, info in enumerate(infos)
        )
        return Batch(video, numbers[0], numbers[1], tuple(seed if v.repeats > 1 else seed[:3] for seed in seeds))


def _first_of(fed: list[tuple[np.ndarray, ...]]) -> Callable[[Any], tuple[np.ndarray, ...]]:
    return lambda place: fed[0]


def build_loader(
    cfg: Config, split: str, classes: Sequence[str], world: World, device: torch.device, half: bool = False
) -> VideoLoader:
    """The loader of a split: `train`, `val` (one centre view) or `test` (eval.clips x eval.crops views).

    Raises ValueError for a list that is missing, malformed or without a readable video. Prints what the list holds
    and who decodes it.
    """
    data, train = cfg.data, split == "train"
    path = {"train": data.train, "val": data.val, "test": data.test or data.val}[split]
    if not path:
        raise ValueError(f"data.{split}: no list given")
    clips = world.first(lambda: read_list(path, data.root, classes, is_subset(data.classes)))
    if per_class := data.per_class if train else data.eval_per_class:
        clips = first_of_each_class(clips, per_class)
    rows = world.first(lambda: build_index(clips, cache_path(path)))
    good = [row for row in rows if not row.error]
    if not good:
        raise ValueError(
            f"{path}: none of its {len(rows)} videos can be read; the first: {rows[0].path}: {rows[0].error}"
        )
    host, why = choose_decoder(good, data.decoder, device.type)
    views = Views(data.frames, data.stride, data.size, data.short, train, data.fps, data.sampling, data.snap, data.crop)
    if train:
        views = dataclasses.replace(
            views, scale=data.scale, ratio=data.ratio, flip=data.flip, short_sides=data.short_sides,
            augment=parse(data.rand_augment, data.colour_jitter, data.grey), repeats=data.repeats,
        )  # fmt: skip
    elif split == "test":
        views = dataclasses.replace(
            views, clips=cfg.eval.clips, place=cfg.eval.place, crops=cfg.eval.crops, short_side=short_side(cfg)
        )
    batch = cfg.eval.batch if split == "test" else data.batch // (data.repeats if train else 1)
    source = Source(
        pack(clips), pack(rows), views, batch, cfg.run.seed, world, host, fill=mean_colour(data.mean),
        seconds=data.seconds,
        accumulate=order.accumulation(cfg.optim.batch, data.batch, world.size) if train else 1,
    )  # fmt: skip
    unusable = [row for row in rows if row.error]
    if train and len(unusable) > data.max_bad * len(rows):
        raise ValueError(
            f"{path}: {len(unusable)} of its {len(rows)} videos cannot be read, more than data.max_bad={data.max_bad} "
            f"allows; the first: {unusable[0].path}: {unusable[0].error} (python -m pipelines.index {path} names all)"
        )
    if train and not source.steps:
        raise ValueError(
            f"{path}: {len(clips)} videos do not fill one step of data.batch={data.batch} on {world.size} process(es)"
            + (f", {source.accumulate} times (optim.batch={cfg.optim.batch})" if source.accumulate > 1 else "")
        )
    if world.is_first:
        print(f"{split}: {describe(clips, rows)}; decoder: {why}", flush=True)
        whole = [row.path for row in good if not row.ordered]
        if whole:
            print(
                f"{split}: {len(whole)} videos are decoded from their first frame, since their packets do not tell the "
                f"order of frames (B-frames in {Path(whole[0]).suffix or 'a raw stream'}); the first: {whole[0]}"
            )
        if data.snap:
            print(f"{split}: {describe_snap(source)}", flush=True)
    graph = Graph(
        views,
        host,
        data.mean,
        data.std,
        half,
        world.local_rank if device.type == "cuda" else None,
        data.threads,
        data.prefetch,
        data.workers,
    )
    return VideoLoader(source, graph, device, data.max_bad)


def short_side(cfg: Config) -> int:
    """To which frames are resized before the crops of a test are cut."""
    return {0: cfg.data.size, WIDER: cfg.data.size * 8 // 7}.get(cfg.eval.short_side, cfg.eval.short_side)


def describe(clips: Sequence[Clip], rows: Sequence[Row]) -> str:
    return f"{coverage(rows)}, {len({clip.label for clip in clips})} classes"


def describe_snap(source: Source, most: int = 1000) -> str:
    """How far frames are moved to key frames, over the first videos of the list."""
    free = dataclasses.replace(source, views=dataclasses.replace(source.views, snap=""))
    shifts, hits = [], []
    good = (entry for entry in enumerate(source.rows) if not entry[1].error)
    for row, known in itertools.islice(good, most):
        there, here = (s.choose_frames(row, order.generator(s.seed, 0, row)) for s in (source, free))
        shifts.append(np.abs(there - here).ravel())
        hits.append(np.isin(there, known.keyframes).ravel())
    moved, on_key = np.concatenate(shifts), 100 * np.concatenate(hits).mean()
    return f"frames moved by {moved.mean():.2f} on average, {moved.max()} at most; {on_key:.1f} % are key frames"


def choose_decoder(rows: Sequence[Row], wanted: str, device: str) -> tuple[bool, str]:
    """(whether PyAV decodes on the host, the choice and its reason), from the codecs that the index found."""
    other = [row for row in rows if row.codec not in DALI_CODECS[device]]
    place = "on a GPU" if device == "cuda" else "without a GPU"
    cannot = (
        f"{len(other)} of {len(rows)} videos are {other[0].codec}, which DALI does not decode {place}" if other else ""
    )
    if not cannot and device == "cuda" and not _has_nvdec():
        cannot = "the driver's libnvcuvid is missing, so there is no NVDEC"
    if wanted == "dali" and cannot:
        raise ValueError(f"data.decoder=dali: {cannot}; use data.decoder=auto or host")
    if wanted == "host":
        return True, "host (PyAV), as data.decoder=host asks"
    if cannot:
        return True, f"host (PyAV): {cannot}"
    if wanted == "auto" and device == "cpu":
        return True, "host (PyAV), which is faster than DALI without a GPU"
    codecs = ", ".join(sorted({row.codec for row in rows}))
    return False, f"DALI {'NVDEC' if device == 'cuda' else 'CPU'} ({codecs})"


def _has_nvdec() -> bool:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return False
    return True
