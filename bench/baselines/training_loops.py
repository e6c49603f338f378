"""One way to read clips and to train on them, made of what Clipline has and of what its peers have."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bench.baselines import loaders
from bench.baselines.cases import decoder_name, draw, our_loader, with_decoders
from configs import loading
from pipelines.decode.frame_table import count_decoded, frame_packets, unpack
from pipelines.decode.video_info import Row, read_row
from pipelines.loader import Batch
from training.metrics import Meter
from training.optimizers import clip_gradients
from training.setup import build_learner, build_network, build_task
from utils.device import autocast

CLASSES = 400
PREFETCH = 2  # batches, of a DataLoader's worker and of DALI, as both have it


@dataclass(frozen=True)
class Way:
    """How clips are read and trained on. `loader`: decord_whole (all frames, then those of the clip), decord (those of
    the clip), clipline, or none (the same clips again and again). `lean`: pinned memory, a fused optimiser, and nothing
    read back at each step. `copied`: out of DALI's buffers into torch's."""

    loader: str = "decord_whole"
    lean: bool = False
    batch: int = 16
    workers: int = 8
    stride: int = 16
    trimmed: bool = False
    copied: bool = True
    amp: bool = False
    compiled: bool = False
    prepared: bool = False
    repeats: int = 1

    @property
    def wave(self) -> int:
        """Batches that come together: a worker of a DataLoader makes a whole batch, all at the same pace."""
        return self.workers if self.loader.startswith("decord") else 2 * PREFETCH

    @property
    def trainer(self) -> tuple[bool, bool, bool]:
        """Ways that have this in common train the same network with the same step."""
        return self.lean, self.amp, self.compiled

    @property
    def cores(self) -> int:
        """That a CPU computes on: train.py leaves one to the workers, if there are any."""
        return max(1, len(os.sched_getaffinity(0)) - (self.loader != "none"))

    @property
    def half(self) -> bool:
        return self.amp and self.loader == "clipline"


class Stream(NamedTuple):
    """`open` gives batches from the first on, with workers of their own; who decodes them; pictures for a clip."""

    open: Callable[[], Iterator[Batch]]
    decoder: str
    pictures: float


def read(way: Way, paths: Sequence[str], count: int, frames: int, size: int, threads: int, device: torch.device,
         folder: Path) -> Stream:  # fmt: skip
    """`count` clips of the files, read as the way has it."""
    if way.loader == "none":
        video = torch.randn(way.batch, 3, frames, size, size, device=device)
        label = torch.arange(way.batch, device=device) % CLASSES
        batch = Batch(video.half() if way.amp else video, label, label, ())
        return Stream(lambda: itertools.repeat(batch), "none", 0.0)
    loader = our_loader(
        paths, count, folder, device, way.half, frames=frames, stride=way.stride, size=size, batch=way.batch,
        workers=way.workers, threads=threads, prefetch=PREFETCH, repeats=way.repeats,
    )  # fmt: skip
    drawn = draw(loader, count // way.repeats)
    rows = {os.path.abspath(path): read_row(path) for path in paths}
    decoded = [pictures_decoded(way, rows[clip.path], np.array(clip.frames)) for clip in drawn]
    pictures = float(np.mean(decoded)) / way.repeats

    def ours() -> Iterator[Batch]:
        batches = with_decoders(loader, loader.source.decoders, way.trimmed)
        return (batch._replace(video=batch.video.clone()) if way.copied else batch for batch in batches)

    def theirs() -> Iterator[Batch]:
        clips = loaders.Clips(way.loader, drawn, size, loader.graph.mean, loader.graph.std)
        pairs = loaders.batches(clips, way.batch, way.workers, PREFETCH, pin=way.lean and device.type == "cuda")
        sent = ([part.to(device, non_blocking=way.lean) for part in pair] for pair in pairs)
        return (Batch(video, label, label, ()) for video, label in sent)

    if way.loader == "clipline":
        return Stream(ours, decoder_name(loader.source.decoders), pictures)
    return Stream(theirs, "decord", pictures)


def pictures_decoded(way: Way, row: Row, frames: np.ndarray) -> int:
    """For the frames of one clip, from the file's structure."""
    table = unpack(row.table).table
    if way.loader == "decord_whole":
        return table.num_frames
    if way.loader == "clipline" and way.trimmed:
        return count_decoded(table, frames)
    if table.seek_points:
        return int(frames.max()) + 1
    wanted = frame_packets(table, frames)
    if way.loader == "clipline":
        return int(wanted.max()) + 1
    entries = np.flatnonzero(
        table.is_random_access
    )  # decord goes back to the key frame, and then on to the last wanted
    group = np.searchsorted(entries, wanted, "right") - 1
    return sum(int(wanted[group == g].max() - entries[g]) + 1 for g in np.unique(group))


class Trainer:
    """A network and its training step, which counts into a Meter; compiled by warm_up()."""

    def __init__(self, way: Way, words: Sequence[str], device: torch.device):
        torch.manual_seed(0)
        torch.set_num_threads(way.cores)
        cfg = loading.load(None, [*words, f"run.compile={'yes' if way.compiled else 'no'}"])
        self.network = build_network(cfg, CLASSES).to(device).train()
        self.step: Callable[[Batch, Meter], None]
        if way.lean:
            dtype = torch.bfloat16 if way.amp else torch.float32
            learner, _ = build_learner(cfg, self.network, 1, dtype, 1)
            self.step = partial(_our_step, learner, build_task(cfg, self.network), dtype, cfg.optim.clip_grad)
        else:
            optimizer = torch.optim.AdamW(self.network.parameters(), lr=cfg.optim.lr)
            self.step = partial(_plain_step, self.network, optimizer)

    def warm_up(self, stream: Stream, device: torch.device) -> None:
        """One step, so that no turn begins with loaders that have got ahead meanwhile."""
        meter = Meter(device)
        self.step(next(meter.waiting(stream.open())), meter)
        meter.read()


def _our_step(learner: Any, task: Any, dtype: torch.dtype, clip: float, batch: Batch, meter: Meter) -> None:
    """As train.py's."""
    with autocast(batch.video.device, dtype):
        out = task(learner.model, batch)
        learner.scaler.scale(out["loss"]).backward()
    learner.scaler.unscale_(learner.optimizer)
    norm = clip_gradients(learner.network.parameters(), clip, False)
    learner.update(norm)
    meter.add(out, batch, norm)


def _plain_step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, meter: Meter) -> None:
    """What a first loop looks like: everything in fp32, the loss and the accuracy read at each step."""
    logits = network(batch.video)
    loss = F.cross_entropy(logits, batch.label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item(), (logits.argmax(-1) == batch.label).float().mean().item()
    meter.add({"loss": loss, "logits": logits}, batch, None)
