"""order: ranks share an epoch without a gap or an overlap, and neither their number nor a restart changes it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sampling.order import eval_steps, generator, position, train_sample, train_steps

WORLDS = pytest.mark.parametrize("world", [1, 2, 3, 8])
SAMPLES, BATCH = st.integers(1, 300), st.integers(1, 9)


def rank_places(steps: int, batch: int, rank: int, world: int) -> list[list[int]]:
    """The places of one rank's epoch, a list a step."""
    return [[position(step, slot, batch, rank, world) for slot in range(batch)] for step in range(steps)]


def all_places(steps: int, batch: int, world: int) -> list[int]:
    return [place for rank in range(world) for step in rank_places(steps, batch, rank, world) for place in step]


@WORLDS
@given(SAMPLES, BATCH)
def test_training_takes_each_row_at_most_once_and_leaves_out_less_than_a_step(world, samples, batch):
    steps = train_steps(samples, batch, world)
    rows = [train_sample(samples, 3, 1, place) for place in all_places(steps, batch, world)]
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(samples))
    assert 0 <= samples - len(rows) < batch * world


@WORLDS
def test_training_takes_every_row_when_the_batches_come_out_even(world):
    samples, batch = 24 * 5, 24 // world
    places = all_places(train_steps(samples, batch, world), batch, world)
    rows = [train_sample(samples, 0, 0, place) for place in places]
    assert sorted(rows) == list(range(samples))


@WORLDS
@given(SAMPLES, BATCH)
def test_evaluation_takes_every_row_once_and_pads_less_than_a_step(world, samples, batch):
    places = all_places(eval_steps(samples, batch, world), batch, world)
    assert sorted(places)[:samples] == list(range(samples))
    assert len(set(places)) == len(places)
    assert all(place >= samples for place in sorted(places)[samples:])
    assert 0 <= len(places) - samples < batch * world


@given(st.integers(0, 50), st.integers(1, 4))
def test_the_samples_of_a_step_do_not_depend_on_how_many_ranks_share_it(step, multiple):
    whole = 24 * multiple
    expected = [position(step, slot, whole, 0, 1) for slot in range(whole)]
    assert expected == list(range(step * whole, (step + 1) * whole))
    for world in (2, 3, 8):
        batch = whole // world
        shared = [position(step, slot, batch, rank, world) for rank in range(world) for slot in range(batch)]
        assert shared == expected


def test_too_few_samples_make_no_training_step_and_one_evaluation_step():
    assert train_steps(7, 4, 2) == 0 and eval_steps(7, 4, 2) == 1 and eval_steps(8, 4, 2) == 1
    assert train_steps(8, 4, 2) == 1 and eval_steps(9, 4, 2) == 2 and eval_steps(0, 4, 2) == 0


def epoch_rows(seed: int, epoch: int, samples: int = 50) -> list[int]:
    return [train_sample(samples, seed, epoch, place) for place in range(samples)]


def test_an_epoch_is_a_shuffle_that_depends_on_seed_and_epoch_alone():
    orders = {(seed, epoch): epoch_rows(seed, epoch) for seed in range(3) for epoch in range(4)}
    for rows in orders.values():
        assert sorted(rows) == list(range(50)) and rows != sorted(rows)
    assert len(set(map(tuple, orders.values()))) == len(orders)
    for (seed, epoch), rows in reversed(orders.items()):  # in another order, so that no cache is of help
        assert epoch_rows(seed, epoch) == rows


def test_the_part_left_out_of_an_epoch_differs_between_epochs():
    left_out = [frozenset(epoch_rows(0, epoch, 50)[48:]) for epoch in range(6)]
    assert len(set(left_out)) > 1


def test_every_seed_epoch_and_sample_has_its_own_stream():
    keys = [(seed, epoch, sample) for seed in range(4) for epoch in range(4) for sample in range(4)]
    first = {key: tuple(generator(*key).integers(0, 2**63, 2)) for key in keys}
    assert len(set(first.values())) == len(keys)
    for key in reversed(keys):
        assert tuple(generator(*key).integers(0, 2**63, 2)) == first[key]


def test_no_sample_shares_the_stream_that_shuffles_its_epoch():
    """numpy pads a seed with zeros: [seed, epoch] and [seed, epoch, 0] are one stream."""
    shuffled = epoch_rows(5, 2)
    for sample in range(3):
        assert generator(5, 2, sample).permutation(50).tolist() != shuffled


def test_streams_are_not_correlated():
    draws = np.array([[generator(0, epoch, sample).random() for sample in range(40)] for epoch in range(40)])
    assert abs(draws.mean() - 0.5) < 0.04
    for one, two in ((draws[:, :-1], draws[:, 1:]), (draws[:-1], draws[1:])):
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.1
