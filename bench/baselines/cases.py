"""Open every loader that is measured (Clipline, DALI's own reader, the baselines) on the same drawn clips."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from bench.baselines import loaders, readers, spdl_loader, thread_loaders
from bench.baselines.clips import DrawnClip, Normalize
from pipelines.batch_loader import BatchLoader
from pipelines.dali_probe import probe_dali
from pipelines.decode import nvdec
from pipelines.decode.decoder_choice import DecoderPlan
from pipelines.loader import VideoLoader
from pipelines.sampling import order


class ClipSource(NamedTuple):
    """The way Clipline reads in a case: who decodes, and whether files are trimmed before."""

    by_pyav: bool
    trimmed: bool


# Speed-ups refer to these and to dali_reader.
CPU_BASELINES = ("decord2", "torchcodec", "torchcodec_approx", "video_reader_rs", "pyav", *spdl_loader.READERS)
BASELINES = (*CPU_BASELINES, *thread_loaders.READERS, "decord")
CLIPLINE_SOURCES = {
    "clipline_pyav": ClipSource(by_pyav=True, trimmed=True),
    "clipline_dali": ClipSource(by_pyav=False, trimmed=True),
    "dali_untrimmed": ClipSource(by_pyav=False, trimmed=False),
}
CASES = ("clipline", *BASELINES, *CLIPLINE_SOURCES, "dali_reader")
# decord 0.6.0, the last release, is from 2021; whoever has it can still ask for it.
DEFAULT_CASES = tuple(case for case in CASES if case != "decord")


def clipline_loader(
    paths: Sequence[str],
    num_clips: int,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **data_keys: Any,
) -> VideoLoader:
    """Build the training loader of a list that repeats the files until an epoch has `num_clips` clips.

    The list is written into `folder`; `data_keys` are keys of the configuration's section data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    list_file = folder / "train.txt"
    list_file.write_text("".join(f"{os.path.abspath(paths[i % len(paths)])} 0\n" for i in range(num_clips)))
    return VideoLoader(list_file, device=device, dtype=dtype, seed=seed, **data_keys)


def decoder_name(decoders: DecoderPlan) -> str:
    """Name the decoder of a result: pyav, dali or both."""
    if not decoders.uses_dali:
        return "pyav"
    return "both" if decoders.pyav_share else "dali"


def with_source(loader: VideoLoader, source: ClipSource) -> BatchLoader | None:
    """Return the loader with a single decoder, trimming or not; None if DALI cannot decode these files here."""
    capabilities = probe_dali(loader.device).capabilities
    if not source.by_pyav and any(nvdec.reason_refused(info, capabilities) for info in loader.infos):
        return None
    plan = DecoderPlan() if source.by_pyav else DecoderPlan(capabilities, 0.0)
    return with_decoders(loader, plan, source.trimmed)


def with_decoders(loader: VideoLoader, decoders: DecoderPlan, trimmed: bool) -> BatchLoader:
    """Return the loader with other decoders, trimming or not."""
    source = dataclasses.replace(loader.source, decoders=decoders, trimmed=trimmed)
    return BatchLoader(source, dataclasses.replace(loader.pipeline, uses_dali=decoders.uses_dali), loader.device)


def draw_clips(loader: VideoLoader, num_clips: int) -> list[DrawnClip]:
    """Return the first clips of the loader as its source draws them."""
    source, drawn_clips = loader.source, []
    for number in range(num_clips):
        batch_index, slot = divmod(number, source.batch_size)
        index, *_ = source.sample_at(batch_index, slot)
        rng = order.sample_rng(source.seed, batch_index // source.num_batches, index)
        frames, boxes, mirror = source.choose_views(index, rng)
        top, left, bottom, right = map(round, boxes[0].tolist())
        video = loader.videos[index]
        drawn_clips.append(
            DrawnClip(
                path=video.path,
                frames=tuple(frames.ravel().tolist()),
                box=(top, left, bottom - top, right - left),
                mirror=bool(mirror[0]),
                label=video.label,
            )
        )
    return drawn_clips


def open_batches(
    case: str, loader: VideoLoader, drawn_clips: Sequence[DrawnClip], folder: Path
) -> Iterator[torch.Tensor]:
    """Start one of CASES on the drawn clips and return its batches (B, C, T, H, W) on the device.

    Raises RuntimeError with the reason if the case cannot run here.
    """
    if case == "clipline":
        return (batch.video for batch in loader)
    if case in CLIPLINE_SOURCES or case == "dali_reader":
        source = CLIPLINE_SOURCES.get(case, CLIPLINE_SOURCES["clipline_dali"])
        other = with_source(loader, source)
        if not other:
            raise RuntimeError("DALI does not decode these files here")
        if case == "dali_reader":
            return dali_reader(loader, drawn_clips, folder)
        if source == ClipSource(not loader.source.decoders.uses_dali, loader.source.trimmed):
            raise RuntimeError("the case clipline is the same here")
        return (batch.video for batch in other)
    if case in thread_loaders.READERS:
        return _open_threads(case, loader, drawn_clips)
    if case in spdl_loader.READERS:
        return _open_spdl(case, loader, drawn_clips)
    if reason := readers.unavailable_reason(case, drawn_clips[0].path):
        raise RuntimeError(reason)
    config = loader.pipeline
    clips = loaders.ClipDataset(case, drawn_clips, image_size=config.views.image_size, mean=config.mean, std=config.std)
    pairs = loaders.iterate_batches(
        clips,
        loader.source.batch_size,
        num_workers=config.num_workers,
        prefetch=config.prefetch,
        pin_memory=loader.device.type == "cuda",
    )
    return (video.to(loader.device, non_blocking=True) for video, _ in pairs)


def _open_threads(case: str, loader: VideoLoader, drawn_clips: Sequence[DrawnClip]) -> Iterator[torch.Tensor]:
    config, infos = loader.pipeline, loader.infos
    clip_reader = thread_loaders.ClipReader(
        case,
        loader.device,
        max_size=(max(info.width for info in infos), max(info.height for info in infos)),
        num_threads=max(config.num_workers, 1),
        image_size=config.views.image_size,
        mean=config.mean,
        std=config.std,
    )
    if reason := thread_loaders.unavailable_reason(clip_reader, drawn_clips[0]):
        raise RuntimeError(reason)
    batches = thread_loaders.iterate_batches(clip_reader, drawn_clips, loader.source.batch_size, config.prefetch)
    return (video.to(loader.device, non_blocking=True) for video in batches)


def _open_spdl(case: str, loader: VideoLoader, drawn_clips: Sequence[DrawnClip]) -> Iterator[torch.Tensor]:
    if reason := spdl_loader.unavailable_reason(case, drawn_clips[0]):
        raise RuntimeError(reason)
    config = loader.pipeline
    batches = spdl_loader.iterate_batches(
        case,
        drawn_clips,
        batch_size=loader.source.batch_size,
        num_threads=max(config.num_workers, 1),
        image_size=config.views.image_size,
        normalize=Normalize(config.mean, config.std),
    )
    return (video.to(loader.device, non_blocking=True) for video in batches)


def dali_reader(loader: VideoLoader, drawn_clips: Sequence[DrawnClip], folder: Path) -> Iterator[torch.Tensor]:
    """Read the clips with DALI's video reader, which opens the files and seeks in them itself: (B, C, T, H, W) float32.

    On a GPU that is `readers.video`, on a CPU the experimental one. Raises RuntimeError for what it cannot decode.
    """
    stride = int(loader.source.views.frame_stride)
    if any((np.diff(clip.frames) != stride).any() for clip in drawn_clips):
        raise RuntimeError("DALI's reader cannot wrap around a video that is shorter than a clip")
    lines = [f"{clip.path} {n} {clip.frames[0]} {clip.frames[-1] + 1}\n" for n, clip in enumerate(drawn_clips)]
    list_file = folder / "reader.txt"
    list_file.write_text("".join(lines))
    pipeline = _reader_pipeline(loader, drawn_clips, list_file)
    pipeline.build()
    while True:
        (video,) = pipeline.run()
        yield torch.from_dlpack(video.as_tensor())


def _reader_pipeline(loader: VideoLoader, drawn_clips: Sequence[DrawnClip], list_file: Path) -> Any:
    config, views = loader.pipeline, loader.source.views
    stride = int(views.frame_stride)
    boxes = np.array([clip.box for clip in drawn_clips], np.float32)
    if config.device_id is not None:
        span = (views.num_frames - 1) * stride + 1  # makes one clip per line: the next one would start after its end
        read, options = fn.readers.video, {"device": "gpu", "file_list_frame_num": True, "step": span}
    else:
        read, options = fn.experimental.readers.video, {"device": "cpu", "file_list_format": "frames"}
        options |= {"pad_mode": "edge", "file_list_include_end": False}

    def crop_of(position: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        number = position.idx_in_epoch
        return boxes[number, :2], boxes[number, 2:], np.int32(drawn_clips[number].mirror)  # type: ignore[return-value]

    @pipeline_def(
        batch_size=loader.source.batch_size,
        num_threads=config.num_threads,
        device_id=config.device_id,
        exec_dynamic=True,
        prefetch_queue_depth=config.prefetch,
    )
    def define() -> Any:
        video, _ = read(
            file_list=str(list_file),
            stride=stride,
            sequence_length=views.num_frames,
            prefetch_queue_depth=config.prefetch,
            **options,
        )
        corner, size, mirror = fn.external_source(
            crop_of, num_outputs=3, batch=False, dtype=[types.FLOAT, types.FLOAT, types.INT32]
        )
        video = fn.resize(video, size=(views.image_size, views.image_size), roi_start=corner, roi_end=corner + size)
        video = fn.reshape(video, layout="DHWC")
        return fn.crop_mirror_normalize(
            video,
            mirror=mirror,
            output_layout="CDHW",
            dtype=types.FLOAT,
            mean=[255 * m for m in config.mean],
            std=[255 * s for s in config.std],
        )

    return define()


def frame_differences(first_batches: dict[str, torch.Tensor], std: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Return how far the first batches are from that of the first case, in gray levels of 255.

    `mean` is over all clips, `worst_clip` the mean of the clip that differs most, `to` the first case.
    """
    (reference, reference_batch), *others = first_batches.items()
    levels = 255 * torch.tensor(std).reshape(3, 1, 1, 1)
    per_clip = {case: ((batch - reference_batch).abs() * levels).mean((1, 2, 3, 4)) for case, batch in others}
    return {
        case: {
            "mean": round(differences.mean().item(), 3),
            "worst_clip": round(differences.max().item(), 3),
            "to": reference,
        }
        for case, differences in per_clip.items()
    }
