"""The loaders that benches measure, all over the same drawn clips: Clipline's, DALI's own reader, and those of
bench.baselines.loaders and bench.baselines.thread_loaders."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from bench.baselines import loaders, thread_loaders
from configs import loading
from pipelines.dali_probe import probe_dali
from pipelines.decode import nvdec
from pipelines.decode.decoder_choice import Decoders
from pipelines.loader import VideoLoader, build_loader
from pipelines.sampling import order
from utils.distributed import World

# And dali_reader: what a ratio is taken to; pyav is naive.
PEERS = ("decord", "torchcodec", "torchcodec_approx", *thread_loaders.READERS)
OURS = {"clipline_host": (True, True), "clipline_dali": (False, True), "dali_untrimmed": (False, False)}
CASES = ("clipline", *PEERS, "pyav", *OURS, "dali_reader")


def our_loader(
    paths: Sequence[str], count: int, folder: Path, device: torch.device, half: bool = False, **wanted: Any
) -> VideoLoader:
    """The loader that training would get for a list that names each file often enough for one epoch of `count` clips.

    `wanted` are keys of data; `seed` is the run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "train.txt"
    listed.write_text("".join(f"{os.path.abspath(paths[i % len(paths)])} 0\n" for i in range(count)))
    words = [f"data.train={listed}", f"run.seed={wanted.pop('seed', 0)}"]
    cfg = loading.load(None, [*words, *(f"data.{key}={value}" for key, value in wanted.items())])
    return build_loader(cfg, "train", [], World(), device, half)


def decoder_name(decoders: Decoders) -> str:
    """Who decodes, in a result: host, dali or both."""
    if not decoders.uses_dali:
        return "host"
    return "both" if decoders.pyav_share else "dali"


def variant(loader: VideoLoader, host: bool, trimmed: bool) -> VideoLoader | None:
    """The loader with one decoder alone, trimming or not; None if DALI cannot decode these files here."""
    capabilities = probe_dali(loader.device).capabilities
    if not host and any(nvdec.reason_refused(row, capabilities) for row in loader.source.rows):
        return None
    return with_decoders(loader, Decoders() if host else Decoders(capabilities, 0.0), trimmed)


def with_decoders(loader: VideoLoader, decoders: Decoders, trimmed: bool) -> VideoLoader:
    """The loader with other decoders, trimming or not."""
    source = dataclasses.replace(loader.source, decoders=decoders, trimmed=trimmed)
    return VideoLoader(source, dataclasses.replace(loader.graph, uses_dali=decoders.uses_dali), loader.device)


def draw(loader: VideoLoader, count: int) -> list[loaders.Drawn]:
    """The first clips in the order of the loader, as its source draws them."""
    source, drawn = loader.source, []
    for place in range(count):
        step, slot = divmod(place, source.batch)
        row, _ = source.row_of(step, slot)
        frames, boxes, mirror = source.choose(row, order.generator(source.seed, step // source.steps, row))
        top, left, bottom, right = map(round, boxes[0].tolist())
        clip, box = source.clips[row], (top, left, bottom - top, right - left)
        drawn.append(loaders.Drawn(clip.path, tuple(frames.ravel().tolist()), box, bool(mirror[0]), clip.label))
    return drawn


def batches_of(
    case: str, loader: VideoLoader, drawn: Sequence[loaders.Drawn], workers: int, prefetch: int, folder: Path
) -> Iterator[torch.Tensor]:
    """The drawn clips as one of CASES delivers them. Raises RuntimeError that says why it cannot be had."""
    if case == "clipline":
        return (batch.video for batch in loader)
    if case in OURS or case == "dali_reader":
        host, trimmed = OURS.get(case, (False, True))
        other = variant(loader, host, trimmed)
        if not other:
            raise RuntimeError("DALI does not decode these files here")
        if case == "dali_reader":
            return dali_reader(loader, drawn, folder)
        if (host, trimmed) == (not loader.source.decoders.uses_dali, loader.source.trimmed):
            raise RuntimeError("it is clipline here")
        return (batch.video for batch in other)
    if case in thread_loaders.READERS:
        return in_threads(case, loader, drawn, workers, prefetch)
    if reason := loaders.missing(case, drawn[0].path):
        raise RuntimeError(reason)
    clips = loaders.Clips(case, drawn, loader.source.views.size, loader.graph.mean, loader.graph.std)
    pairs = loaders.batches(clips, loader.source.batch, workers, prefetch, pin=loader.device.type == "cuda")
    return (video.to(loader.device, non_blocking=True) for video, _ in pairs)


def in_threads(
    case: str, loader: VideoLoader, drawn: Sequence[loaders.Drawn], threads: int, prefetch: int
) -> Iterator[torch.Tensor]:
    """The drawn clips as one of thread_peers delivers them. Raises RuntimeError that says why it cannot be had."""
    rows = loader.source.rows
    largest = max(row.width for row in rows), max(row.height for row in rows)
    views, graph = loader.source.views, loader.graph
    clips = thread_loaders.Clips(case, loader.device, largest, max(threads, 1), views.size, graph.mean, graph.std)
    if reason := thread_loaders.missing(clips, drawn[0]):
        raise RuntimeError(reason)
    batches = thread_loaders.batches(clips, drawn, loader.source.batch, prefetch)
    return (video.to(loader.device, non_blocking=True) for video in batches)


def dali_reader(loader: VideoLoader, drawn: Sequence[loaders.Drawn], folder: Path) -> Iterator[torch.Tensor]:
    """DALI's video reader, which opens the files and seeks in them itself: (B, C, T, H, W) float32.

    On a GPU `readers.video`, on a CPU the experimental one. Raises RuntimeError for what it cannot decode.
    """
    graph, views = loader.graph, loader.source.views
    step = int(views.stride)
    if any((np.diff(clip.frames) != step).any() for clip in drawn):
        raise RuntimeError("it cannot start a video over that is shorter than a clip")
    lines = [f"{clip.path} {n} {clip.frames[0]} {clip.frames[-1] + 1}\n" for n, clip in enumerate(drawn)]
    listed = folder / "reader.txt"
    listed.write_text("".join(lines))
    boxes = np.array([clip.box for clip in drawn], np.float32)
    on_gpu = graph.device_id is not None
    if on_gpu:
        span = (views.frames - 1) * step + 1  # of the file a clip each: the next would begin after its end
        read, how = fn.readers.video, {"device": "gpu", "file_list_frame_num": True, "step": span}
    else:
        read, how = fn.experimental.readers.video, {"device": "cpu", "file_list_format": "frames", "pad_mode": "edge"}
        how["file_list_include_end"] = False

    @pipeline_def(
        batch_size=loader.source.batch, num_threads=graph.threads, device_id=graph.device_id, exec_dynamic=True,
        prefetch_queue_depth=graph.prefetch,
    )  # fmt: skip
    def described() -> Any:
        video, _ = read(
            file_list=str(listed), stride=step, sequence_length=views.frames, prefetch_queue_depth=graph.prefetch, **how
        )
        corner, size, mirror = fn.external_source(
            lambda place: (boxes[place.idx_in_epoch, :2], boxes[place.idx_in_epoch, 2:],
                           np.int32(drawn[place.idx_in_epoch].mirror)),
            num_outputs=3, batch=False, dtype=[types.FLOAT, types.FLOAT, types.INT32],
        )  # fmt: skip
        video = fn.resize(video, size=(views.size, views.size), roi_start=corner, roi_end=corner + size)
        video = fn.reshape(video, layout="DHWC")
        return fn.crop_mirror_normalize(
            video, mirror=mirror, output_layout="CDHW", dtype=types.FLOAT, mean=[255 * m for m in graph.mean],
            std=[255 * s for s in graph.std],
        )  # fmt: skip

    pipe = described()
    pipe.build()
    while True:
        (clips,) = pipe.run()
        yield torch.from_dlpack(clips.as_tensor())


def compare(first: dict[str, torch.Tensor], std: Sequence[float]) -> dict[str, dict[str, float]]:
    """How far the first batches are from the first case's, in grey levels of 255: mean, and mean of the worst clip."""
    (reference, theirs), *others = first.items()
    levels = 255 * torch.tensor(std).reshape(3, 1, 1, 1)
    differences = {case: ((batch - theirs).abs() * levels).mean((1, 2, 3, 4)) for case, batch in others}
    return {
        case: {"mean": round(d.mean().item(), 3), "worst_clip": round(d.max().item(), 3), "to": reference}
        for case, d in differences.items()
    }
