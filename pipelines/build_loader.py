"""Build the loaders of training, validation and test lists.

dataset = load_dataset("train.csv")
loader = build_train_loader(dataset, Data(image_size=112), device=torch.device("cuda"))
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence

import numpy as np
import torch

from configs.schema import Data, Eval
from pipelines.dali_graph import PipelineConfig, mean_color
from pipelines.dali_probe import probe_dali
from pipelines.data.dataset import Dataset, VideoEntry
from pipelines.data.metadata import build_index, cache_path, coverage
from pipelines.decode.decoder_choice import DaliSupport, DecoderPlan, describe_plan, plan_decoders
from pipelines.decode.video_info import VideoInfo
from pipelines.known_faults import Faults
from pipelines.loader import VideoLoader
from pipelines.sample_source import SampleSource, ViewSpec
from pipelines.sampling import order
from pipelines.sampling.rand_augment import parse_policy
from pipelines.sampling.spatial import short_side_pixels
from utils.distributed import World, local_world_size
from utils.shared_list import share

ONE_VIEW = Eval(num_clips=1, num_crops=1)  # of validation: the middle clip and the center crop


def build_train_loader(
    dataset: Dataset,
    data: Data,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    world: World | None = None,
    seed: int = 0,
    global_batch_size: int = 0,
) -> VideoLoader:
    """Build the loader of a training list; `global_batch_size` is optim.global_batch_size.

    Raises ValueError for a list without a readable video, with more unreadable ones than data.max_unreadable allows, or
    with fewer videos than a step needs. Prints what the list holds and who decodes it.
    """
    world = world or World()
    grad_accum_steps = order.grad_accum_steps(global_batch_size, data.batch_size, world.size)
    views = dataclasses.replace(
        _views(data, train=True),
        crop_scale=data.crop_scale,
        crop_ratio=data.crop_ratio,
        short_side_range=data.short_side_range,
        hflip=data.hflip,
        augment=parse_policy(data.rand_augment, data.color_jitter, data.grayscale),
        aug_repeats=data.aug_repeats,
    )
    batch_size = data.batch_size // data.aug_repeats
    loader = _build_loader(dataset, data, views, batch_size, device, dtype, world, seed, grad_accum_steps)
    unusable = [info for info in loader.infos if info.error]
    if len(unusable) > data.max_unreadable * len(loader.infos):
        raise ValueError(
            f"{dataset.path}: {len(unusable)} of its {len(loader.infos)} videos cannot be read, more than "
            f"data.max_unreadable={data.max_unreadable} allows; the first: {unusable[0].path}: {unusable[0].error} "
            f"(python -m pipelines.index {dataset.path} names all)"
        )
    if not len(loader):
        times = f", {grad_accum_steps} times (optim.global_batch_size={global_batch_size})" * (grad_accum_steps > 1)
        raise ValueError(
            f"{dataset.path}: {len(dataset.videos)} videos do not fill one step of data.batch_size={data.batch_size} "
            f"on {world.size} process(es){times}"
        )
    return loader


def build_eval_loader(
    dataset: Dataset,
    data: Data,
    test: Eval | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    world: World | None = None,
    seed: int = 0,
) -> VideoLoader:
    """Build the loader of a validation list (one center view), or with `test` of a test list (its clips x crops).

    Raises ValueError for a list without a readable video. Prints what the list holds and who decodes it.
    """
    batch_size = test.batch_size if test else data.batch_size
    test = test or ONE_VIEW
    views = dataclasses.replace(
        _views(data, train=False),
        num_clips=test.num_clips,
        clip_placement=test.clip_placement,
        num_crops=test.num_crops,
        short_side=short_side_pixels(test.short_side, data.image_size),
    )
    return _build_loader(dataset, data, views, batch_size, device, dtype, world or World(), seed, grad_accum_steps=1)


def _build_loader(  # noqa: PLR0913  # what the two functions above have worked out
    dataset: Dataset,
    data: Data,
    views: ViewSpec,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
    seed: int,
    grad_accum_steps: int,
) -> VideoLoader:
    infos = world.broadcast(lambda: build_index(dataset.videos, cache_path(dataset.path)))
    readable = [info for info in infos if not info.error]
    if not readable:
        first = f"{infos[0].path}: {infos[0].error}"
        raise ValueError(f"{dataset.path}: none of its {len(infos)} videos can be read; the first: {first}")
    decoders, dali = _plan(readable, data, device, world)
    num_batches = order.batches_per_epoch(
        len(infos), batch_size, world.size, train=views.train, grad_accum_steps=grad_accum_steps
    )
    source = SampleSource(
        videos=share(dataset.videos),
        infos=share(infos),
        views=views,
        batch_size=batch_size,
        seed=seed,
        world=world,
        decoders=decoders,
        faults=Faults(len(infos), max(num_batches, 1), world.rank),
        fill=mean_color(data.mean),
        decode_timeout=data.decode_timeout,
        grad_accum_steps=grad_accum_steps,
    )
    if world.is_main:
        who = describe_plan(readable, decoders, data.decoder, dali)
        print(f"{dataset.path}: {describe(dataset.videos, infos)}; decoder: {who}", flush=True)
        _print_notes(dataset, source, readable)
    pipeline = PipelineConfig(
        views=views,
        uses_dali=decoders.uses_dali,
        mean=data.mean,
        std=data.std,
        dtype="float32" if dtype is torch.float32 else "float16",
        device_id=world.local_rank if device.type == "cuda" else None,
        num_threads=dali_threads(data.dali_threads, decoders),
        prefetch=data.prefetch,
        num_workers=data.num_workers,
    )
    return VideoLoader(source, pipeline, device, data.max_unreadable)


def _plan(
    infos: Sequence[VideoInfo], data: Data, device: torch.device, world: World
) -> tuple[DecoderPlan, DaliSupport]:
    """Decide who decodes what. Every rank decodes as the first one does, unless a card cannot: then none uses NVDEC."""
    dali = max(world.gather(probe_dali(device)), key=lambda support: bool(support.problem))
    cores = max(1, min(data.num_workers, len(os.sched_getaffinity(0)) // local_world_size()))
    return world.broadcast(lambda: plan_decoders(infos, data.decoder, data.pyav_share, dali, cores)), dali


def _views(data: Data, train: bool) -> ViewSpec:
    return ViewSpec(
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        image_size=data.image_size,
        short_clip=data.short_clip,
        train=train,
        fps=data.fps,
        sampling=data.sampling,
        snap_to_keyframes=data.snap_to_keyframes,
        crop=data.crop,
    )


def dali_threads(wanted: int | str, decoders: DecoderPlan) -> int:
    """Turn data.dali_threads into a number.

    auto: a thread of DALI waits for each frame that NVDEC decodes, so two keep an engine busy; on a CPU one per core,
    at most four.
    """
    if wanted != "auto":
        return int(wanted)
    engines = max((limits.engines for limits in decoders.capabilities.values()), default=1)
    return 2 * engines if engines > 1 else min(4, len(os.sched_getaffinity(0)))


def describe(videos: Sequence[VideoEntry], infos: Sequence[VideoInfo]) -> str:
    """Describe a list in one line: its coverage and the number of classes that occur."""
    return f"{coverage(infos)}, {len({video.label for video in videos})} classes"


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
        snapped, unsnapped = (s.choose_frames(index, order.sample_rng(s.seed, 0, index)) for s in (source, free))
        shifts.append(np.abs(snapped - unsnapped).ravel())
        on_keyframe.append(np.isin(snapped, info.keyframes).ravel())
    shift, percent = np.concatenate(shifts), 100 * np.concatenate(on_keyframe).mean()
    return f"frames moved by {shift.mean():.2f} on average, {shift.max()} at most; {percent:.1f} % are key frames"
