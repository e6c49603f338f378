"""Faults: from which batch on they are known, to whom, and after which restart."""

from __future__ import annotations

import pickle

from pipelines.known_faults import REFUSED, UNREADABLE, Faults


def known_at(faults: Faults, *batches: int) -> list[bool]:
    return [faults.is_known(3, REFUSED, batch) for batch in batches]


def test_fault_is_known_from_the_next_batch_and_on_other_ranks_from_the_next_epoch() -> None:
    faults, other_rank = Faults(5, 10, rank=0), Faults(5, 10, rank=1)
    faults.add(3, REFUSED, 24)
    assert known_at(faults, 24, 25) == [False, True]
    assert not faults.is_known(3, UNREADABLE, 25) and not faults.is_known(2, REFUSED, 25)
    other_rank.merge(faults.state())
    assert known_at(other_rank, 25, 29, 30) == [False, False, True]


def test_fault_merged_from_a_checkpoint_of_all_ranks_is_known_as_before() -> None:
    faults, other_rank, resumed = Faults(5, 10, rank=0), Faults(5, 10, rank=1), Faults(5, 10, rank=0)
    faults.add(3, REFUSED, 24)
    other_rank.merge(faults.state())
    resumed.merge(other_rank.state())
    assert known_at(resumed, 24, 25) == [False, True]


def test_own_fault_is_kept_beside_that_of_another_rank() -> None:
    faults, other_rank, resumed = Faults(5, 10, rank=0), Faults(5, 10, rank=1), Faults(5, 10, rank=1)
    faults.add(3, REFUSED, 24)
    other_rank.add(3, REFUSED, 21)
    other_rank.merge(faults.state())
    resumed.merge(other_rank.state())
    assert resumed.is_known(3, REFUSED, 22)


def test_fault_of_a_run_with_longer_epochs_is_known() -> None:
    faults, shorter_epochs = Faults(5, 10, rank=0), Faults(5, 3, rank=0)
    faults.add(3, REFUSED, 24)
    shorter_epochs.merge(faults.state())
    assert shorter_epochs.is_known(3, REFUSED, 9), "on more processes an epoch has fewer batches"


def test_fault_found_twice_keeps_its_first_position() -> None:
    faults, other_rank = Faults(5, 10, rank=0), Faults(5, 10, rank=1)
    faults.add(3, REFUSED, 24)
    other_rank.merge(faults.state())
    faults.add(3, REFUSED, 99)
    assert faults.state() == other_rank.state() == [[3, REFUSED, 2, 4, 0]]


def test_worker_sees_faults_added_after_its_start() -> None:
    faults = Faults(4, 10, rank=0)
    in_worker = pickle.loads(pickle.dumps(faults))
    faults.add(1, UNREADABLE, 3)
    assert in_worker.is_known(1, UNREADABLE, 4) and len(pickle.dumps(faults)) < 300
