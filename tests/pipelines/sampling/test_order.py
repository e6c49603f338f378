"""order: ranks share an epoch without gaps or overlaps, and neither their number nor a restart changes the samples."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sampling.order import (
    balanced_order,
    batches_per_epoch,
    class_quotas,
    epoch_position,
    replacement,
    sample_rng,
    shuffled_index,
)

WORLD_SIZES = pytest.mark.parametrize("world_size", [1, 2, 3, 8])
NUM_SAMPLES, BATCH_SIZE = st.integers(1, 300), st.integers(1, 9)


def rank_positions(num_batches: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """Return the positions in the epoch's order that one rank takes, a list per batch."""
    return [
        [epoch_position(batch_index, slot, batch_size, rank, world_size) for slot in range(batch_size)]
        for batch_index in range(num_batches)
    ]


def all_positions(num_batches: int, batch_size: int, world_size: int) -> list[int]:
    return [
        position
        for rank in range(world_size)
        for batch in rank_positions(num_batches, batch_size, rank, world_size)
        for position in batch
    ]


@WORLD_SIZES
@given(NUM_SAMPLES, BATCH_SIZE)
def test_train_epoch_takes_samples_at_most_once_and_drops_less_than_a_batch(world_size, num_samples, batch_size):
    num_batches = batches_per_epoch(num_samples, batch_size, world_size, train=True)
    positions = all_positions(num_batches, batch_size, world_size)
    samples = [shuffled_index(num_samples, 3, 1, position) for position in positions]
    assert len(set(samples)) == len(samples) and set(samples) <= set(range(num_samples))
    assert 0 <= num_samples - len(samples) < batch_size * world_size


@WORLD_SIZES
@given(NUM_SAMPLES, BATCH_SIZE, st.integers(1, 4))
def test_train_epoch_with_accumulation_has_whole_steps(world_size, num_samples, batch_size, grad_accum_steps):
    num_batches = batches_per_epoch(num_samples, batch_size, world_size, train=True, grad_accum_steps=grad_accum_steps)
    assert num_batches % grad_accum_steps == 0
    assert 0 <= num_samples - num_batches * batch_size * world_size < batch_size * world_size * grad_accum_steps


@WORLD_SIZES
def test_train_epoch_takes_every_sample_if_the_batches_are_full(world_size):
    num_samples, batch_size = 24 * 5, 24 // world_size
    num_batches = batches_per_epoch(num_samples, batch_size, world_size, train=True)
    positions = all_positions(num_batches, batch_size, world_size)
    samples = [shuffled_index(num_samples, 0, 0, position) for position in positions]
    assert sorted(samples) == list(range(num_samples))


@WORLD_SIZES
@given(NUM_SAMPLES, BATCH_SIZE)
def test_eval_epoch_takes_every_sample_once_and_pads_less_than_a_batch(world_size, num_samples, batch_size):
    num_batches = batches_per_epoch(num_samples, batch_size, world_size, train=False)
    positions = all_positions(num_batches, batch_size, world_size)
    assert sorted(positions)[:num_samples] == list(range(num_samples))
    assert len(set(positions)) == len(positions)
    assert all(position >= num_samples for position in sorted(positions)[num_samples:])
    assert 0 <= len(positions) - num_samples < batch_size * world_size


@given(st.integers(0, 50), st.integers(1, 4))
def test_global_batch_does_not_depend_on_the_number_of_ranks(batch_index, multiple):
    global_batch_size = 24 * multiple
    expected = [epoch_position(batch_index, slot, global_batch_size, 0, 1) for slot in range(global_batch_size)]
    assert expected == list(range(batch_index * global_batch_size, (batch_index + 1) * global_batch_size))
    for world_size in (2, 3, 8):
        batch_size = global_batch_size // world_size
        actual = [
            epoch_position(batch_index, slot, batch_size, rank, world_size)
            for rank in range(world_size)
            for slot in range(batch_size)
        ]
        assert actual == expected


@pytest.mark.parametrize(("num_samples", "train_batches", "eval_batches"), [(0, 0, 0), (7, 0, 1), (8, 1, 1), (9, 1, 2)])
def test_batches_per_epoch_around_one_global_batch(num_samples, train_batches, eval_batches):
    assert batches_per_epoch(num_samples, 4, 2, train=True) == train_batches
    assert batches_per_epoch(num_samples, 4, 2, train=False) == eval_batches


def epoch_samples(seed: int, epoch: int, num_samples: int = 50) -> list[int]:
    return [shuffled_index(num_samples, seed, epoch, position) for position in range(num_samples)]


def test_shuffled_order_depends_on_seed_and_epoch_only():
    orders = {(seed, epoch): epoch_samples(seed, epoch) for seed in range(3) for epoch in range(4)}
    for samples in orders.values():
        assert sorted(samples) == list(range(50)) and samples != sorted(samples)
    assert len(set(map(tuple, orders.values()))) == len(orders)
    for (seed, epoch), samples in reversed(orders.items()):  # in another order, so that no cache can help
        assert epoch_samples(seed, epoch) == samples


def test_dropped_samples_differ_between_epochs():
    dropped = [frozenset(epoch_samples(0, epoch, 50)[48:]) for epoch in range(6)]
    assert len(set(dropped)) > 1


def test_sample_rng_has_a_stream_per_seed_epoch_and_sample():
    keys = [(seed, epoch, sample) for seed in range(4) for epoch in range(4) for sample in range(4)]
    expected = {key: tuple(sample_rng(*key).integers(0, 2**63, 2)) for key in keys}
    assert len(set(expected.values())) == len(keys)
    for key in reversed(keys):
        assert tuple(sample_rng(*key).integers(0, 2**63, 2)) == expected[key]


def test_sample_rng_is_not_the_stream_that_shuffles_the_epoch():
    """numpy pads a seed with zeros: [seed, epoch] and [seed, epoch, 0] are one stream."""
    samples = epoch_samples(5, 2)
    for sample in range(3):
        assert sample_rng(5, 2, sample).permutation(50).tolist() != samples


def test_sample_rng_streams_are_not_correlated():
    draws = np.array([[sample_rng(0, epoch, sample).random() for sample in range(40)] for epoch in range(40)])
    assert abs(draws.mean() - 0.5) < 0.04
    for first, second in ((draws[:, :-1], draws[:, 1:]), (draws[:-1], draws[1:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@given(SIZES, st.sampled_from(["class", "sqrt"]), st.integers(0, 5))
def test_balanced_epoch_has_each_class_as_often_as_asked_and_its_videos_equally_often(sizes, balance, epoch):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = balanced_order(balance, labels, seed=3)
    drawn = [order.at(epoch, position) for position in range(len(labels))]
    shares = np.array(sizes) ** {"class": 0.0, "sqrt": 0.5}[balance]
    expected = shares / shares.sum() * len(labels)
    counts = np.bincount(labels[[sample for sample, _ in drawn]], minlength=len(sizes))
    assert (np.abs(counts - expected) < 1 + 1e-9).all() and counts.sum() == len(labels)
    of_video = np.bincount([sample for sample, _ in drawn], minlength=len(labels))
    for label in range(len(sizes)):
        assert np.ptp(of_video[labels == label]) <= 1
    for sample in range(len(labels)):  # the first, the second ... of a video, in any order
        assert sorted(occurrence for index, occurrence in drawn if index == sample) == list(range(of_video[sample]))


def test_sample_of_a_balanced_order_is_replaced_by_one_of_its_class_at_first():
    labels = [0] * 90 + [1] * 4 + [2]
    order = balanced_order("class", labels, seed=1)

    def replacements(sample, attempt, balance):
        return {replacement(sample, attempt, sample_rng(0, epoch, sample, attempt), 95, balance) for epoch in range(99)}

    assert replacements(91, 1, order) == {90, 92, 93} == replacements(91, 5, order)
    for others in (replacements(94, 1, order), replacements(91, 6, order), replacements(91, 1, None)):
        assert len(others) > 40 and max(others) < 95


def test_balanced_order_depends_on_seed_and_epoch_only():
    labels = np.repeat([0, 1, 2], [50, 10, 3])
    order = balanced_order("class", labels, seed=1)
    epochs = [[order.at(epoch, position) for position in range(63)] for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    copy = pickle.loads(pickle.dumps(order))
    for epoch in (2, 0, 3, 1):
        assert [copy.at(epoch, position) for position in range(63)] == epochs[epoch]
    other = balanced_order("class", labels, seed=2)
    assert [other.at(0, position) for position in range(63)] != epochs[0]
    assert balanced_order("", labels, seed=1) is None


def test_sizes_of_classes_are_rounded_without_bias():
    sizes = np.array([7, 2, 1])
    drawn = [class_quotas(sizes, 0.0, start) for start in np.linspace(0, 1, 300, endpoint=False)]
    assert all(quotas.sum() == 10 and set(quotas) <= {3, 4} for quotas in drawn)
    assert np.mean(drawn, axis=0) == pytest.approx([10 / 3] * 3, abs=0.01)


def test_occurrences_of_a_sample_have_streams_of_their_own():
    keys = [(0, 0, 5, attempt, occurrence) for attempt in range(3) for occurrence in range(4)]
    streams = {tuple(sample_rng(*key).integers(0, 2**63, 2)) for key in keys}
    assert len(streams) == len(keys)
    assert sample_rng(0, 1, 2, 3, 0).random() == sample_rng(0, 1, 2, 3).random()
