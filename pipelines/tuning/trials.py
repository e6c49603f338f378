"""Time candidates with real loaders on a sample of the user's videos."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from configs.schema import Data
from pipelines.batch_loader import BatchLoader
from pipelines.data.cache import write_cache
from pipelines.data.dataset import Dataset, VideoEntry
from pipelines.data.metadata import build_index, cache_path
from pipelines.data.multi_label import LabelSets
from pipelines.decode.image_folder import is_image_folder
from pipelines.decode.video_info import VideoInfo
from pipelines.loader import VideoLoader
from pipelines.storage import Location, is_remote, parse_location
from pipelines.tuning.search import Candidate
from utils.distributed import World
from utils.files import temporary_folder

SAMPLE = 256  # videos: enough for a mean over their sizes and codecs, few enough to stay in the page cache
_MIN_BATCHES = 2  # that a trial times


class Sample(NamedTuple):
    """Readable videos of a list, drawn at random; `path` is that of the list that was drawn, with its index."""

    dataset: Dataset
    infos: list[VideoInfo]


def draw_sample(dataset: Dataset, seed: int, *, whole_index: bool, limit: int = SAMPLE) -> Sample:
    """Draw at most `limit` readable videos of a data set. With `whole_index` all of it is indexed first, as for a run.

    Otherwise only drawn videos are read, which takes seconds also for a list that was never indexed.
    """
    order = np.random.default_rng(seed).permutation(len(dataset.videos))
    chosen = [dataset.videos[index] for index in (order if whole_index else order[:limit])]
    infos = build_index(chosen, cache_path(dataset.path))
    pairs = [pair for pair in zip(chosen, infos, strict=True) if not pair[1].error][:limit]
    videos, infos = [video for video, _ in pairs], [info for _, info in pairs]
    # Whether labels are classes or targets changes no speed, but what they are has to fit their number.
    targets = take_targets(dataset.targets, [video.label for video in videos])
    if targets is not None:
        videos = [video._replace(label=row) for row, video in enumerate(videos)]
    return Sample(dataset._replace(videos=videos, targets=targets), infos)


def take_targets(targets: np.ndarray | LabelSets | None, rows: list[int]) -> np.ndarray | LabelSets | None:
    """Return the targets of some rows."""
    return targets.select(rows) if isinstance(targets, LabelSets) else targets[rows] if targets is not None else None


def repeat_to(sample: Sample, count: int) -> Sample:
    """Repeat the videos of a sample until there are at least `count`, so that few files fill whole batches."""
    times = -(-count // max(len(sample.infos), 1))
    videos: list[VideoEntry] = sample.dataset.videos * times
    targets = take_targets(sample.dataset.targets, [*range(len(sample.dataset.videos))] * times)
    if targets is not None:
        videos = [video._replace(label=row) for row, video in enumerate(videos)]
    return Sample(sample.dataset._replace(videos=videos, targets=targets), sample.infos * times)


def fill_page_cache(sample: Sample, seconds: float, world: World) -> Sample:
    """Read the files of a sample once, so that no candidate is slow for being the first.

    Videos that are not read after `seconds` on some rank are left out, but for the first one. Files elsewhere are not
    read: nothing keeps them.
    """
    end, count = time.monotonic() + seconds, 0
    for video in sample.dataset.videos:
        if time.monotonic() > end and count:
            break
        count += 1
        if not is_remote(video.path) and not is_image_folder(video.path):
            with contextlib.suppress(OSError):
                _read_once(parse_location(video.path))
    count = min(world.gather(count))
    return Sample(sample.dataset._replace(videos=sample.dataset.videos[:count]), sample.infos[:count])


def _read_once(location: Location) -> None:
    with open(location.file, "rb", buffering=0) as file:
        file.seek(location.start)
        left = os.fstat(file.fileno()).st_size if location.size is None else location.size
        while left > 0 and (block := file.read(min(left, 1 << 22))):
            left -= len(block)


@dataclasses.dataclass(frozen=True)
class Trials:
    """Measure candidates with loaders of a sample; all ranks of a run measure together, as they will train."""

    sample: Sample
    data: Data
    device: torch.device
    dtype: torch.dtype
    seed: int
    world: World
    failures: dict[Candidate, str] = dataclasses.field(default_factory=dict)  # why a candidate does not run
    max_seconds: float = 10.0  # after which a trial has timed enough clips

    def __call__(self, candidate: Candidate, clips: int) -> float:
        """Return the clips per second of all ranks over at least `clips` clips of each; 0 if one of them cannot run.

        Gradients are averaged in each step, so the slowest rank decides for all.
        """
        try:
            rate, problem = self._time(candidate, clips), ""
        except (ValueError, RuntimeError, OSError) as error:
            rate, problem = 0.0, (str(error).strip().splitlines() or [type(error).__name__])[0]
        results = self.world.gather((rate, problem))
        if reason := next((problem for _, problem in results if problem), ""):
            self.failures[candidate] = reason
            return 0.0
        return len(results) * min(rate for rate, _ in results)

    def with_sample(self, sample: Sample) -> Trials:
        """Return the trials of another sample."""
        return dataclasses.replace(self, sample=sample, failures={})

    def clock(self) -> float:
        """Return the seconds of the main rank's clock, so that all ranks make the same decisions."""
        return self.world.broadcast(time.monotonic)

    def _time(self, candidate: Candidate, clips: int) -> float:
        with self.open(candidate) as loader:
            batches = endless(loader)
            # What was asked for before the first batch was there was not waited for as later batches are.
            for _ in range(1 + candidate.prefetch):
                next(batches)
            _synchronize(self.device)
            begin, timed = time.perf_counter(), 0
            batch_size = self.data.batch_size
            while timed * batch_size < clips or timed < _MIN_BATCHES:
                next(batches)
                timed += 1
                if timed >= _MIN_BATCHES and time.perf_counter() - begin > self.max_seconds:
                    break
            _synchronize(self.device)
            return timed * batch_size / (time.perf_counter() - begin)

    @contextlib.contextmanager
    def open(self, candidate: Candidate) -> Iterator[VideoLoader]:
        """Yield the loader of a candidate, without the lines that it prints; its workers end with the block.

        Always a new one: an idle loader keeps reading ahead, which would slow the next candidate down.
        """
        data = self.data.model_copy(update={**candidate._asdict(), "max_unreadable": 1.0, "tune": False})
        with temporary_folder("clipline-tune-") as folder:
            path = os.path.join(folder, "sample")
            distinct = {info.path: info for info in self.sample.infos}
            write_cache(cache_path(path), list(distinct.values()), "index")  # the list's own may take seconds to read
            with contextlib.redirect_stdout(io.StringIO()):
                loader = VideoLoader(
                    self.sample.dataset._replace(path=path),
                    data,
                    device=self.device,
                    dtype=self.dtype,
                    seed=self.seed,
                    world=self.world,
                )
        with loader:
            yield loader
        loader.release_memory()


def endless(loader: BatchLoader) -> Iterator[object]:
    """Yield the batches of one epoch after the other."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
