"""Masks for pre-training: how much and what they hide, and what they depend on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from networks.masking import MASK_TYPES, cube_mask, draw_masks, middle_frames


@given(
    st.sampled_from(MASK_TYPES),
    st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9)),
    st.floats(0.05, 0.95),
    st.integers(0, 10**6),
)
def test_draw_masks_hides_exactly_the_ratio(mask_type, grid, ratio, seed):
    mask = draw_masks(mask_type, grid, ratio, [(seed, 0, 3)])[0]
    assert mask.shape == grid and mask.dtype == bool
    t, h, w = grid
    equal_frames = {"tube": t, "frame_runs": max(1, int(ratio * t))}.get(mask_type)
    assert mask.sum() == (equal_frames * round(ratio * h * w) if equal_frames else round(ratio * t * h * w))
    if mask_type == "tube":
        assert (mask == mask[:1]).all()


def test_cube_mask_has_the_statistics_of_the_paper():
    masks = np.stack([cube_mask((8, 7, 7), 0.4, np.random.default_rng(seed)) for seed in range(1500)])
    assert set(masks.sum((1, 2, 3))) == {157}
    frequency = masks.mean(0)
    assert abs(frequency.mean() - 157 / 392) < 1e-9
    assert frequency[:, 3, 3].min() > frequency[:, 0, 0].max()  # cubes cover the middle more often than the corners
    np.testing.assert_allclose(frequency, frequency[:, ::-1], atol=0.06)  # and no side more than the other
    np.testing.assert_allclose(frequency, frequency[:, :, ::-1], atol=0.06)
    np.testing.assert_allclose(frequency, frequency[::-1], atol=0.06)
    random = draw_masks("random", (8, 7, 7), 0.4, [(0, 0, sample) for sample in range(300)])

    def share_of_equal_neighbors(masks):
        return np.mean([(masks == np.roll(masks, 1, axis)).mean() for axis in (1, 2, 3)])

    assert share_of_equal_neighbors(masks) > 0.65 and share_of_equal_neighbors(random) < 0.55


def test_middle_frames_finds_the_middle_of_each_run():
    mask = np.zeros((2, 8, 2, 2), bool)
    mask[0, 2:5, 0] = True  # frames 4-9 of 16
    mask[1, 0, 1] = True  # frames 0-1
    mask[1, 1:3, :, 0] = True  # frames 2-5, another run
    mask[1, 7] = True
    assert [list(np.flatnonzero(middle)) for middle in middle_frames(mask, 2)] == [[7], [1, 4, 15]]
    assert [list(np.flatnonzero(middle)) for middle in middle_frames(mask, 1)] == [[3], [0, 2, 7]]


def test_draw_masks_depends_on_the_seed_of_each_clip_alone():
    seeds = [(0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1)]
    masks = draw_masks("cube", (4, 6, 6), 0.4, seeds)
    for mask, seed in zip(masks, seeds, strict=True):
        assert (mask == draw_masks("cube", (4, 6, 6), 0.4, [seed])[0]).all()
    assert len({mask.tobytes() for mask in masks}) == 4


@pytest.mark.parametrize(
    ("mask_type", "ratio", "message"), [("cubes", 0.4, "mask='cubes'"), ("cube", 1.0, "mask_ratio=1.0")]
)
def test_draw_masks_refuses_wrong_arguments(mask_type, ratio, message):
    with pytest.raises(ValueError, match=message):
        draw_masks(mask_type, (4, 4, 4), ratio, [(0, 0, 0)])
