"""The loaders: a list of videos in, batches of normalized clips on the device out.

    from pipelines.loader import EvalVideoLoader, VideoLoader

    with VideoLoader("train.csv", num_frames=16, frame_stride=4, image_size=224, batch_size=8) as loader:
        for batch in loader:    # the rest of the current epoch
            batch.video         # (B, C, T, H, W), normalized, on the device; DALI's own buffer
            batch.label         # (B,)

Every key of the configuration's section data is a keyword argument, with the schema's type, bounds and default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from configs import loading
from configs.schema import Config, Data, Eval
from pipelines.batch_loader import BatchLoader
from pipelines.build_source import LoaderContext, build_source
from pipelines.dali_graph import PipelineConfig
from pipelines.data.dataset import Dataset, load_dataset
from pipelines.decode.decoder_choice import DecoderPlan
from pipelines.device_augment import build_transforms
from pipelines.sample_source import SampleSource, ViewSpec
from pipelines.sampling import order
from pipelines.sampling.rand_augment import parse_policy
from pipelines.sampling.spatial import short_side_pixels
from utils.distributed import World
from utils.paused_gc import paused_gc

Videos = str | Path | Dataset | Sequence[Any]  # a list file, a class folder, a data set, or entries in memory
_LISTS = ("train", "val", "test")  # keys of the section data that name lists, which the loaders take as `videos`
_VIEWS = ("preset", "num_clips", "clip_placement", "num_crops", "short_side", "batch_size")  # of the section eval


class _ListLoader(BatchLoader):
    """Iterate over the videos of a list, and keep what the list says."""

    dataset: Dataset

    @property
    def classes(self) -> list[str]:
        """The class names, by label; empty if the labels are no classes."""
        return self.dataset.classes


class VideoLoader(_ListLoader):
    """Yield random clips of a training list, shuffled anew in each epoch: video (B, C, T, H, W), label (B,).

    With num_clips > 1 there are several clips of each video, which share crop and augmentation: (B, L, C, T, H, W).

    `videos` is a list file, a folder with a folder per class, entries in memory ("a.mp4", label) or ("a.mp4", start,
    end, label), or a Dataset. Keyword arguments are keys of the section data; `data` holds the values of the others.
    `device` is auto, cpu, cuda or a torch.device; `dtype` float32 or float16. With torch.distributed initialized, each
    rank gets its part of every batch; `world` says otherwise. `global_batch_size` is optim.global_batch_size: an epoch
    then has whole optimizer steps. `classes` are the class names if they are not those of `videos`. With
    `labeled=False`, for pre-training, a list or folder needs no labels, and label is -1; with None it may have none.

    Prints what the list holds and who decodes it. Raises ValueError for a wrong argument, for a list without a
    readable video, with more unreadable ones than max_unreadable allows, or with fewer videos than a step needs.
    """

    @paused_gc()  # a list may have hundreds of thousands of videos
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
        labeled: bool | None = True,
        **keys: Any,
    ):
        data = _sections(data, None, keys, takes_views=False).data
        run = LoaderContext.choose(device, dtype, seed, world)
        few = {"max_per_class": data.max_per_class, "few_shot_seed": data.few_shot_seed}
        self.dataset = _load_list(videos, data, run, classes=classes, labeled=labeled, **few)
        if not self.dataset.classes and self.dataset.targets is None and (data.mixup or data.cutmix):
            key = "mixup" if data.mixup else "cutmix"
            raise ValueError(f"data.{key}={getattr(data, key)}: expected 0 for {self.dataset.path}, without labels")
        if not self.dataset.classes and data.balance:
            raise ValueError(f"data.balance={data.balance}: expected nothing for {self.dataset.path}, without classes")
        size = run.world.size
        grad_accum_steps = order.grad_accum_steps(global_batch_size, data.batch_size, size)
        batch_size = data.batch_size // data.aug_repeats
        source = build_source(self.dataset, data, _train_views(data), run, batch_size, grad_accum_steps)
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


class EvalVideoLoader(_ListLoader):
    """Yield the views of each video of a test list, once and in order: video (B, V, C, T, H, W), label (B,).

    V = num_clips x num_crops; view c * num_crops + k is crop k of clip c. Keyword arguments are keys of the section
    data and, of the section eval, preset, num_clips, clip_placement, num_crops, short_side and batch_size (videos per
    batch); `data` and `test` hold the values of the others. Nothing is random, so keys of the augmentation have no
    effect. `classes` are those of training (`VideoLoader.classes`), whose numbers the labels are. The other arguments
    are VideoLoader's. sample_index is -1 for what must not be scored: padding of the last batch, unreadable videos.

    Prints what the list holds and who decodes it. Raises ValueError for a wrong argument and for a list without a
    readable video.
    """

    @paused_gc()  # a list may have hundreds of thousands of videos
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
        labeled: bool | None = True,
        **keys: Any,
    ):
        cfg = _sections(data, test, keys, takes_views=True)
        data, test = cfg.data, cfg.eval
        run = LoaderContext.choose(device, dtype, seed, world)
        number = data.eval_max_per_class
        self.dataset = _load_list(videos, data, run, classes=classes, labeled=labeled, max_per_class=number)
        source = build_source(self.dataset, data, _eval_views(data, test), run, test.batch_size)
        super().__init__(source, _pipeline_config(source, data, run), run.device, targets=self.dataset.targets)


def _load_list(videos: Videos, data: Data, run: LoaderContext, **options: Any) -> Dataset:
    """Read the list on the main rank, for all of them; `options` are those of load_dataset()."""
    names: dict[str, Any] = {"class_names": data.class_names, "class_subset": data.class_subset}
    names["multi_label"] = data.multi_label
    return run.world.broadcast(lambda: load_dataset(videos, data.root, **names, **options))


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
        num_clips=data.num_clips,
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


def _pipeline_config(source: SampleSource, data: Data, run: LoaderContext) -> PipelineConfig:
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


def dali_threads(wanted: int | str, decoders: DecoderPlan) -> int:
    """Turn data.dali_threads into a number.

    auto: a thread of DALI waits for each frame that NVDEC decodes, so two keep an engine busy; on a CPU one per core,
    at most four.
    """
    if wanted != "auto":
        return int(wanted)
    engines = max((limits.engines for limits in decoders.capabilities.values()), default=1)
    return 2 * engines if engines > 1 else min(4, len(os.sched_getaffinity(0)))
