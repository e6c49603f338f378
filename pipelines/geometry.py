"""Where the network looks: crop boxes and flips. Pure; nothing here touches a pixel.

A box is (top, left, bottom, right) in pixels of the decoded frame, bottom and right exclusive, fractions allowed. The
graph resizes a box to the network's input in one pass, so a crop of a resized frame is a box of the original one.
"""

from __future__ import annotations

import math

import numpy as np


def random_resized_crop(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """(4,) float32: a box of random area (`scale`, share of the frame) and shape (`ratio`, width / height).

    The shape is log-uniform. Ten tries to fit it into the frame, then the largest centred box whose shape is allowed.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = rng.uniform(*scale) * width * height
        shape = math.exp(rng.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            y, x = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
            return _box(y, x, y + box_height, x + box_width)
    shape = min(max(width / height, ratio[0]), ratio[1])
    most_wide, most_high = min(width, height * shape), min(height, width / shape)
    top, left = (height - most_high) / 2, (width - most_wide) / 2
    return _box(top, left, top + most_high, left + most_wide)


def view_boxes(width: int, height: int, size: int, short_side: int, crops: int) -> np.ndarray:
    """(crops, 4) float32: squares that are size x size pixels once the frame's short side is resized to short_side.

    One crop: the centre. Three: start, middle and end of the longer side, centred on the shorter one, so that with
    short_side = size they cover a frame of up to 3:1 entirely, portrait or landscape.
    """
    side = min(width, height) * size / short_side
    along = [0.5] if crops == 1 else [i / (crops - 1) for i in range(crops)]
    boxes = []
    for place in along:
        top = (height - side) * (place if height > width else 0.5)
        left = (width - side) * (0.5 if height > width else place)
        boxes.append(_box(top, left, top + side, left + side))
    return np.stack(boxes)


def flip(probability: float, rng: np.random.Generator) -> bool:
    """Whether the clip is mirrored left to right."""
    return bool(rng.random() < probability)


def _box(top: float, left: float, bottom: float, right: float) -> np.ndarray:
    return np.array([top, left, bottom, right], np.float32)
