"""Choose what part of a frame the network sees: crop boxes and flips. Pure functions; nothing here touches a pixel.

A box is (top, left, bottom, right) in pixels of the decoded frame, bottom and right exclusive. It is resized to the
network's input in one pass, so a crop of a resized frame is expressed as a box of the original one. In training, boxes
begin and end on even pixels, where 4:2:0 video has its chroma samples: DALI, which crops RGB, and PyAV, which crops
YUV, then cut out the same pixels. The views of a test are whole pixels of the resized frame instead.
"""

from __future__ import annotations

import math

import numpy as np

_TRIES = 10  # of random_resized_crop


def random_resized_crop(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Draw a box (4,) float32 of random area (`scale`, fraction of the frame) and aspect ratio (width / height).

    The ratio is drawn log-uniformly. If ten boxes do not fit into the frame, the result is the largest centered box
    whose ratio is in range.
    """
    log_min, log_max = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(log_min, log_max))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            return _random_box(width, height, _even(box_width, width), _even(box_height, height), rng)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = _even(min(width, height * aspect), width), _even(min(height, width / aspect), height)
    return _box(_even_start(0.5, height, crop_height), _even_start(0.5, width, crop_width), crop_height, crop_width)


def scale_jittered_crop(
    width: int, height: int, size: int, short_side_range: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Draw a square box (4,) float32 that is size x size pixels once the short side is resized to a random length."""
    short_side = min(width, height)
    side = _even(short_side * size / rng.uniform(*short_side_range), short_side)
    return _random_box(width, height, side, side, rng)


def full_frame(width: int, height: int) -> np.ndarray:
    """Return the box (4,) float32 of the whole frame, for letterboxing."""
    return _box(0, 0, height, width)


def letterbox_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the (height, width) of a frame resized to fit into size x size."""
    scale = size / max(width, height)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return (width, height) of a frame whose short side is resized to `short_side`; the other is rounded down."""
    short = min(width, height)
    return max(width * short_side // short, 1), max(height * short_side // short, 1)


def view_boxes(width: int, height: int, size: int, short_side: int, num_crops: int) -> np.ndarray:
    """Return boxes (num_crops, 4) float32 of the frame that are size x size squares of it in `scaled_size`.

    One crop is in the center. Three are at the start, middle and end of the longer side, centered on the shorter one
    (SlowFast's uniform crop). With short_side = size they cover a frame of an aspect ratio up to 3:1.
    """
    scaled_width, scaled_height = scaled_size(width, height, short_side)
    boxes = []
    for crop in range(num_crops):
        along = crop / (num_crops - 1) if num_crops > 1 else 0.5
        top = math.ceil((scaled_height - size) * (along if height > width else 0.5))
        left = math.ceil((scaled_width - size) * (0.5 if height > width else along))
        boxes.append(_box(top, left, size, size))
    return np.stack(boxes) * np.array([height / scaled_height, width / scaled_width] * 2, np.float32)


def to_stored_orientation(boxes: np.ndarray, width: int, height: int, rotation: int) -> np.ndarray:
    """Convert boxes (n, 4) of the displayed frame (width x height) into boxes of the same pixels in the stored frame.

    Players rotate the stored frame by `rotation` quarter turns counterclockwise.
    """
    for _ in range(rotation):  # undo one quarter turn: the top row as displayed is the last column before it
        top, left, bottom, right = boxes.T
        boxes, width, height = np.stack([left, height - bottom, right, height - top], axis=1), height, width
    return boxes


def flip(probability: float, rng: np.random.Generator) -> bool:
    """Draw whether a clip is mirrored left to right."""
    return bool(rng.random() < probability)


def short_side_pixels(short_side: int | str, image_size: int) -> int:
    """Turn eval.short_side into pixels."""
    if isinstance(short_side, int):
        return short_side
    return image_size * 8 // 7 if short_side == "8/7" else image_size


def _even(length: float, limit: int) -> int:
    """Round to an even number of pixels, at least 2 and at most `limit` (a frame of one pixel keeps it)."""
    return limit if limit < 2 else min(max(2 * round(length / 2), 2), limit - limit % 2)


def _even_start(fraction: float, frame: int, box: int) -> int:
    """Return the even start of a box that is nearest to a fraction (0: first, 1: last) of its possible starts."""
    return 2 * math.floor((frame - box) // 2 * fraction + 0.5)


def _random_box(width: int, height: int, box_width: int, box_height: int, rng: np.random.Generator) -> np.ndarray:
    top = 2 * int(rng.integers((height - box_height) // 2 + 1))
    left = 2 * int(rng.integers((width - box_width) // 2 + 1))
    return _box(top, left, box_height, box_width)


def _box(top: int, left: int, height: int, width: int) -> np.ndarray:
    return np.array([top, left, top + height, left + width], np.float32)
