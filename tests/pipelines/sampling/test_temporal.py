"""temporal: clips are inside their video, keep their stride where they fit, and reach every start."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sampling.temporal import (
    CLIP_PLACEMENTS,
    PAD_POLICIES,
    frames_between,
    random_clip,
    random_clips,
    random_segments,
    repeat_last,
    snap_to_keyframes,
    span,
    stride_in_frames,
    uniform_clips,
    uniform_segments,
    wrap,
)

VIDEO_FRAMES, NUM_FRAMES, STRIDE = st.integers(1, 300), st.integers(1, 16), st.integers(0, 20)
PAD_POLICY, SEED = st.sampled_from(sorted(PAD_POLICIES)), st.integers(0, 2**32)


@given(VIDEO_FRAMES, NUM_FRAMES, STRIDE, PAD_POLICY, SEED)
def test_random_clip_is_inside_its_video_and_keeps_its_stride_if_it_fits(video_frames, num_frames, stride, pad, seed):
    clip = random_clip(video_frames, num_frames, stride, pad, np.random.default_rng(seed))
    assert clip.shape == (num_frames,) and clip.dtype == np.int64
    assert clip.min() >= 0 and clip.max() < video_frames
    if span(num_frames, stride) <= video_frames:
        assert (np.diff(clip) == stride).all()
    else:
        assert clip[0] == 0


@given(VIDEO_FRAMES, NUM_FRAMES, STRIDE, st.integers(1, 10), PAD_POLICY, SEED)
def test_random_clips_come_from_equal_parts_of_the_starts(video_frames, num_frames, stride, num_clips, pad, seed):
    clips = random_clips(video_frames, num_frames, stride, num_clips, pad, np.random.default_rng(seed))
    assert clips.shape == (num_clips, num_frames) and clips.dtype == np.int64
    assert clips.min() >= 0 and clips.max() < video_frames
    num_starts = max(video_frames - span(num_frames, stride), 0) + 1
    starts = clips[:, 0]
    assert (starts < num_starts).all() and (np.diff(starts) >= 0).all()
    if num_starts >= num_clips:
        assert (starts * num_clips // num_starts >= np.arange(num_clips) - 1).all()
        assert len(set(starts.tolist())) == num_clips, "parts do not overlap"


def test_random_clips_draw_every_start_of_their_part_equally_often():
    rng = np.random.default_rng(0)
    starts = np.stack([random_clips(13, 4, 2, 2, "wrap", rng)[:, 0] for _ in range(3000)])  # seven starts: 3 and 4
    for part, expected in zip(starts.T, ([0, 1, 2], [3, 4, 5, 6]), strict=True):
        values, counts = np.unique(part, return_counts=True)
        assert values.tolist() == expected and counts.min() > 0.85 * 3000 / len(expected)


@given(VIDEO_FRAMES, NUM_FRAMES, STRIDE, st.integers(1, 10), PAD_POLICY)
def test_uniform_clips_are_evenly_spaced_from_first_to_last_start(video_frames, num_frames, stride, num_clips, pad):
    clips = uniform_clips(video_frames, num_frames, stride, num_clips, pad)
    assert clips.shape == (num_clips, num_frames) and clips.dtype == np.int64
    assert clips.min() >= 0 and clips.max() < video_frames
    if span(num_frames, stride) > video_frames:
        assert (clips == clips[0]).all() and clips[0, 0] == 0
        return
    assert (np.diff(clips, axis=1) == stride).all()
    if num_clips == 1:
        frames_before, frames_after = clips[0, 0], video_frames - 1 - clips[0, -1]
        assert 0 <= frames_before - frames_after <= 1
    else:
        assert clips[0, 0] == 0 and clips[-1, -1] == video_frames - 1
        distances = np.diff(clips[:, 0])
        assert distances.min() >= 0 and distances.max() - distances.min() <= 1


@given(VIDEO_FRAMES, NUM_FRAMES, STRIDE, PAD_POLICY)
def test_middle_one_of_three_uniform_clips_is_the_single_clip(video_frames, num_frames, stride, pad):
    single, three = (uniform_clips(video_frames, num_frames, stride, num_clips, pad) for num_clips in (1, 3))
    assert (three[1] == single[0]).all()


@pytest.mark.parametrize(
    ("video_frames", "num_frames", "stride"), [(12, 4, 3), (10, 4, 3), (5, 1, 7), (6, 3, 0), (9, 2, 1)]
)
def test_random_clip_draws_every_start_equally_often(video_frames, num_frames, stride):
    num_starts = video_frames - span(num_frames, stride) + 1
    draws = 300 * num_starts
    rng = np.random.default_rng(0)
    counts = Counter(int(random_clip(video_frames, num_frames, stride, "wrap", rng)[0]) for _ in range(draws))
    assert sorted(counts) == list(range(num_starts))
    assert all(abs(count - 300) < 5 * 300**0.5 for count in counts.values())


def test_uniform_clips_match_the_drawing_in_the_module():
    assert span(4, 3) == 10
    assert uniform_clips(12, 4, 3, 3, "wrap").tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_wrap_starts_over_and_repeat_last_repeats_the_last_frame():
    frames = np.arange(6)
    assert wrap(frames, 3).tolist() == [0, 1, 2, 0, 1, 2]
    assert repeat_last(frames, 3).tolist() == [0, 1, 2, 2, 2, 2]
    assert uniform_clips(5, 4, 2, 1, "wrap").tolist() == [[0, 2, 4, 1]]
    assert uniform_clips(5, 4, 2, 1, "repeat_last").tolist() == [[0, 2, 4, 4]]
    assert uniform_clips(1, 3, 5, 2, "wrap").tolist() == [[0, 0, 0], [0, 0, 0]]


def test_stride_0_repeats_one_frame():
    assert uniform_clips(9, 3, 0, 3, "wrap").tolist() == [[0] * 3, [4] * 3, [8] * 3]
    clips = np.stack([random_clip(4, 3, 0, "repeat_last", np.random.default_rng(seed)) for seed in range(60)])
    assert (clips == clips[:, :1]).all() and set(clips[:, 0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("pad_policy", sorted(PAD_POLICIES))
def test_clip_of_a_video_without_frames_is_refused(pad_policy):
    with pytest.raises(ValueError, match="video_frames=0: expected a video of at least one frame"):
        random_clip(0, 4, 2, pad_policy, np.random.default_rng(0))
    with pytest.raises(ValueError, match="video_frames=0"):
        uniform_clips(0, 4, 2, 3, pad_policy)


# --- conventions --------------------------------------------------------------------------------------------------


@given(VIDEO_FRAMES, NUM_FRAMES, st.integers(1, 20), st.integers(1, 10))
def test_clip_placements_are_those_of_other_projects(video_frames, num_frames, stride, num_clips):
    last_start = video_frames - span(num_frames, stride)
    if last_start < 0:
        return
    starts = {
        placement: uniform_clips(video_frames, num_frames, stride, num_clips, "wrap", placement)[:, 0].tolist()
        for placement in CLIP_PLACEMENTS
    }
    # SlowFast, TimeSformer
    assert starts["from_start"] == [int(Fraction(last_start * i, num_clips)) for i in range(num_clips)]
    segment = Fraction(last_start + 1, num_clips)  # mmaction2
    assert starts["segment_center"] == [int(i * segment + segment / 2) for i in range(num_clips)]
    if num_clips > 1:
        half = Fraction(1, 2)
        expected = [math.floor(Fraction(last_start * i, num_clips - 1) + half) for i in range(num_clips)]
        assert starts["uniform"] == expected
    else:
        assert starts["uniform"] == starts["segment_center"]


@given(VIDEO_FRAMES, NUM_FRAMES, SEED)
def test_segments_have_one_frame_each(video_frames, num_frames, seed):
    drawn = random_segments(video_frames, num_frames, np.random.default_rng(seed))
    middle = uniform_segments(video_frames, num_frames, 1)
    several = uniform_segments(video_frames, num_frames, 3)
    assert drawn.shape == (num_frames,) and middle.shape == (1, num_frames) and several.shape == (3, num_frames)
    for clip in (drawn, middle[0], *several):
        assert clip.dtype == np.int64 and (np.diff(clip) >= 0).all() and clip.min() >= 0 and clip.max() < video_frames
        if video_frames >= num_frames:
            length = video_frames / num_frames
            assert (clip > np.arange(num_frames) * length - 1).all()
            assert (clip < (np.arange(num_frames) + 1) * length).all()
    assert (several[1] == middle[0]).all()


def test_random_segments_draw_every_frame_of_a_segment():
    clips = np.stack([random_segments(11, 3, np.random.default_rng(seed)) for seed in range(400)])
    assert [sorted(set(column)) for column in clips.T.tolist()] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]


@given(
    st.lists(st.integers(0, 200), max_size=8, unique=True),
    st.lists(st.integers(0, 200), min_size=1, max_size=8),
    st.floats(0, 30),
)
def test_snap_to_keyframes_takes_the_nearest_within_reach(keyframes, frames, reach):
    keyframes = sorted(keyframes)
    for frame, snapped in zip(frames, snap_to_keyframes(np.array(frames), keyframes, reach).tolist(), strict=True):
        distances = [abs(keyframe - frame) for keyframe in keyframes]
        if distances and min(distances) <= reach:
            assert snapped in keyframes and abs(snapped - frame) == min(distances)
        else:
            assert snapped == frame


def test_stride_in_frames_scales_with_the_frame_rate():
    assert stride_in_frames(4, 30, 60) == 8 and stride_in_frames(4, 30, 25) == pytest.approx(10 / 3)
    assert stride_in_frames(4, 0, 25) == stride_in_frames(4, 30, 0) == 4
    clip = random_clip(1000, 16, stride_in_frames(4, 30, 25), "wrap", np.random.default_rng(0))
    assert clip[-1] - clip[0] == 50 and set(np.diff(clip)) == {3, 4}


@given(VIDEO_FRAMES, st.floats(1, 120), st.floats(0, 40), st.floats(0.001, 40))
def test_frames_between_are_those_shown_in_the_interval(video_frames, fps, start, duration):
    times = np.arange(video_frames) / fps
    if start >= video_frames / fps:
        with pytest.raises(ValueError, match="the video ends after"):
            frames_between(video_frames, fps, start, start + duration)
        return
    first, count = frames_between(video_frames, fps, start, start + duration)
    assert count >= 1 and first + count <= video_frames
    assert (first, count) == frames_between(video_frames, fps, start, start + duration, times)
    inside = np.flatnonzero((times >= start + 1e-3) & (times < start + duration - 1e-3))
    assert set(inside) <= set(range(first, first + count)) and count <= len(inside) + 2


def test_frames_between_of_a_folder_count_30_images_per_second():
    assert frames_between(1, 0.0, 0, 1) == (0, 1)
    assert frames_between(300, 0.0, 299 / 30, 20) == (299, 1)
    with pytest.raises(ValueError, match="the video ends after 10 seconds"):
        frames_between(300, 0.0, 10, 20)


def test_frames_between_follow_the_times_of_a_varying_rate():
    times = np.array([0, 0.1, 0.2, 1.0, 1.1, 5.0])
    assert frames_between(6, 2.0, 0.2, 1.1, times) == (2, 2)
    assert frames_between(6, 2.0, 1.2, 4.0, times) == (5, 1), "an interval without a frame has the next one"
    assert frames_between(6, 2.0, 0, math.inf, times) == (0, 6)
