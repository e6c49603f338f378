"""Values in memory that processes share."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decode.video_info import Row
from utils.shared_list import Packed, pack

VALUES = st.lists(st.tuples(st.text(), st.integers(), st.lists(st.integers(), max_size=3).map(tuple)))


@given(VALUES)
def test_it_is_the_sequence_it_was_made_of(values: list[Any]) -> None:
    packed = pack(values)
    assert len(packed) == len(values) and list(packed) == values and packed[1:-1] == values[1:-1]
    assert [packed[-number - 1] for number in range(len(values))] == values[::-1]
    for place in (len(values), -len(values) - 1):
        with pytest.raises(IndexError):
            packed[place]


def test_another_process_reads_it_and_is_sent_next_to_nothing() -> None:
    rows = [Row(f"videos/{number}.mp4", 10**6, 1, 300, keyframes=tuple(range(300))) for number in range(1000)]
    packed = pack(rows)
    assert len(pickle.dumps(packed)) < 200 < len(pickle.dumps(rows))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(list, packed).result() == rows


def test_what_was_unpickled_stays_when_the_first_has_gone() -> None:
    packed = pack("abc")
    other = pickle.loads(pickle.dumps(packed))
    del packed
    assert list(other) == ["a", "b", "c"]


def test_nothing_is_left_open() -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    packed: Packed[int] | None = pack(range(10))
    other = pickle.loads(pickle.dumps(packed))
    assert opened() > before
    packed = other = None
    assert opened() == before and other is None
