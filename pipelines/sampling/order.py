"""Which sample comes when, on which rank: pure functions of (seed, epoch, step, rank, world size)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def accumulation(total: int, batch: int, world_size: int) -> int:
    """Batches of each rank that make an optimiser step of `total` clips (0: one). Raises ValueError if none do."""
    each = batch * world_size
    if total % each:
        raise ValueError(
            f"optim.batch={total}: expected a multiple of data.batch={batch} on {world_size} processes, that is {each}"
        )
    return total // each or 1


def train_steps(num_samples: int, batch: int, world_size: int, accumulate: int = 1) -> int:
    """Batches an epoch, a multiple of `accumulate`; the samples left over are left out (others each epoch)."""
    return num_samples // (batch * world_size * accumulate) * accumulate


def steps_done(seen: int, batch: int, world_size: int, accumulate: int = 1) -> int:
    """After how many batches of an epoch none of its first `seen` samples comes again."""
    return -(-seen // (batch * world_size * accumulate)) * accumulate


def torch_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """For what torch itself draws in a step (dropout); weights are drawn from `seed` itself."""
    return int(np.random.SeedSequence([seed, epoch, step, rank, 2]).generate_state(1, np.uint64)[0] >> 1)


def eval_steps(num_samples: int, batch: int, world_size: int) -> int:
    """Steps of one pass that scores every sample."""
    return -(-num_samples // (batch * world_size))


def position(step: int, slot: int, batch: int, rank: int, world_size: int) -> int:
    """Place in the epoch's order of the sample in `slot` of a batch.

    A step takes the next batch * world_size samples, a rank after the other, so the samples of a step depend on its
    global batch only, not on how many ranks share it.
    """
    return (step * world_size + rank) * batch + slot


def train_sample(num_samples: int, seed: int, epoch: int, place: int) -> int:
    """The row that stands at `place` in the shuffled order of an epoch."""
    return int(_permutation(num_samples, seed, epoch)[place])


def generator(seed: int, epoch: int, sample: int, attempt: int = 0) -> np.random.Generator:
    """The source of every random draw for one sample of one epoch, and for each attempt to replace it."""
    # The 1: [seed, epoch, 0] alone is the stream of the order.
    return np.random.default_rng([seed, epoch, sample, 1, attempt] if attempt else [seed, epoch, sample, 1])


@lru_cache(maxsize=2)  # the current epoch and the next, into which workers read ahead
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
