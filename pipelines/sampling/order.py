"""Decide which sample comes when on which rank: pure functions of (seed, epoch, batch, rank, world size)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from utils import random_streams

_ATTEMPTS_IN_CLASS = 5  # to replace a sample of a balanced order by one of its class


def grad_accum_steps(global_batch_size: int, batch_size: int, world_size: int) -> int:
    """Return how many batches per rank make an optimizer step of `global_batch_size` clips (0: one batch).

    Raises ValueError if no number of batches does.
    """
    clips = batch_size * world_size
    if global_batch_size % clips:
        raise ValueError(
            f"optim.global_batch_size={global_batch_size}: expected a multiple of data.batch_size={batch_size} on "
            f"{world_size} processes, that is {clips}"
        )
    return global_batch_size // clips or 1


def batches_per_epoch(
    num_samples: int, batch_size: int, world_size: int, *, train: bool, grad_accum_steps: int = 1
) -> int:
    """Count the batches per epoch and rank: in training whole steps only, otherwise enough to score every sample.

    The samples that fill no step are left out in training, others in each epoch.
    """
    if train:
        return num_samples // (batch_size * world_size * grad_accum_steps) * grad_accum_steps
    return -(-num_samples // (batch_size * world_size))


def batches_done(seen: int, batch_size: int, world_size: int, grad_accum_steps: int = 1) -> int:
    """Return after how many batches of an epoch none of its first `seen` samples comes again."""
    return -(-seen // (batch_size * world_size * grad_accum_steps)) * grad_accum_steps


def torch_seed(seed: int, epoch: int, batch_index: int, rank: int) -> int:
    """Return the seed of what torch draws in a batch (dropout). Weights are drawn from `seed` itself."""
    sequence = np.random.SeedSequence([seed, epoch, batch_index, rank, random_streams.MASK])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def epoch_position(batch_index: int, slot: int, batch_size: int, rank: int, world_size: int) -> int:
    """Return the position in the epoch's order of the sample in `slot` of a batch.

    All ranks together take the next batch_size * world_size samples, one rank after the other, so the samples of a
    step depend on its global batch only, not on how many ranks share it.
    """
    return (batch_index * world_size + rank) * batch_size + slot


def shuffled_index(num_samples: int, seed: int, epoch: int, position: int) -> int:
    """Return the sample at a position of the epoch's shuffled order."""
    return int(_permutation(num_samples, seed, epoch)[position])


def sample_rng(seed: int, epoch: int, sample: int, attempt: int = 0, occurrence: int = 0) -> np.random.Generator:
    """Return the generator of every random draw for one sample of one epoch, and for each attempt to replace it.

    `occurrence`: which of the sample's copies in the epoch it is.
    """
    # The 1: [seed, epoch, 0] alone is the stream of the order.
    further = [attempt, occurrence] if occurrence else [attempt] if attempt else []
    return np.random.default_rng([seed, epoch, sample, random_streams.SAMPLE, *further])


def replacement(
    sample: int, attempt: int, rng: np.random.Generator, num_samples: int, balance: BalancedOrder | None = None
) -> int:
    """Return a sample in the place of one that cannot be read: any, of a balanced order at first one of its class.

    The later attempts are any, since a class may have no other video that can be read.
    """
    if balance and attempt <= _ATTEMPTS_IN_CLASS:
        others = balance.others_of_class(sample)
        if len(others):
            return int(rng.choice(others))
    return int(rng.integers(num_samples))


# The powers of the classes' sizes in proportion to which data.balance draws them.
BALANCE_POWERS = {"class": 0.0, "sqrt": 0.5}


class BalancedOrder:
    """An order of epochs in which classes of any size come as often as their size to a power, shuffled.

    Class j has n_j^power of the sum of all n_i^power (Kang et al., 2020, section 3.1): with 0 all classes equally
    often, with 1/2 square-root sampling. An epoch has as many samples as there are videos. The videos of a class come
    equally often, up to one time, and its number of samples differs from epoch to epoch by one at most.
    """

    def __init__(self, labels: np.ndarray, power: float, seed: int):
        self.labels, self.power, self.seed = labels, power, seed
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # the latest two

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epochs": {}}

    def at(self, epoch: int, position: int) -> tuple[int, int]:
        """Return the sample at a position of an epoch, and which of its copies there it is, from 0."""
        if epoch not in self._epochs:
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: self._draw(epoch)}
        samples, occurrences = self._epochs[epoch]
        return int(samples[position]), int(occurrences[position])

    def others_of_class(self, sample: int) -> np.ndarray:
        """Return the other samples of the class of a sample."""
        samples = np.flatnonzero(self.labels == self.labels[sample])
        return samples[samples != sample]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 0, random_streams.BALANCE])
        classes, inverse, sizes = np.unique(self.labels, return_inverse=True, return_counts=True)
        by_class = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
        samples, occurrences = [], []
        for videos, number in zip(by_class, class_quotas(sizes, self.power, rng.random()), strict=True):
            rounds = np.arange(number) // len(videos)
            whole = np.tile(videos, number // len(videos))
            rest = rng.permutation(videos)[: number % len(videos)]
            samples.append(np.concatenate([whole, rest]))
            occurrences.append(rounds)
        order = rng.permutation(len(self.labels))
        return np.concatenate(samples)[order], np.concatenate(occurrences)[order]


def balanced_order(balance: str, labels: Sequence[int] | np.ndarray, seed: int) -> BalancedOrder | None:
    """Return the order that data.balance asks for; None if every video comes once in an epoch."""
    if not balance:
        return None
    return BalancedOrder(np.asarray(labels, np.int64), BALANCE_POWERS[balance], seed)


def class_quotas(sizes: np.ndarray, power: float, start: float) -> np.ndarray:
    """Divide as many samples as there are videos among classes of these sizes, in proportion to size^power.

    Each class gets its share, rounded up or down: systematic sampling from `start`, 0 to below 1, which is drawn.
    """
    shares = sizes.astype(np.float64) ** power
    ends = np.cumsum(shares) / shares.sum() * sizes.sum()
    ends[-1] = sizes.sum()  # exactly
    return np.diff(np.floor(ends + start), prepend=np.floor(start)).astype(np.int64)


@lru_cache(maxsize=2)  # the current epoch and the next, into which workers read ahead
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
