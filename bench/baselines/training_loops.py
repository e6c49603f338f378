"""Variants of reading clips and training on them, combined from Clipline and the baselines."""

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
from bench.baselines.cases import clipline_loader, decoder_name, draw_clips, with_decoders
from configs import loading
from pipelines.batch_loader import Batch
from pipelines.decode.frame_table import count_decoded, frame_packets, unpack_frame_table
from pipelines.decode.video_info import VideoInfo, read_video_info
from training.metrics import StepMetrics
from training.objective import build_task
from training.setup import build_network, build_state
from training.state import TrainState
from utils.device import autocast

NUM_CLASSES = 400
PREFETCH = 2  # batches, both per worker of a DataLoader and in DALI


@dataclass(frozen=True)
class Variant:
    """A way of reading clips and training on them.

    `loader` is decord_whole (decode all frames, select those of the clip), decord (decode those of the clip), clipline,
    or none (the same clips again and again). `optimized`: pinned memory, a fused optimizer, and no value read back from
    the device in a step. `copied`: clips are copied out of DALI's buffers.
    """

    loader: str = "decord_whole"
    optimized: bool = False
    batch_size: int = 16
    num_workers: int = 8
    frame_stride: int = 16
    trimmed: bool = False
    copied: bool = True
    amp: bool = False
    compiled: bool = False
    prepared: bool = False
    aug_repeats: int = 1

    @property
    def batches_in_flight(self) -> int:
        """Batches that become ready together: a DataLoader's worker makes whole batches, all at the same pace."""
        return self.num_workers if self.loader.startswith("decord") else 2 * PREFETCH

    @property
    def trainer_key(self) -> tuple[bool, bool, bool]:
        """Variants with the same key share the network and its training step."""
        return self.optimized, self.amp, self.compiled

    @property
    def compute_cores(self) -> int:
        """CPU cores used for compute: all but one if there are data workers, as in train.py."""
        return max(1, len(os.sched_getaffinity(0)) - (self.loader != "none"))

    @property
    def clip_dtype(self) -> torch.dtype:
        """Clipline can deliver clips in float16; the baselines' are float32."""
        return torch.float16 if self.amp and self.loader == "clipline" else torch.float32


class BatchStream(NamedTuple):
    """A stream of batches, its decoder, and the mean number of frames that are decoded per clip.

    `open` starts it from the first batch, with new workers.
    """

    open: Callable[[], Iterator[Batch]]
    decoder: str
    frames_decoded_per_clip: float


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """The properties that the clips of all variants share."""

    num_clips: int
    num_frames: int
    image_size: int
    dali_threads: int
    device: torch.device
    folder: Path  # for the list


def open_stream(variant: Variant, paths: Sequence[str], settings: ClipSettings) -> BatchStream:
    """Return a stream of `num_clips` clips of the files, read as the variant says."""
    if variant.loader == "none":
        return _constant_stream(variant, settings)
    loader = clipline_loader(
        paths,
        settings.num_clips,
        settings.folder,
        device=settings.device,
        dtype=variant.clip_dtype,
        num_frames=settings.num_frames,
        frame_stride=variant.frame_stride,
        image_size=settings.image_size,
        batch_size=variant.batch_size,
        num_workers=variant.num_workers,
        dali_threads=settings.dali_threads,
        prefetch=PREFETCH,
        aug_repeats=variant.aug_repeats,
    )
    drawn_clips = draw_clips(loader, settings.num_clips // variant.aug_repeats)
    infos = {os.path.abspath(path): read_video_info(path) for path in paths}
    counts = [count_frames_decoded(variant, infos[clip.path], np.array(clip.frames)) for clip in drawn_clips]
    frames_per_clip = float(np.mean(counts)) / variant.aug_repeats

    def open_clipline() -> Iterator[Batch]:
        batches = with_decoders(loader, loader.source.decoders, variant.trimmed)
        return (batch._replace(video=batch.video.clone()) if variant.copied else batch for batch in batches)

    def open_decord() -> Iterator[Batch]:
        device, pin_memory = settings.device, variant.optimized and settings.device.type == "cuda"
        config = loader.pipeline
        clips = loaders.ClipDataset(
            variant.loader, drawn_clips, image_size=settings.image_size, mean=config.mean, std=config.std
        )
        pairs = loaders.iterate_batches(
            clips,
            variant.batch_size,
            num_workers=variant.num_workers,
            prefetch=PREFETCH,
            pin_memory=pin_memory,
        )
        on_device = ([tensor.to(device, non_blocking=variant.optimized) for tensor in pair] for pair in pairs)
        return (Batch(video, label, label, ()) for video, label in on_device)

    if variant.loader == "clipline":
        return BatchStream(open_clipline, decoder_name(loader.source.decoders), frames_per_clip)
    return BatchStream(open_decord, "decord", frames_per_clip)


def _constant_stream(variant: Variant, settings: ClipSettings) -> BatchStream:
    size, device = settings.image_size, settings.device
    video = torch.randn(variant.batch_size, 3, settings.num_frames, size, size, device=device)
    label = torch.arange(variant.batch_size, device=device) % NUM_CLASSES
    batch = Batch(video.half() if variant.amp else video, label, label, ())
    return BatchStream(lambda: itertools.repeat(batch), "none", 0.0)


def count_frames_decoded(variant: Variant, info: VideoInfo, frames: np.ndarray) -> int:
    """Count the frames that a variant decodes for the frames of one clip, from the structure of the file."""
    table = unpack_frame_table(info.table).table
    if variant.loader == "decord_whole":
        return table.num_frames
    if variant.loader == "clipline" and variant.trimmed:
        return count_decoded(table, frames)
    if table.seek_points:
        return int(frames.max()) + 1
    packets = frame_packets(table, frames)
    if variant.loader == "clipline":
        return int(packets.max()) + 1
    # decord seeks to the key frame before a frame, and decodes from there to the last frame needed from that group.
    entries = np.flatnonzero(table.is_random_access)
    group = np.searchsorted(entries, packets, "right") - 1
    return sum(int(packets[group == g].max() - entries[g]) + 1 for g in np.unique(group))


class Trainer:
    """A network and its training step, which reports to StepMetrics; warm_up() compiles it."""

    def __init__(self, variant: Variant, config_overrides: Sequence[str], device: torch.device):
        torch.manual_seed(0)
        torch.set_num_threads(variant.compute_cores)
        cfg = loading.load_config(None, [*config_overrides, f"run.compile={'yes' if variant.compiled else 'no'}"])
        self.network = build_network(cfg, NUM_CLASSES).to(device).train()
        self.step: Callable[[Batch, StepMetrics], None]
        if variant.optimized:
            dtype = torch.bfloat16 if variant.amp else torch.float32
            state = build_state(cfg, self.network, world_size=1, dtype=dtype, grad_accum_steps=1)
            task = build_task(cfg, self.network)
            self.step = partial(_optimized_step, state, task, dtype, cfg.optim.clip_grad_norm)
        else:
            optimizer = torch.optim.AdamW(self.network.parameters(), lr=cfg.optim.lr)
            self.step = partial(_plain_step, self.network, optimizer)

    def warm_up(self, stream: BatchStream, device: torch.device) -> None:
        """Run one step, so that compiling does not give the loader of the first round a head start."""
        metrics = StepMetrics(device)
        self.step(next(metrics.timed(stream.open())), metrics)
        metrics.compute_and_reset()


def _optimized_step(
    state: TrainState, task: Any, dtype: torch.dtype, clip_grad_norm: float, batch: Batch, metrics: StepMetrics
) -> None:
    """Run the training step of train.py."""
    with autocast(batch.video.device, dtype):
        out = task(state.model, batch)
        state.scaler.scale(out["loss"]).backward()
    metrics.update(out, batch)
    metrics.update_step(state.optimizer_step(clip_grad_norm))


def _plain_step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, metrics: StepMetrics) -> None:
    """Run a step as a first training loop has it: all in fp32, loss and accuracy read from the device in each step."""
    logits = network(batch.video)
    loss = F.cross_entropy(logits, batch.label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item(), (logits.argmax(-1) == batch.label).float().mean().item()
    metrics.update({"loss": loss, "logits": logits}, batch)
