"""The loaders: a list of videos in, batches of normalized clips on the device out.

    from pipelines.loader import EvalVideoLoader, VideoLoader

    with VideoLoader("train.csv", num_frames=16, frame_stride=4, image_size=224, batch_size=8) as loader:
        for batch in loader:    # the rest of the current epoch
            batch.video         # (B, C, T, H, W), normalized, on the device; DALI's own buffer
            batch.label         # (B,)

Every key of the configuration's section data is a keyword argument, with the schema's type, bounds and default.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from configs import loading
from configs.schema import Config, Data, Eval
from pipelines.batch_loader import BatchLoader
from pipelines.dali_graph import PipelineConfig, mean_color
from pipelines.dali_probe import probe_dali
from pipelines.data.dataset import Dataset, load_dataset
from pipelines.data.metadata import build_index, cache_path, coverage
from pipelines.decode.decoder_choice import DaliSupport, DecoderPlan, describe_plan, plan_decoders
from pipelines.decode.video_info import VideoInfo
from pipelines.device_augment import build_transforms
from pipelines.known_faults import Faults
from pipelines.sample_source import SampleSource, ViewSpec
from pipelines.sampling import order
from pipelines.sampling.rand_augment import parse_policy
from pipelines.sampling.spatial import short_side_pixels
from utils.device import choose_device
from utils.distributed import World, current_world, local_world_size
from utils.shared_list import share

Videos = str | Path | Dataset | Sequence[Any]  # a list file, a class folder, a data set, or entries in memory
_LISTS = ("train", "val", "test")  # keys of the section data that name lists, which the loaders take as `videos`
_VIEWS = ("preset", "num_clips", "clip_placement", "num_crops", "short_side", "batch_size")  # of the section eval


class VideoLoader(BatchLoader):
    """Yield random clips of a training list, shuffled anew in each epoch: video (B, C, T, H, W), label (B,).

    `videos` is a list file, a folder with a folder per class, entries in memory ("a.mp4", label) or ("a.mp4", start,
    end, label), or a Dataset. Keyword arguments are keys of the section data; `data` holds the values of the others.
    `device` is auto, cpu, cuda or a torch.device; `dtype` float32 or float16. With torch.distributed initialized, each
    rank gets its part of every batch; `world` says otherwise. `global_batch_size` is optim.global_batch_size: an epoch
    then has whole optimizer steps. `classes` are the class names if they are not those of `videos`.

    Prints what the list holds and who decodes it. Raises ValueError for a wrong argument, for a list without a
    readable video, with more unreadable ones than max_unreadable allows, or with fewer videos than a step needs.
    """

    def __init__(  # noqa: PLR0913
        self,
        videos: Videos,
        data: Data | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        world: World | None = None,
        global_batch_size: int = 0,
        classes: Sequence[str] | None = None,
        **keys: Any,
    ):
        data = _sections(data, None, keys, takes_views=False).data
        run = _Run.choose(device, dtype, seed, world)
        self.dataset = run.world.broadcast(
            lambda: load_dataset(
                videos,
                data.root,
                class_names=data.class_names,
                class_subset=data.class_subset,
                classes=classes,
                max_per_class=data.max_per_class,
            )
        )
        size = run.world.size
        grad_accum_steps = order.grad_accum_steps(global_batch_size, data.batch_size, size)
        batch_size = data.batch_size // data.aug_repeats
        source = _build_source(self.dataset, data, _train_views(data), run, batch_size, grad_accum_steps)
        super().__init__(
            source,
            _pipeline_config(source, data, run),
            run.device,
            max_unreadable=data.max_unreadable,
            transforms=build_transforms(data, len(self.dataset.classes)),
            targets=self.dataset.targets,
        )
        if not len(self):
            steps = grad_accum_steps
            times = f", {steps} times (optim.global_batch_size={global_batch_size})" * (steps > 1)
            raise ValueError(
                f"{self.dataset.path}: {len(self.infos)} videos do not fill one step of "
                f"data.batch_size={data.batch_size} on {size} process(es){times}"
            )

    @property
    def classes(self) -> list[str]:
        """The class names, by label; empty if the labels are no classes."""
        return self.dataset.classes


class EvalVideoLoader(BatchLoader):
    """Yield the views of each video of a test list, once and in order: video (B, V, C, T, H, W), label (B,).

    V = num_clips x num_crops; view c * num_crops + k is crop k of clip c. Keyword arguments are keys of the section
    data and, of the section eval, preset, num_clips, clip_placement, num_crops, short_side and batch_size (videos per
    batch); `data` and `test` hold the values of the others. Nothing is random, so keys of the augmentation have no
    effect. `classes` are those of training (`VideoLoader.classes`), whose numbers the labels are. The other arguments
    are VideoLoader's. sample_index is -1 for what must not be scored: padding of the last batch, unreadable videos.

    Prints what the list holds and who decodes it. Raises ValueError for a wrong argument and for a list without a
    readable video.
    """

    def __init__(  # noqa: PLR0913
        self,
        videos: Videos,
        data: Data | None = None,
        test: Eval | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        world: World | None = None,
        classes: Sequence[str] | None = None,
        **keys: Any,
    ):
        cfg = _sections(data, test, keys, takes_views=True)
        data, test = cfg.data, cfg.eval
        run = _Run.choose(device, dtype, seed, world)
        self.dataset = run.world.broadcast(
            lambda: load_dataset(
                videos,
                data.root,
                class_names=data.class_names,
                class_subset=data.class_subset,
                classes=classes,
                max_per_class=data.eval_max_per_class,
            )
        )
        source = _build_source(self.dataset, data, _eval_views(data, test), run, test.batch_size)
        super().__init__(source, _pipeline_config(source, data, run), run.device, targets=self.dataset.targets)

    @property
    def classes(self) -> list[str]:
        """The class names, by label; empty if the labels are no classes."""
        return self.dataset.classes


class _Run(NamedTuple):
    """Where and how precisely batches are made."""

    device: torch.device
    dtype: torch.dtype
    seed: int
    world: World

    @staticmethod
    def choose(device: str | torch.device, dtype: torch.dtype, seed: int, world: World | None) -> _Run:
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
        return _Run(device, dtype, seed, world)


def _sections(data: Data | None, test: Eval | None, keys: Mapping[str, Any], takes_views: bool) -> Config:
    """Return the configuration in which keyword arguments have replaced keys of the section data (or eval: _VIEWS).

    Raises ValueError for an unknown argument, with the nearest known one, and for a value that does not fit.
    """
    values, views = dict(data.model_dump() if data else {}), test.model_dump() if test else {}
    for key, value in keys.items():
        if key in _LISTS:
            raise ValueError(f"{key}={value}: expected the list as the first argument")
        if key == "tune":
            raise ValueError(f"tune={value}: expected it in train.py; for a loader, pass what pipelines.tuning returns")
        if takes_views and key in _VIEWS:
            views[key] = value
        else:
            values[key] = value
    return loading.make_config(data=values, eval=views if takes_views else {"num_crops": 1})


def _train_views(data: Data) -> ViewSpec:
    return ViewSpec(
        train=True,
        crop_scale=data.crop_scale,
        crop_ratio=data.crop_ratio,
        short_side_range=data.short_side_range,
        hflip=data.hflip,
        augment=parse_policy(data.rand_augment, data.color_jitter, data.grayscale),
        aug_repeats=data.aug_repeats,
        **_frames_and_size(data),
    )


def _eval_views(data: Data, test: Eval) -> ViewSpec:
    return ViewSpec(
        train=False,
        num_clips=test.num_clips,
        clip_placement=test.clip_placement,
        num_crops=test.num_crops,
        short_side=short_side_pixels(test.short_side, data.image_size),
        **_frames_and_size(data),
    )


def _frames_and_size(data: Data) -> dict[str, Any]:
    """Return the arguments of ViewSpec that training and evaluation share."""
    keys = ("num_frames", "frame_stride", "image_size", "short_clip", "fps", "sampling", "snap_to_keyframes", "crop")
    return {key: getattr(data, key) for key in keys}


def _build_source(
    dataset: Dataset, data: Data, views: ViewSpec, run: _Run, batch_size: int, grad_accum_steps: int = 1
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
        raise ValueError(
            f"{dataset.path}: {len(infos) - len(readable)} of its {len(infos)} videos cannot be read, more than "
            f"data.max_unreadable={data.max_unreadable} allows; the first: {unusable.path}: {unusable.error} "
            f"(python -m pipelines.index {dataset.path} names all)"
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
    )
    if world.is_main:
        who = describe_plan(readable, decoders, data.decoder, dali)
        print(f"{dataset.path}: {describe(dataset, infos)}; decoder: {who}", flush=True)
        _print_notes(dataset, source, readable)
    return source


def _pipeline_config(source: SampleSource, data: Data, run: _Run) -> PipelineConfig:
    return PipelineConfig(
        views=source.views,
        uses_dali=source.decoders.uses_dali,
        mean=data.mean,
        std=data.std,
        dtype="float32" if run.dtype is torch.float32 else "float16",
        device_id=run.device.index if run.device.type == "cuda" else None,
        num_threads=dali_threads(data.dali_threads, source.decoders),
        prefetch=data.prefetch,
        num_workers=data.num_workers,
        max_images=min(source.decoders.max_images, source.views.num_clips * source.views.num_frames),
        has_videos=source.decoders.needs_video_decoder,
    )


def _plan(
    infos: Sequence[VideoInfo], data: Data, device: torch.device, world: World
) -> tuple[DecoderPlan, DaliSupport]:
    """Decide who decodes what. Every rank decodes as the first one does, unless a card cannot: then none uses NVDEC."""
    dali = max(world.gather(probe_dali(device)), key=lambda support: bool(support.problem))
    cores = max(1, min(data.num_workers, len(os.sched_getaffinity(0)) // local_world_size()))
    return world.broadcast(lambda: plan_decoders(infos, data.decoder, data.pyav_share, dali, cores)), dali


def dali_threads(wanted: int | str, decoders: DecoderPlan) -> int:
    """Turn data.dali_threads into a number.

    auto: a thread of DALI waits for each frame that NVDEC decodes, so two keep an engine busy; on a CPU one per core,
    at most four.
    """
    if wanted != "auto":
        return int(wanted)
    engines = max((limits.engines for limits in decoders.capabilities.values()), default=1)
    return 2 * engines if engines > 1 else min(4, len(os.sched_getaffinity(0)))


def describe(dataset: Dataset, infos: Sequence[VideoInfo]) -> str:
    """Describe a list in one line: its coverage, and the number of classes that occur."""
    if dataset.targets is not None:
        return f"{coverage(infos)}, labels of shape {dataset.targets.shape[1:]}"
    return f"{coverage(infos)}, {len({video.label for video in dataset.videos})} classes"


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
        on_keyframe.append(np.isin(snapped, info.keyframes).ravel() | info.is_image_folder)
    shift, percent = np.concatenate(shifts), 100 * np.concatenate(on_keyframe).mean()
    return f"frames moved by {shift.mean():.2f} on average, {shift.max()} at most; {percent:.1f} % are key frames"
