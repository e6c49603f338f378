"""geometry: boxes lie in the frame, have the asked area and shape, and the three views leave nothing out."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sampling.spatial import fitted, flip, jittered_crop, random_resized_crop, stored, view_boxes, whole_frame

SIDE, SEED = st.integers(2, 4096), st.integers(0, 2**32)
GRID = 2  # boxes lie on even pixels
SCALE = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair)))
RATIO = st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda pair: tuple(sorted(pair)))


def parts(box: np.ndarray) -> tuple[float, float, float, float, float, float]:
    top, left, bottom, right = map(float, box)
    return top, left, bottom, right, right - left, bottom - top


@given(SIDE, SIDE, SCALE, RATIO, SEED)
def test_a_random_box_has_the_asked_area_and_shape_or_is_the_largest_centred(w, h, scale, ratio, seed):
    box = random_resized_crop(w, h, scale, ratio, np.random.default_rng(seed))
    assert box.shape == (4,) and box.dtype == np.float32
    top, left, bottom, right, width, height = parts(box)
    assert 0 <= top < bottom <= h and 0 <= left < right <= w
    assert not (box % GRID).any()
    # Sides are rounded to the grid: by half of it each, and by a whole one at the frame's own odd side.
    g = GRID
    big, small = (width + g) * (height + g), (width - g) * (height - g)
    wide = (width + g) / (height - g) if height > g else math.inf
    narrow = (width - g) / (height + g)
    drawn = big >= scale[0] * w * h and small <= scale[1] * w * h and wide >= ratio[0] and narrow <= ratio[1]
    largest = (
        abs(top + bottom - h) <= g
        and abs(left + right - w) <= g
        and (w - width <= g or h - height <= g)
        and ratio[0] * (height - g) <= width + g
        and width - g <= ratio[1] * (height + g)
    )
    assert drawn or largest


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 50), (50, 1), (2, 2), (3, 3)])
def test_the_smallest_frames_have_boxes(width, height):
    for box in (
        random_resized_crop(width, height, (0.1, 1.0), (0.5, 2), np.random.default_rng(0)),
        *view_boxes(width, height, 64, 64, 3),
    ):
        top, left, bottom, right, *_ = parts(box)
        assert 0 <= top < bottom <= height and 0 <= left < right <= width


def test_boxes_fill_the_asked_ranges():
    rng = np.random.default_rng(0)
    boxes = [parts(random_resized_crop(1000, 1000, (0.1, 0.5), (0.5, 2), rng)) for _ in range(2000)]
    area = np.array([width * height / 1e6 for *_, width, height in boxes])
    shape = np.log2([width / height for *_, width, height in boxes])
    assert area.min() < 0.11 and area.max() > 0.48
    assert abs(np.mean(shape)) < 0.05, "portrait and landscape are drawn alike"
    assert shape.min() < -0.95 and shape.max() > 0.95
    assert abs((np.abs(shape) < 0.5).mean() - 0.5) < 0.05, "the ratio is log-uniform"


def test_every_place_is_drawn():
    rng = np.random.default_rng(0)
    counts = Counter(tuple(random_resized_crop(8, 8, (0.25, 0.25), (1, 1), rng)[:2].tolist()) for _ in range(1800))
    assert sorted(counts) == [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)]
    assert min(counts.values()) > 130


@pytest.mark.parametrize(
    ("width", "height", "ratio", "expected"),
    [
        (1000, 10, (1, 1), [0, 496, 10, 506]),
        (10, 1000, (1, 1), [496, 0, 506, 10]),
        (1000, 10, (0.5, 2), [0, 490, 10, 510]),
        (10, 1000, (0.5, 2), [490, 0, 510, 10]),
    ],
)
def test_a_frame_too_long_for_any_box_gives_its_largest_centred_one(width, height, ratio, expected):
    for seed in range(5):
        box = random_resized_crop(width, height, (0.9, 1.0), ratio, np.random.default_rng(seed))
        assert box.tolist() == expected


def test_the_whole_frame_is_a_box_of_itself():
    box = random_resized_crop(640, 480, (1.0, 1.0), (4 / 3, 4 / 3), np.random.default_rng(0))
    assert box.tolist() == [0, 0, 480, 640]


@given(st.integers(16, 2048), st.integers(16, 2048), st.integers(8, 224), st.floats(1, 2), st.floats(1, 2), SEED)
def test_a_jittered_crop_is_a_square_as_large_as_the_short_side_says(w, h, size, low, high, seed):
    low, high = sorted((low * size, high * size))
    box = jittered_crop(w, h, size, (low, high), np.random.default_rng(seed))
    top, left, bottom, right, width, height = parts(box)
    assert box.dtype == np.float32 and not (box % GRID).any() and width == height
    assert 0 <= top < bottom <= h and 0 <= left < right <= w
    short = min(w, h)
    assert short * size / high - GRID <= width <= min(short * size / low + GRID, short)


@given(SIDE, SIDE, st.integers(8, 512))
def test_a_letterboxed_frame_touches_two_sides_and_keeps_its_shape(w, h, size):
    height, width = fitted(w, h, size)
    assert max(height, width) == size and min(height, width) >= 1
    assert abs(width * h - height * w) <= max(w, h) or min(height, width) == 1
    assert whole_frame(w, h).tolist() == [0, 0, h, w]


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 3), SEED)
def test_a_box_of_the_shown_frame_holds_the_same_pixels_of_the_stored_one(w, h, turns, seed):
    pixels = np.arange(w * h).reshape(h, w)
    shown = np.rot90(pixels, turns)
    boxes = view_boxes(shown.shape[1], shown.shape[0], 8, 8, 3)
    for box, inside in zip(
        boxes.astype(int), stored(boxes, shown.shape[1], shown.shape[0], turns).astype(int), strict=True
    ):
        top, left, bottom, right = box
        a, b, c, d = inside
        np.testing.assert_array_equal(np.rot90(pixels[a:c, b:d], turns), shown[top:bottom, left:right])


# --- views --------------------------------------------------------------------------------------------------------


@given(st.integers(16, 4096), st.floats(1, 3), st.booleans(), st.integers(16, 512))
def test_three_views_cover_a_frame_of_up_to_3_to_1(short, shape, portrait, size):
    long = math.floor(short * shape)
    width, height = (short, long) if portrait else (long, short)
    boxes = view_boxes(width, height, size, size, 3)
    assert boxes.shape == (3, 4) and boxes.dtype == np.float32
    along, across = (boxes[:, [0, 2]], boxes[:, [1, 3]]) if portrait else (boxes[:, [1, 3]], boxes[:, [0, 2]])
    assert along[0, 0] == 0 and long - along[-1, 1] < GRID
    assert (along[1:, 0] <= along[:-1, 1] + GRID).all(), "no gap between neighbours but for an odd row"
    assert (across == [0, short - short % GRID]).all()


@given(st.integers(16, 4096), st.integers(16, 4096), st.integers(16, 512), st.integers(0, 512), st.sampled_from([1, 3]))
def test_views_are_squares_of_the_asked_share_inside_the_frame(width, height, size, extra, crops):
    boxes = view_boxes(width, height, size, size + extra, crops)
    top, left, bottom, right = boxes.T.astype(float)
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= height).all() and (right <= width).all()
    side = min(width, height) * size / (size + extra)
    np.testing.assert_allclose([right - left, bottom - top], side, atol=GRID)
    assert not (boxes % GRID).any()
    shorter, least = ((left + right) / 2, width) if height > width else ((top + bottom) / 2, height)
    np.testing.assert_allclose(shorter, least / 2, atol=GRID / 2)  # centred on the shorter side


@given(st.integers(16, 4096), st.integers(16, 4096), st.integers(16, 512), st.integers(0, 512))
def test_the_centre_view_is_in_the_centre_and_is_the_middle_of_three(width, height, size, extra):
    (centre,) = view_boxes(width, height, size, size + extra, 1)
    top, left, bottom, right, *_ = parts(centre)
    assert top + bottom == pytest.approx(height, abs=GRID) and left + right == pytest.approx(width, abs=GRID)
    first, middle, last = view_boxes(width, height, size, size + extra, 3)
    np.testing.assert_array_equal(middle, centre)
    np.testing.assert_allclose((first + last) / 2, centre, atol=GRID)


def test_views_of_a_landscape_and_a_portrait_frame():
    assert view_boxes(300, 100, 50, 50, 3).tolist() == [[0, 0, 100, 100], [0, 100, 100, 200], [0, 200, 100, 300]]
    assert view_boxes(100, 300, 50, 50, 3).tolist() == [[0, 0, 100, 100], [100, 0, 200, 100], [200, 0, 300, 100]]
    assert view_boxes(300, 100, 50, 100, 3).tolist() == [[26, 0, 76, 50], [26, 126, 76, 176], [26, 250, 76, 300]]
    assert view_boxes(100, 100, 50, 50, 3).tolist() == [[0, 0, 100, 100]] * 3


# --- flips --------------------------------------------------------------------------------------------------------


def test_a_flip_has_its_probability():
    rng = np.random.default_rng(0)
    assert not any(flip(0.0, rng) for _ in range(500))
    assert all(flip(1.0, rng) for _ in range(500))
    assert abs(sum(flip(0.25, rng) for _ in range(4000)) / 4000 - 0.25) < 0.03
    assert type(flip(0.5, rng)) is bool
