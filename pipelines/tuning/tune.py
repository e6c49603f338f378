"""Find the fastest decoder, workers, threads and prefetch of a training list on this machine (data.tune).

data = tune(Data(train="train.csv", num_frames=16, batch_size=8))    # measured once, and kept beside the index
loader = VideoLoader("train.csv", data)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch

from configs.schema import Data
from pipelines.data.dataset import Dataset, load_dataset
from pipelines.tuning.answers import (
    Answer,
    answers_path,
    describe_circumstances,
    fixed_values,
    keep_answer,
    read_answers,
)
from pipelines.tuning.machine import build_space
from pipelines.tuning.search import Candidate, Search, Space, search
from pipelines.tuning.trials import SAMPLE, Sample, Trials, draw_sample, fill_page_cache, repeat_to
from utils.device import choose_device
from utils.distributed import World, current_world

SECONDS = 60.0  # that data.tune measures at the start of a run
_READING = 0.1  # of the time, for reading the sample into the page cache
_FIRST_BATCHES = 4  # of the first measurement


class Outcome(NamedTuple):
    """The best candidate of a sample, what was searched, and all measurements."""

    best: Candidate
    space: Space
    run: Search
    trials: Trials

    @property
    def clips_per_s(self) -> float:
        """The speed of the best candidate."""
        return self.run.median(self.best)

    @property
    def speedup(self) -> float:
        """The speed of the best candidate as a multiple of the configured one's, as far as both were measured in
        turns; 0 if the configured one does not run."""
        start = self.run.scores[self.space.start] if self.run.median(self.space.start) else 0.0
        return self.run.scores[self.best] / start if start else 0.0


def tune(
    data: Data,
    *,
    fixed: Collection[str] = (),
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    world: World | None = None,
    seconds: float = SECONDS,
) -> Data:
    """Return the section data with the fastest decoder, workers, threads and prefetch for data.train on this machine.

    Those keys that are in `fixed` keep their value. An answer that is kept beside the index is used if it fits; else
    all ranks measure together for about `seconds`, and the main one keeps the answer. Prints what was chosen. The clips
    of the stream are the same with any values, but each decoder rounds pixels in its own way. Raises ValueError as
    VideoLoader.
    """
    world = world or current_world()
    device = device or choose_device("auto", world.local_rank)
    answer = world.broadcast(lambda: find_answer(data, fixed, device, world))
    where = "kept in" if answer else "written to"
    if answer is None:
        sample = world.broadcast(lambda: _draw(data, seed, max(SAMPLE, _videos_per_batch(data, world))))
        trials = Trials(sample, data, device, dtype, seed, world, max_seconds=seconds / 6)
        problem = nothing_to_tune(sample, data, fixed, device, world)
        if problem:
            if world.is_main:
                print(f"{data.train}: nothing to tune: {problem}", flush=True)
            return data
        if world.is_main:
            print(f"{data.train}: tuning for up to {seconds:.0f} s (data.tune)", flush=True)
        outcome = find_best(trials, fixed, seconds)
        answer = world.broadcast(lambda: _keep(outcome, fixed))
    if world.is_main:
        print(f"{data.train}: {describe(answer)}; {where} {answers_path(data.train)}", flush=True)
    return data.model_copy(update=answer.values)


def find_answer(data: Data, fixed: Collection[str], device: torch.device, world: World) -> Answer | None:
    """Return the answer that is kept for a list, the latest one that fits."""
    answers = read_answers(answers_path(data.train))
    if not answers:
        return None
    circumstances = describe_circumstances(data.train, data, device, world)
    return next((a for a in reversed(answers) if a.fits(circumstances, fixed_values(data, fixed))), None)


def nothing_to_tune(sample: Sample, data: Data, fixed: Collection[str], device: torch.device, world: World) -> str:
    """Return why there is nothing to measure; empty if there is."""
    needed = _videos_per_batch(data, world)
    if len(sample.infos) < needed:
        return f"{len(sample.infos)} readable videos are fewer than the {needed} of a batch"
    space = world.broadcast(lambda: build_space(sample.infos, data, fixed, device))
    return "" if len(space.all_candidates()) > 1 else "every key has its value already"


def find_best(trials: Trials, fixed: Collection[str], seconds: float) -> Outcome:
    """Search the best candidate within about `seconds`; all ranks call it together.

    Raises ValueError with the reason if none of the candidates runs.
    """
    data, world, num_videos = trials.data, trials.world, len(trials.sample.infos)
    begin = trials.clock()
    cached = fill_page_cache(trials.sample, _READING * seconds, world)
    # What could not be read in time is left out, but whole batches are needed, and some of them for all the clips.
    trials = trials.with_sample(repeat_to(cached, min(num_videos, data.batch_size * world.size)))
    space = world.broadcast(lambda: build_space(trials.sample.infos, data, fixed, trials.device))
    run = Search(
        trials,
        seconds - (trials.clock() - begin),
        trials.clock,
        first_clips=_FIRST_BATCHES * data.batch_size,
    )
    try:
        best = search(space, run)
    except ValueError:
        raise ValueError(f"{data.train}: {next(iter(trials.failures.values()))}") from None
    return Outcome(best, space, run, trials)


def describe(answer: Answer) -> str:
    """Say in one line what was chosen and what it gives."""
    chosen = " ".join(f"data.{key}={value}" for key, value in answer.values.items())
    gain = f", {answer.speedup:.2f} times those of the configured values" if answer.speedup else ""
    return f"tuned: {chosen} ({answer.clips_per_s:.1f} clips/s{gain})"


def _videos_per_batch(data: Data, world: World) -> int:
    """Count the videos in a batch of all ranks."""
    return data.batch_size // data.aug_repeats * world.size


def _draw(data: Data, seed: int, limit: int) -> Sample:
    """Read the training list and draw the sample, after the whole index was built, on which the answer depends."""
    return draw_sample(read_training_list(data), seed, whole_index=True, limit=limit)


def read_training_list(data: Data) -> Dataset:
    """Read the training list as the loader does; it need not have labels."""
    return load_dataset(
        data.train,
        data.root,
        class_names=data.class_names,
        class_subset=data.class_subset,
        max_per_class=data.max_per_class,
        few_shot_seed=data.few_shot_seed,
        labeled=None,
        multi_label=data.multi_label,
    )


def _keep(outcome: Outcome, fixed: Collection[str]) -> Answer:
    """Write the answer beside the index and return it."""
    trials = outcome.trials
    data = trials.data
    answer = Answer(
        circumstances=describe_circumstances(data.train, data, trials.device, trials.world),
        fixed=fixed_values(data, fixed),
        values=outcome.best._asdict(),
        clips_per_s=round(outcome.clips_per_s, 2),
        speedup=round(outcome.speedup, 3),
    )
    keep_answer(answers_path(data.train), answer)
    return answer
