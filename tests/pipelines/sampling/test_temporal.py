"""sampling: clips lie inside their video, keep their stride where they fit, and reach every place."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sampling.temporal import (
    PLACES,
    SHORT,
    edge,
    loop,
    random_clip,
    random_segments,
    snap,
    span,
    stride_at,
    uniform_clips,
    uniform_segments,
)

LENGTH, FRAMES, STRIDE = st.integers(1, 300), st.integers(1, 16), st.integers(0, 20)
SHORTS, SEED = st.sampled_from(sorted(SHORT)), st.integers(0, 2**32)


@given(LENGTH, FRAMES, STRIDE, SHORTS, SEED)
def test_a_random_clip_lies_in_its_video_and_keeps_its_stride_where_it_fits(length, frames, stride, short, seed):
    clip = random_clip(length, frames, stride, short, np.random.default_rng(seed))
    assert clip.shape == (frames,) and clip.dtype == np.int64
    assert clip.min() >= 0 and clip.max() < length
    if span(frames, stride) <= length:
        assert (np.diff(clip) == stride).all()
    else:
        assert clip[0] == 0


@given(LENGTH, FRAMES, STRIDE, st.integers(1, 10), SHORTS)
def test_uniform_clips_are_spread_from_the_first_place_to_the_last(length, frames, stride, count, short):
    clips = uniform_clips(length, frames, stride, count, short)
    assert clips.shape == (count, frames) and clips.dtype == np.int64
    assert clips.min() >= 0 and clips.max() < length
    if span(frames, stride) > length:
        assert (clips == clips[0]).all() and clips[0, 0] == 0
        return
    assert (np.diff(clips, axis=1) == stride).all()
    if count == 1:
        before, after = clips[0, 0], length - 1 - clips[0, -1]
        assert 0 <= before - after <= 1
    else:
        assert clips[0, 0] == 0 and clips[-1, -1] == length - 1
        steps = np.diff(clips[:, 0])
        assert steps.min() >= 0 and steps.max() - steps.min() <= 1


@given(LENGTH, FRAMES, STRIDE, SHORTS)
def test_the_middle_of_three_clips_is_the_single_clip(length, frames, stride, short):
    one, three = (uniform_clips(length, frames, stride, count, short) for count in (1, 3))
    assert (three[1] == one[0]).all()


@pytest.mark.parametrize(("length", "frames", "stride"), [(12, 4, 3), (10, 4, 3), (5, 1, 7), (6, 3, 0), (9, 2, 1)])
def test_every_start_is_drawn_and_all_alike(length, frames, stride):
    starts = length - span(frames, stride) + 1
    draws = 300 * starts
    rng = np.random.default_rng(0)
    counts = Counter(int(random_clip(length, frames, stride, "loop", rng)[0]) for _ in range(draws))
    assert sorted(counts) == list(range(starts))
    assert all(abs(count - 300) < 5 * 300**0.5 for count in counts.values())


def test_the_picture_in_the_module():
    assert span(4, 3) == 10
    assert uniform_clips(12, 4, 3, 3, "loop").tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_loop_starts_over_and_edge_repeats_the_last_frame():
    wanted = np.arange(6)
    assert loop(wanted, 3).tolist() == [0, 1, 2, 0, 1, 2]
    assert edge(wanted, 3).tolist() == [0, 1, 2, 2, 2, 2]
    assert uniform_clips(5, 4, 2, 1, "loop").tolist() == [[0, 2, 4, 1]]
    assert uniform_clips(5, 4, 2, 1, "edge").tolist() == [[0, 2, 4, 4]]
    assert uniform_clips(1, 3, 5, 2, "loop").tolist() == [[0, 0, 0], [0, 0, 0]]


def test_stride_0_repeats_one_frame_of_the_whole_video():
    assert uniform_clips(9, 3, 0, 3, "loop").tolist() == [[0] * 3, [4] * 3, [8] * 3]
    clips = np.stack([random_clip(4, 3, 0, "edge", np.random.default_rng(seed)) for seed in range(60)])
    assert (clips == clips[:, :1]).all() and set(clips[:, 0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("short", sorted(SHORT))
def test_a_video_without_frames_is_refused(short):
    with pytest.raises(ValueError, match="num_frames=0: a clip needs a video of at least one frame"):
        random_clip(0, 4, 2, short, np.random.default_rng(0))
    with pytest.raises(ValueError, match="num_frames=0"):
        uniform_clips(0, 4, 2, 3, short)


# --- conventions --------------------------------------------------------------------------------------------------


@given(LENGTH, FRAMES, st.integers(1, 20), st.integers(1, 10))
def test_places_are_those_of_the_projects(length, frames, stride, count):
    room = length - span(frames, stride)
    if room < 0:
        return
    places = range(count)
    starts = {place: uniform_clips(length, frames, stride, count, "loop", place)[:, 0].tolist() for place in PLACES}
    assert starts["start"] == [int(Fraction(room * i, count)) for i in places]  # SlowFast, TimeSformer
    share = Fraction(room + 1, count)
    assert starts["centre"] == [int(i * share + share / 2) for i in places]  # mmaction2
    if count > 1:
        assert starts["spread"] == [math.floor(Fraction(room * i, count - 1) + Fraction(1, 2)) for i in places]
    else:
        assert starts["spread"] == starts["centre"]


@given(LENGTH, FRAMES, SEED)
def test_segments_hold_a_frame_of_each_part(length, frames, seed):
    drawn = random_segments(length, frames, np.random.default_rng(seed))
    middle = uniform_segments(length, frames, 1)
    several = uniform_segments(length, frames, 3)
    assert drawn.shape == (frames,) and middle.shape == (1, frames) and several.shape == (3, frames)
    for clip in (drawn, middle[0], *several):
        assert clip.dtype == np.int64 and (np.diff(clip) >= 0).all() and clip.min() >= 0 and clip.max() < length
        if length >= frames:
            part = length / frames
            assert ((clip > np.arange(frames) * part - 1) & (clip < (np.arange(frames) + 1) * part)).all()
    assert (several[1] == middle[0]).all()


def test_every_frame_of_a_part_is_drawn():
    clips = np.stack([random_segments(11, 3, np.random.default_rng(seed)) for seed in range(400)])
    assert [sorted(set(column)) for column in clips.T.tolist()] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]


@given(st.lists(st.integers(0, 200), max_size=8, unique=True), st.lists(st.integers(0, 200), min_size=1, max_size=8),
       st.floats(0, 30))  # fmt: skip
def test_snapping_takes_the_nearest_key_frame_in_reach(keys, frames, reach):
    keys = sorted(keys)
    for frame, taken in zip(frames, snap(np.array(frames), keys, reach).tolist(), strict=True):
        distances = [abs(key - frame) for key in keys]
        if distances and min(distances) <= reach:
            assert taken in keys and abs(taken - frame) == min(distances)
        else:
            assert taken == frame


def test_a_rate_stretches_the_stride():
    assert stride_at(4, 30, 60) == 8 and stride_at(4, 30, 25) == pytest.approx(10 / 3)
    assert stride_at(4, 0, 25) == stride_at(4, 30, 0) == 4
    clip = random_clip(1000, 16, stride_at(4, 30, 25), "loop", np.random.default_rng(0))
    assert clip[-1] - clip[0] == 50 and set(np.diff(clip)) == {3, 4}
