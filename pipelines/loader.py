"""Batches on the device: runs a graph, hands its buffers to torch without a copy, counts unreadable videos.

loader = build_loader(cfg, "train", classes, world, device)
for batch in loader:            # the rest of the current epoch
    batch.video                 # (B, C, T, H, W), normalised, on the device; DALI's own buffer
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import backend

from configs.loading import Config
from configs.schema import WIDER
from pipelines.batch_decoder import BatchDecoder
from pipelines.dali_graph import Graph, mean_colour
from pipelines.dali_probe import probe_dali
from pipelines.data.classes import is_subset
from pipelines.data.dataset import Clip, first_of_each_class, read_list
from pipelines.data.metadata import build_index, cache_path, coverage
from pipelines.decode.decoder_choice import Decoders, choose_decoders, describe_decoders
from pipelines.decode.video_info import Row
from pipelines.known_faults import UNREADABLE, Faults
from pipelines.sample_source import Info, Source, Status, Unreadable, Views
from pipelines.sampling import order
from pipelines.sampling.rand_augment import parse
from pipelines.storage import is_remote
from utils.distributed import World, local_world_size
from utils.shared_list import pack


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
    """Iterates over epochs of a source; `state_dict()` is (epoch, samples seen, faults) and restores the exact stream;
    on another number of ranks it goes on with samples that the epoch has not seen.

    `bad` maps rows to the reason why they could not be read: replaced in training, not scored in evaluation.
    """

    def __init__(self, source: Source, graph: Graph, device: torch.device, max_bad: float = 1.0):
        self.device, self.max_bad = device, max_bad
        self.epoch, self.step = 0, 0
        self.bad: dict[int, str] = {}
        self.decoder = BatchDecoder(source, graph, device)

    @property
    def source(self) -> Source:
        return self.decoder.source

    @property
    def graph(self) -> Graph:
        return self.decoder.graph

    def __len__(self) -> int:
        return self.source.steps

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the current step to the end of the epoch; DALI already works on the next epoch meanwhile."""
        while self.step < len(self):
            batch = self._batch(*self.decoder.decode(self.epoch * len(self) + self.step))
            self.step += 1
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        epochs, step = divmod(self.step, len(self))  # between the last step and the next epoch they are the same place
        s = self.source
        faults = [[*fault, *self._file(fault[0])] for fault in s.faults.state()]
        bad = [[row, why, *self._file(row)] for row, why in sorted(self.bad.items())]
        seen = step * s.batch * s.world.size
        return {"epoch": self.epoch + epochs, "seen": seen, "faults": faults, "bad": bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        s = self.source
        done = order.steps_done(state["seen"], s.batch, s.world.size, s.accumulate)
        self.epoch, self.step = (state["epoch"], done) if done < len(self) else (state["epoch"] + 1, 0)
        # What was found of a file holds while it is the same file at the same place of the list.
        s.faults.merge(
            [
                fault
                for *fault, path, size, changed in state.get("faults", [])
                if self._file(fault[0]) == [path, size, changed]
            ]
        )
        self.bad |= {row: why for row, why, *file in state.get("bad", []) if self._file(row) == file}
        self.decoder.restart()

    def _file(self, row: int) -> list[Any]:
        """Return path, size and time of change of a row, as it was indexed; an empty list if there is no such row."""
        rows = self.source.rows
        return [rows[row].path, rows[row].size, rows[row].changed] if row < len(rows) else []

    def release_memory(self) -> None:
        """Give the memory that DALI holds and does not use back to the GPU: its pools grow with the largest batch, and
        torch cannot use them."""
        if self.device.type == "cuda":
            backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]  # DALI's stubs leave it out

    def share_faults(self) -> None:
        """Tell all ranks what each has found out about its videos; for all of them to call together. Raises Unreadable,
        in training, for more bad videos than `max_bad` allows."""
        for bad, faults in self.source.world.gather((dict(self.bad), self.source.faults.state())):
            self.add_bad(bad)
            self.source.faults.merge(faults)

    def add_bad(self, bad: Mapping[int, str]) -> None:
        """Note rows and reasons, of other processes too. Raises as share_faults()."""
        self.bad.update(bad)
        if self.source.views.train and len(self.bad) > self.max_bad * len(self.source.clips):
            named = "\n".join(f"  {self.source.clips[row].path}: {why}" for row, why in sorted(self.bad.items()))
            raise Unreadable(
                f"{len(self.bad)} of {len(self.source.clips)} videos cannot be read, more than "
                f"data.max_bad={self.max_bad} allows:\n{named}"
            )

    def _batch(self, video: torch.Tensor, numbers: torch.Tensor, info_rows: np.ndarray) -> Batch:
        v, infos = self.source.views, [Info(*row) for row in info_rows.tolist()]
        for slot, info in enumerate(infos):
            if info.status in (Status.REPLACED, Status.FAILED):
                self._note_bad(info.row, info.step)
            if info.turns:  # few videos are: the graph need not know
                for number, view in enumerate(torch.rot90(video[slot], info.turns, (-2, -1))):
                    video[slot, number] = view.flip(-1) if info.mirror >> number & 1 else view
        if v.train:
            video = video.flatten(0, 1)
            infos = [info for info in infos for _ in range(v.repeats)]
            numbers = numbers.repeat_interleave(v.repeats, 0) if v.repeats > 1 else numbers
        seeds = (
            (self.source.seed, info.step // len(self) if v.train else 0, info.row, number % v.repeats)
            for number, info in enumerate(infos)
        )
        label, scored = numbers.unbind(1)
        return Batch(video, label, scored, tuple(seed if v.repeats > 1 else seed[:3] for seed in seeds))

    def _note_bad(self, row: int, step: int) -> None:
        if row not in self.bad:
            self.add_bad({row: self.source.reason(row)})
        if not is_remote(self.source.clips[row].path):  # there the network may have been the reason
            self.source.faults.add(row, UNREADABLE, step)


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
    # Every rank decodes as the first one does, unless a card cannot: then none of them trusts NVDEC.
    dali = max(world.gather(probe_dali(device)), key=lambda card: bool(card.problem))
    cores = max(1, min(data.workers, len(os.sched_getaffinity(0)) // local_world_size()))
    decoders = world.first(lambda: choose_decoders(good, data.decoder, data.pyav_share, dali, cores))
    views = views_of(cfg, split)
    batch = cfg.eval.batch if split == "test" else data.batch // (data.repeats if train else 1)
    accumulate = order.accumulation(cfg.optim.batch, data.batch, world.size) if train else 1
    steps = order.train_steps(len(clips), batch, world.size, accumulate) if train else 0
    faults = Faults(len(rows), steps or order.eval_steps(len(clips), batch, world.size), world.rank)
    source = Source(
        pack(clips), pack(rows), views, batch, cfg.run.seed, world, decoders, faults, fill=mean_colour(data.mean),
        seconds=data.seconds, accumulate=accumulate,
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
        who = describe_decoders(good, decoders, data.decoder, dali)
        print(f"{split}: {describe(clips, rows)}; decoder: {who}", flush=True)
        whole = [row.path for row in good if row.proof == "sequential"]
        if whole:
            print(
                f"{split}: {len(whole)} videos are decoded from their first frame, as nothing tells where to start "
                f"(python -m pipelines.prepare makes them quick to read); the first: {whole[0]}"
            )
        if data.snap:
            print(f"{split}: {describe_snap(source)}", flush=True)
    graph = Graph(
        views, decoders.uses_dali, data.mean, data.std, half, world.local_rank if device.type == "cuda" else None,
        dali_threads(data.threads, decoders), data.prefetch, data.workers,
    )  # fmt: skip
    return VideoLoader(source, graph, device, data.max_bad)


def views_of(cfg: Config, split: str) -> Views:
    """Return what a split makes of a video."""
    data, train = cfg.data, split == "train"
    views = Views(data.frames, data.stride, data.size, data.short, train, data.fps, data.sampling, data.snap, data.crop)
    if train:
        return dataclasses.replace(
            views, scale=data.scale, ratio=data.ratio, flip=data.flip, short_sides=data.short_sides,
            augment=parse(data.rand_augment, data.colour_jitter, data.grey), repeats=data.repeats,
        )  # fmt: skip
    if split == "test":
        return dataclasses.replace(
            views, clips=cfg.eval.clips, place=cfg.eval.place, crops=cfg.eval.crops, short_side=short_side(cfg)
        )
    return views


def dali_threads(wanted: str, decoders: Decoders) -> int:
    """Turn data.threads into a number. auto: a thread of DALI's waits for each frame that NVDEC decodes, so two keep an
    engine busy; on a CPU as many as cores, at most four."""
    if wanted != "auto":
        return int(wanted)
    engines = max((limits.engines for limits in decoders.capabilities.values()), default=1)
    return 2 * engines if engines > 1 else min(4, len(os.sched_getaffinity(0)))


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
