"""Measure what may limit a run beside the loader: the training step, the bytes, decoding; and what preparing gains."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from configs import loading
from configs.schema import Config
from pipelines import prepare, storage
from pipelines.batch_loader import Batch
from pipelines.data.dataset import VideoEntry
from pipelines.decode.encoded_frames import read_encoded_frames
from pipelines.decode.frame_table import required_packets
from pipelines.decode.prove import open_video
from pipelines.decode.video_info import VideoInfo, read_video_info
from pipelines.loader import VideoLoader
from pipelines.sample_source import SampleSource
from pipelines.sampling import order
from pipelines.tuning.trials import Sample
from training.objective import build_task
from training.setup import build_network, build_state, freeze, is_compiled
from utils.device import autocast, choose_dtype, clip_dtype
from utils.workers import worker_pool

_PREPARED_FILES = 8


class StepSpeed(NamedTuple):
    """The speed of the training step on a constant batch."""

    clips_per_s: float
    clips: int  # per step


def measure_step(cfg: Config, num_classes: int, device: torch.device, seconds: float) -> StepSpeed:
    """Time the training step of train.py alone for about `seconds` after a first one, which may compile.

    Where a step of data.batch_size clips takes too long, one of a single clip is timed instead. Raises
    torch.OutOfMemoryError if the device has too little memory.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.run.cpu_threads or max(1, len(os.sched_getaffinity(0)) - 1))  # as train.py
    try:
        make_step = _training_step(loading.replace_values(cfg, "run", parallel="ddp"), num_classes, device)
        clips, durations = cfg.data.batch_size, list[float]()
        step = make_step(1 if device.type == "cpu" else clips)
        step()
        if device.type == "cpu" and clips > 1:
            durations = [_time(step, device)]
            if 2 * clips * durations[0] > seconds:
                clips = 1
            else:
                step, durations = make_step(clips), []
                step()
        while not durations or sum(durations) < seconds / 2:
            durations.append(_time(step, device))
        return StepSpeed(clips * len(durations) / sum(durations), clips)
    finally:
        torch.set_num_threads(threads)


def _training_step(cfg: Config, num_classes: int, device: torch.device) -> Callable[[int], Callable[[], None]]:
    """Return a function that makes the training step for a number of clips."""
    dtype = choose_dtype(cfg.run.precision, device)
    network = build_network(cfg, num_classes)
    if cfg.model.freeze:
        freeze(network, cfg.model.freeze)
    state = build_state(cfg, network.to(device), 1, dtype, 1)
    task = build_task(cfg, network, compiled=is_compiled(cfg, device))
    state.model.train()
    data = cfg.data

    def make_step(clips: int) -> Callable[[], None]:
        shape: tuple[int, ...] = (clips, 3, data.num_frames, data.image_size, data.image_size)
        if data.num_clips > 1:
            shape = (clips, data.num_clips, *shape[1:])
        video = torch.randn(shape, device=device).to(clip_dtype(dtype))
        index = torch.arange(clips, device=device)
        batch = Batch(video, index % num_classes, index, tuple((0, 0, number) for number in range(clips)))

        def step() -> None:
            with autocast(device, dtype):
                out = task(state.model, batch)
                state.scaler.scale(out["loss"]).backward()
            state.optimizer_step(cfg.optim.clip_grad_norm, cfg.optim.clip_mode == "per_param")

        return step

    return make_step


def _time(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


# --- bytes --------------------------------------------------------------------------------------------------------


class ReadingSpeed(NamedTuple):
    """The speed of reading the bytes of clips without decoding them."""

    clips_per_s: float
    bytes_per_clip: float
    is_cold: bool  # from where the files are; False: the system keeps them in its page cache


def measure_reading(source: SampleSource, threads: int, seconds: float) -> ReadingSpeed:
    """Read the byte ranges of one clip per file in some threads, from a cold page cache where that is possible."""
    by_path = {info.path: index for index, info in enumerate(source.infos)}
    ranges = {}
    for path, index in by_path.items():
        with contextlib.suppress(ValueError):  # the part that an entry means may lie after the end of its video
            ranges[path] = _ranges_of_clip(source, index)
    is_cold = _forgets_pages(next(iter(ranges)))
    spent, num_clips, num_bytes, begin = 0.0, 0, 0, time.monotonic()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        while not num_clips or time.monotonic() - begin < seconds:
            for path in ranges:
                _drop_from_page_cache(path)
            start = time.perf_counter()
            num_bytes += sum(pool.map(_read, ranges, ranges.values()))
            spent += time.perf_counter() - start
            num_clips += len(ranges)
    return ReadingSpeed(num_clips / spent, num_bytes / num_clips, is_cold)


def _ranges_of_clip(source: SampleSource, index: int) -> Callable[[], int] | list[tuple[int, int]]:
    """Return the byte ranges of a clip, or a function that reads what has none, such as images of a folder."""
    info = source.infos[index]
    frames = source.choose_frames(index, order.sample_rng(source.seed, 0, index)).reshape(-1)
    if info.is_image_folder:
        return partial(_read_folder, info, frames.tolist())
    with open_video(info.path, table=info.table) as video:
        table = video.frame_table
        if video.raw_packets or table.seek_points or not table.is_remuxable:  # then the loader reads the whole file
            return [(0, info.size)]
        keep, _ = required_packets(table, frames)
        return [video.byte_ranges[number] for number in keep]


def _read_folder(info: VideoInfo, frames: Sequence[int]) -> int:
    return len(read_encoded_frames(info, torch.tensor(frames).numpy()).data)


def _read(path: str, ranges: Callable[[], int] | list[tuple[int, int]]) -> int:
    """Read and return the number of bytes."""
    return ranges() if callable(ranges) else sum(map(len, storage.read_ranges(path, ranges)))


def _drop_from_page_cache(path: str) -> None:
    """Ask the system to forget the pages of a local file, or of all images of a folder."""
    for file in _local_files(path):
        with contextlib.suppress(OSError), open(file, "rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _local_files(path: str) -> list[str]:
    if storage.is_remote(path):
        return []
    file = storage.parse_location(path).file
    return [entry.path for entry in os.scandir(file)] if os.path.isdir(file) else [file]


def _forgets_pages(path: str) -> bool:
    """Return whether the system forgets the pages of a file when it is asked to; True for a file elsewhere."""
    _drop_from_page_cache(path)
    for file in _local_files(path)[:1]:
        with contextlib.suppress(OSError), open(file, "rb", buffering=0) as opened:
            try:
                os.preadv(opened.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)  # it may start reading the page, though
            except BlockingIOError:
                return True
        return False
    return True


# --- decoding, preparing ------------------------------------------------------------------------------------------


def measure_workers(loader: VideoLoader, workers: int, seconds: float) -> float:
    """Return the clips per second of the worker processes alone: reading, and decoding unless NVDEC does it."""
    source = loader.source
    positions = [divmod(number, source.batch_size) for number in range(1 << 16)]
    count, begin, end = 0, 0.0, 0.0
    chunk = 2 * max(workers, 1)
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterator[None]] = map
        if workers:
            run = stack.enter_context(worker_pool(workers)).map
        sample = partial(_make_sample, source)
        list(run(sample, positions[: 2 * chunk]))  # starts all processes
        begin = end = time.perf_counter()
        while end - begin < seconds:
            for _ in run(sample, positions[count : count + 4 * chunk]):
                count += 1
            end = time.perf_counter()
    return count / (end - begin)


def _make_sample(source: SampleSource, position: tuple[int, int]) -> None:
    source.sample(*position)


def prepare_sample(sample: Sample, folder: Path, image_size: int, seconds: float) -> tuple[Sample, Sample]:
    """Prepare the first files of a sample, as many as there is time for; return their originals and themselves.

    Both are empty if not even one was prepared in time.
    """
    settings = prepare.Settings(short_side=prepared_short_side(image_size))
    settings = replace(settings, encoder="nvenc" if prepare.nvenc_works(settings.codec) else "software")
    chosen: dict[str, tuple[VideoEntry, VideoInfo]] = {}
    for video, info in zip(sample.dataset.videos, sample.infos, strict=True):
        chosen.setdefault(info.path, (video, info))
    paths = list(chosen)[:_PREPARED_FILES]
    targets = {path: str(folder / f"{number}.mp4") for number, path in enumerate(paths)}
    end = time.monotonic() + seconds

    def work(path: str) -> str:
        if time.monotonic() > end:
            return ""
        return prepare.prepare_file(settings, targets, path).target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # encoders compute without Python's lock
        done = [path for path, target in zip(paths, pool.map(work, paths), strict=True) if target]
    pairs = [chosen[path] for path in done]
    originals = [video for video, _ in pairs]
    prepared = [video._replace(path=targets[video.path]) for video in originals]
    infos = [read_video_info(video.path) for video in prepared]
    before = Sample(sample.dataset._replace(videos=originals), [info for _, info in pairs])
    return before, Sample(sample.dataset._replace(videos=prepared), infos)


def prepared_short_side(image_size: int) -> int:
    """Return the short side for pipelines.prepare: 256, or enough for larger clips, a multiple of 16."""
    return max(256, -(-image_size // 16) * 16)
