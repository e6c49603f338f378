"""spatial: boxes are inside the frame, have the drawn area and aspect ratio, and three views cover the frame."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sampling.spatial import (
    flip,
    full_frame,
    letterbox_size,
    random_resized_crop,
    scale_jittered_crop,
    scaled_size,
    to_stored_orientation,
    view_boxes,
)

SIDE, SEED = st.integers(2, 4096), st.integers(0, 2**32)
GRID = 2  # boxes lie on even pixels
SCALE = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair)))
RATIO = st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda pair: tuple(sorted(pair)))


def edges_and_size(box: np.ndarray) -> tuple[float, float, float, float, float, float]:
    """Return (top, left, bottom, right, width, height)."""
    top, left, bottom, right = map(float, box)
    return top, left, bottom, right, right - left, bottom - top


@given(SIDE, SIDE, SCALE, RATIO, SEED)
def test_random_resized_crop_is_in_range_or_the_largest_centered_box(w, h, scale, ratio, seed):
    box = random_resized_crop(w, h, scale, ratio, np.random.default_rng(seed))
    assert box.shape == (4,) and box.dtype == np.float32
    top, left, bottom, right, width, height = edges_and_size(box)
    assert 0 <= top < bottom <= h and 0 <= left < right <= w
    assert not (box % GRID).any()
    # Sides are rounded to the grid: by half a cell each, and by a whole cell at an odd side of the frame.
    g = GRID
    max_area, min_area = (width + g) * (height + g), (width - g) * (height - g)
    max_ratio = (width + g) / (height - g) if height > g else math.inf
    min_ratio = (width - g) / (height + g)
    is_area_in_range = max_area >= scale[0] * w * h and min_area <= scale[1] * w * h
    is_in_range = is_area_in_range and max_ratio >= ratio[0] and min_ratio <= ratio[1]
    is_largest_centered = (
        abs(top + bottom - h) <= g
        and abs(left + right - w) <= g
        and (w - width <= g or h - height <= g)
        and ratio[0] * (height - g) <= width + g
        and width - g <= ratio[1] * (height + g)
    )
    assert is_in_range or is_largest_centered


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 50), (50, 1), (2, 2), (3, 3)])
def test_boxes_of_tiny_frames_are_not_empty(width, height):
    box = random_resized_crop(width, height, (0.1, 1.0), (0.5, 2), np.random.default_rng(0))
    top, left, bottom, right, *_ = edges_and_size(box)
    assert 0 <= top < bottom <= height and 0 <= left < right <= width
    for top, left, bottom, right in view_boxes(width, height, 64, 64, 3).tolist():
        assert 0 <= top < bottom <= height and 0 <= left < right <= width


def test_random_resized_crop_fills_its_ranges():
    rng = np.random.default_rng(0)
    boxes = [edges_and_size(random_resized_crop(1000, 1000, (0.1, 0.5), (0.5, 2), rng)) for _ in range(2000)]
    area = np.array([width * height / 1e6 for *_, width, height in boxes])
    log_ratio = np.log2([width / height for *_, width, height in boxes])
    assert area.min() < 0.11 and area.max() > 0.48
    assert abs(np.mean(log_ratio)) < 0.05, "portrait and landscape are drawn alike"
    assert log_ratio.min() < -0.95 and log_ratio.max() > 0.95
    assert abs((np.abs(log_ratio) < 0.5).mean() - 0.5) < 0.05, "the ratio is log-uniform"


def test_random_resized_crop_draws_every_position():
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
def test_random_resized_crop_of_a_very_long_frame_is_the_largest_centered_box(width, height, ratio, expected):
    for seed in range(5):
        box = random_resized_crop(width, height, (0.9, 1.0), ratio, np.random.default_rng(seed))
        assert box.tolist() == expected


def test_random_resized_crop_of_scale_1_is_the_whole_frame():
    box = random_resized_crop(640, 480, (1.0, 1.0), (4 / 3, 4 / 3), np.random.default_rng(0))
    assert box.tolist() == [0, 0, 480, 640]


@given(st.integers(16, 2048), st.integers(16, 2048), st.integers(8, 224), st.floats(1, 2), st.floats(1, 2), SEED)
def test_scale_jittered_crop_is_a_square_within_the_range_of_short_sides(w, h, size, low, high, seed):
    low, high = sorted((low * size, high * size))
    box = scale_jittered_crop(w, h, size, (low, high), np.random.default_rng(seed))
    top, left, bottom, right, width, height = edges_and_size(box)
    assert box.dtype == np.float32 and not (box % GRID).any() and width == height
    assert 0 <= top < bottom <= h and 0 <= left < right <= w
    short_side = min(w, h)
    assert short_side * size / high - GRID <= width <= min(short_side * size / low + GRID, short_side)


@given(SIDE, SIDE, st.integers(8, 512))
def test_letterbox_size_touches_two_sides_and_keeps_the_aspect_ratio(w, h, size):
    height, width = letterbox_size(w, h, size)
    assert max(height, width) == size and min(height, width) >= 1
    assert abs(width * h - height * w) <= max(w, h) or min(height, width) == 1
    assert full_frame(w, h).tolist() == [0, 0, h, w]


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 3), SEED)
def test_to_stored_orientation_selects_the_same_pixels(w, h, rotation, seed):
    stored = np.arange(w * h).reshape(h, w)
    displayed = np.rot90(stored, rotation)
    height, width = displayed.shape
    rng = np.random.default_rng(seed)
    boxes = np.stack([random_resized_crop(width, height, (0.1, 1), (0.5, 2), rng) for _ in range(3)])
    stored_boxes = to_stored_orientation(boxes, width, height, rotation)
    for displayed_box, stored_box in zip(boxes.astype(int), stored_boxes.astype(int), strict=True):
        actual = np.rot90(cut(stored, stored_box), rotation)
        np.testing.assert_array_equal(actual, cut(displayed, displayed_box))


def cut(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    top, left, bottom, right = box
    return pixels[top:bottom, left:right]


# --- views --------------------------------------------------------------------------------------------------------


@given(st.integers(16, 4096), st.floats(1, 3), st.booleans(), st.integers(16, 512))
def test_three_view_boxes_cover_a_frame_of_up_to_3_to_1(short_side, ratio, portrait, size):
    long_side = math.floor(short_side * ratio)
    width, height = (short_side, long_side) if portrait else (long_side, short_side)
    boxes = view_boxes(width, height, size, size, 3)
    assert boxes.shape == (3, 4) and boxes.dtype == np.float32
    along, across = (boxes[:, [0, 2]], boxes[:, [1, 3]]) if portrait else (boxes[:, [1, 3]], boxes[:, [0, 2]])
    scaled_long_side = max(scaled_size(width, height, size))
    pixel = long_side / scaled_long_side  # of the scaled frame
    assert along[0, 0] == 0 and along[-1, 1] == pytest.approx(long_side, rel=1e-5)
    if scaled_long_side <= 3 * size:
        assert (along[1:, 0] <= along[:-1, 1] + pixel).all(), "no gap between neighbors but for rounding"
    np.testing.assert_allclose(across, [[0, short_side]] * 3, rtol=1e-5)


@given(st.integers(16, 4096), st.integers(16, 4096), st.integers(16, 512), st.integers(0, 512), st.sampled_from([1, 3]))
def test_view_boxes_are_squares_of_whole_pixels_of_the_scaled_frame(width, height, size, extra, num_crops):
    boxes = view_boxes(width, height, size, size + extra, num_crops)
    scaled_width, scaled_height = scaled_size(width, height, size + extra)
    assert min(scaled_width, scaled_height) == size + extra
    scaled = boxes.astype(float) * ([scaled_height / height, scaled_width / width] * 2)
    np.testing.assert_allclose(scaled, np.rint(scaled), atol=0.01)
    top, left, bottom, right = np.rint(scaled).T
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= scaled_height).all() and (right <= scaled_width).all()
    assert (right - left == size).all() and (bottom - top == size).all()
    centers, shorter_side = (
        ((left + right) / 2, scaled_width) if height > width else ((top + bottom) / 2, scaled_height)
    )
    np.testing.assert_allclose(centers, shorter_side / 2, atol=0.5)


@given(st.integers(16, 4096), st.integers(16, 4096), st.integers(16, 512), st.integers(0, 512))
def test_single_view_box_is_in_the_center_and_is_the_middle_of_three(width, height, size, extra):
    (center,) = view_boxes(width, height, size, size + extra, 1)
    first, middle, last = view_boxes(width, height, size, size + extra, 3)
    np.testing.assert_array_equal(middle, center)
    pixel = max(np.divide((width, height), scaled_size(width, height, size + extra)))
    np.testing.assert_allclose((first + last) / 2, center, atol=0.5 * pixel + 0.01)


def test_view_boxes_of_landscape_and_portrait_frames():
    assert view_boxes(300, 100, 50, 50, 3).tolist() == [[0, 0, 100, 100], [0, 100, 100, 200], [0, 200, 100, 300]]
    assert view_boxes(100, 300, 50, 50, 3).tolist() == [[0, 0, 100, 100], [100, 0, 200, 100], [200, 0, 300, 100]]
    assert view_boxes(300, 100, 50, 100, 3).tolist() == [[25, 0, 75, 50], [25, 125, 75, 175], [25, 250, 75, 300]]
    assert view_boxes(100, 100, 50, 50, 3).tolist() == [[0, 0, 100, 100]] * 3


def test_view_boxes_are_those_of_slowfasts_uniform_crop():
    """340x256 is scaled to 297x224; the crops begin at 0, ceil((297 - 224) / 2) = 37 and 297 - 224 = 73."""
    lefts = view_boxes(340, 256, 224, 224, 3)[:, 1] * 297 / 340
    np.testing.assert_allclose(lefts, [0, 37, 73], atol=1e-4)


# --- flips --------------------------------------------------------------------------------------------------------


def test_flip_has_its_probability():
    rng = np.random.default_rng(0)
    assert not any(flip(0.0, rng) for _ in range(500))
    assert all(flip(1.0, rng) for _ in range(500))
    assert abs(sum(flip(0.25, rng) for _ in range(4000)) / 4000 - 0.25) < 0.03
    assert type(flip(0.5, rng)) is bool
