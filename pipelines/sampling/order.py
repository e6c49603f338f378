"""Decide which sample comes when on which rank: pure functions of (seed, epoch, batch, rank, world size)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from utils import random_streams


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


def sample_rng(seed: int, epoch: int, sample: int, attempt: int = 0) -> np.random.Generator:
    """Return the generator of every random draw for one sample of one epoch, and for each attempt to replace it."""
    # The 1: [seed, epoch, 0] alone is the stream of the order.
    return np.random.default_rng([seed, epoch, sample, random_streams.SAMPLE, *([attempt] if attempt else [])])


@lru_cache(maxsize=2)  # the current epoch and the next, into which workers read ahead
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
