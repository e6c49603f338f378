"""shared_list: objects and integers in memory that processes share."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decode.video_info import VideoInfo
from utils.shared_list import SharedList, share

VALUES = st.lists(st.tuples(st.text(), st.integers(), st.lists(st.integers(), max_size=3).map(tuple)))


@given(VALUES)
def test_shared_list_is_the_sequence_of_its_values(values: list[Any]) -> None:
    shared = share(values)
    assert len(shared) == len(values) and list(shared) == values and shared[1:-1] == values[1:-1]
    assert [shared[-i - 1] for i in range(len(values))] == values[::-1]
    for index in (len(values), -len(values) - 1):
        with pytest.raises(IndexError):
            shared[index]


def test_shared_list_is_read_by_another_process_and_its_pickle_is_small() -> None:
    infos = [VideoInfo(path=f"videos/{i}.mp4", num_frames=300, keyframes=tuple(range(300))) for i in range(1000)]
    shared = share(infos)
    assert len(pickle.dumps(shared)) < 200 < len(pickle.dumps(infos))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(list, shared).result() == infos


def test_unpickled_shared_list_outlives_the_original() -> None:
    shared = share("abc")
    unpickled = pickle.loads(pickle.dumps(shared))
    del shared
    assert list(unpickled) == ["a", "b", "c"]


def test_deleted_shared_list_leaves_no_open_files() -> None:
    def count_open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count_open_files()
    shared: SharedList[int] | None = share(range(10))
    unpickled = pickle.loads(pickle.dumps(shared))
    assert count_open_files() > before
    shared = unpickled = None
    assert count_open_files() == before and unpickled is None
