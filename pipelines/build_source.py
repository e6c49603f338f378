"""Index a list, decide who decodes which of its videos, and say so: what worker processes need to read the samples."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from configs.schema import Data
from pipelines.dali_graph import mean_color
from pipelines.dali_probe import probe_dali
from pipelines.data.annotations import IN_MEMORY
from pipelines.data.dataset import Dataset
from pipelines.data.metadata import build_index, cache_path, coverage
from pipelines.data.multi_label import LabelSets
from pipelines.decode.decoder_choice import DaliSupport, DecoderPlan, describe_plan, plan_decoders
from pipelines.decode.video_info import VideoInfo
from pipelines.known_faults import Faults
from pipelines.sample_source import SampleSource, ViewSpec
from pipelines.sampling import order
from utils.device import choose_device
from utils.distributed import World, current_world, local_world_size
from utils.shared_list import share


class LoaderContext(NamedTuple):
    """Say where and how precisely batches are made."""

    device: torch.device
    dtype: torch.dtype
    seed: int
    world: World

    @staticmethod
    def choose(device: str | torch.device, dtype: torch.dtype, seed: int, world: World | None) -> LoaderContext:
        """Check the arguments. Raises ValueError that names the wrong one."""
        world = world or current_world()
        if isinstance(device, str):
            device = choose_device(device, world.local_rank)
        elif device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"dtype={dtype}: expected torch.float32 or torch.float16, which DALI writes")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed={seed}: expected a whole number, 0 or more")
        return LoaderContext(device, dtype, seed, world)


def build_source(
    dataset: Dataset, data: Data, views: ViewSpec, run: LoaderContext, batch_size: int, grad_accum_steps: int = 1
) -> SampleSource:
    """Index the list, decide who decodes what, and say so; return what workers need to read the samples."""
    world = run.world
    infos = world.broadcast(lambda: build_index(dataset.videos, cache_path(dataset.path)))
    readable = [info for info in infos if not info.error]
    if not readable:
        first = f"{infos[0].path}: {infos[0].error}"
        raise ValueError(f"{dataset.path}: none of its {len(infos)} videos can be read; the first: {first}")
    if views.train and len(infos) - len(readable) > data.max_unreadable * len(infos):
        unusable = next(info for info in infos if info.error)
        in_memory = dataset.path.startswith(IN_MEMORY)
        hint = "" if in_memory else f" (python -m pipelines.index {dataset.path} names all)"
        raise ValueError(
            f"{dataset.path}: {len(infos) - len(readable)} of its {len(infos)} videos cannot be read, more than "
            f"data.max_unreadable={data.max_unreadable} allows; the first: {unusable.path}: {unusable.error}{hint}"
        )
    decoders, dali = _plan(readable, data, run.device, world)
    num_batches = order.batches_per_epoch(
        len(infos), batch_size, world.size, train=views.train, grad_accum_steps=grad_accum_steps
    )
    source = SampleSource(
        videos=share(dataset.videos),
        infos=share(infos),
        views=views,
        batch_size=batch_size,
        seed=run.seed,
        world=world,
        decoders=decoders,
        faults=Faults(len(infos), max(num_batches, 1), world.rank),
        fill=mean_color(data.mean),
        decode_timeout=data.decode_timeout,
        grad_accum_steps=grad_accum_steps,
        balance=order.balanced_order(data.balance * views.train, [v.label for v in dataset.videos], run.seed),
    )
    if world.is_main:
        who = describe_plan(readable, decoders, data.decoder, dali)
        print(f"{dataset.path}: {describe(dataset, infos)}; decoder: {who}", flush=True)
        _print_notes(dataset, source, readable)
    return source


def _plan(
    infos: Sequence[VideoInfo], data: Data, device: torch.device, world: World
) -> tuple[DecoderPlan, DaliSupport]:
    """Decide who decodes what. Every rank decodes as the first one does, unless a card cannot: then none uses NVDEC."""
    dali = max(world.gather(probe_dali(device)), key=lambda support: bool(support.problem))
    cores = max(1, min(data.num_workers, len(os.sched_getaffinity(0)) // local_world_size()))
    return world.broadcast(lambda: plan_decoders(infos, data.decoder, data.pyav_share, dali, cores)), dali


def describe(dataset: Dataset, infos: Sequence[VideoInfo]) -> str:
    """Describe a list in one line: its coverage, the classes that occur and the number of their videos."""
    if dataset.targets is not None and not isinstance(dataset.targets, LabelSets):
        return f"{coverage(infos)}, labels of shape {dataset.targets.shape[1:]}"
    return ", ".join(filter(None, (coverage(infos), dataset.describe_classes())))


def _print_notes(dataset: Dataset, source: SampleSource, readable: Sequence[VideoInfo]) -> None:
    sequential = [info.path for info in readable if info.proof == "sequential"]
    if sequential:
        print(
            f"{dataset.path}: {len(sequential)} videos are decoded from their first frame, as nothing tells where "
            f"decoding can start (python -m pipelines.prepare makes them quick to read); the first: {sequential[0]}"
        )
    if source.views.snap_to_keyframes:
        print(f"{dataset.path}: {describe_snap(source)}", flush=True)


def describe_snap(source: SampleSource, limit: int = 1000) -> str:
    """Say how far frames are moved to key frames, over the first `limit` readable videos."""
    free = dataclasses.replace(source, views=dataclasses.replace(source.views, snap_to_keyframes=False))
    shifts, on_keyframe = [], []
    readable = (entry for entry in enumerate(source.infos) if not entry[1].error)
    for index, info in itertools.islice(readable, limit):
        try:
            snapped, unsnapped = (s.choose_frames(index, order.sample_rng(s.seed, 0, index)) for s in (source, free))
        except ValueError:  # the video ends before the part that its entry means
            continue
        shifts.append(np.abs(snapped - unsnapped).ravel())
        on_keyframe.append(np.isin(snapped, info.keyframes).ravel() | info.is_image_folder)
    shift, percent = np.concatenate(shifts), 100 * np.concatenate(on_keyframe).mean()
    return f"frames moved by {shift.mean():.2f} on average, {shift.max()} at most; {percent:.1f} % are key frames"
