"""Where the network looks: crop boxes and flips. Pure; nothing here touches a pixel.

A box is (top, left, bottom, right) in pixels of the decoded frame, bottom and right exclusive. It is resized to the
network's input in one pass, so a crop of a resized frame is a box of the original one. Boxes lie on even pixels, where
4:2:0 video has its colours: DALI, which crops RGB, and the host, which crops YUV, then see the same picture.
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
        box_width, box_height = math.sqrt(area * shape), math.sqrt(area / shape)
        if box_width <= width and box_height <= height:
            across, down = _even(box_width, width), _even(box_height, height)
            top, left = rng.integers((height - down) // 2 + 1), rng.integers((width - across) // 2 + 1)
            return _box(2 * int(top), 2 * int(left), down, across)
    shape = min(max(width / height, ratio[0]), ratio[1])
    across, down = _even(min(width, height * shape), width), _even(min(height, width / shape), height)
    return _box(_along(0.5, height, down), _along(0.5, width, across), down, across)


def jittered_crop(
    width: int, height: int, size: int, short_sides: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """(4,) float32: a square anywhere, size x size pixels once the short side is resized to a length drawn."""
    short = min(width, height)
    side = _even(short * size / rng.uniform(*short_sides), short)
    top, left = rng.integers((height - side) // 2 + 1), rng.integers((width - side) // 2 + 1)
    return _box(2 * int(top), 2 * int(left), side, side)


def whole_frame(width: int, height: int) -> np.ndarray:
    """(4,) float32: all of it, for letterboxing."""
    return _box(0, 0, height, width)


def fitted(width: int, height: int, size: int) -> tuple[int, int]:
    """(height, width) of a frame made as large as fits into size x size."""
    scale = size / max(width, height)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def view_boxes(width: int, height: int, size: int, short_side: int, crops: int) -> np.ndarray:
    """(crops, 4) float32: squares that are size x size pixels once the frame's short side is resized to short_side.

    One crop: the centre. Three: start, middle and end of the longer side, centred on the shorter one, so that with
    short_side = size they cover a frame of up to 3:1, portrait or landscape, but for an odd last row or column.
    """
    short = min(width, height)
    side = _even(short * size / short_side, short)
    along = [0.5] if crops == 1 else [i / (crops - 1) for i in range(crops)]
    return np.stack([
        _box(
            _along(place if height > width else 0.5, height, side),
            _along(0.5 if height > width else place, width, side), side, side,
        )
        for place in along
    ])  # fmt: skip


def stored(boxes: np.ndarray, width: int, height: int, turns: int) -> np.ndarray:
    """(n, 4) boxes of the frame as it is shown (width x height) -> the same pixels in the frame as it is stored.

    The shown frame is the stored one after `turns` quarter turns, anticlockwise.
    """
    for _ in range(turns):  # undo one: what is the top row when shown is the last column before
        top, left, bottom, right = boxes.T
        boxes, width, height = np.stack([left, height - bottom, right, height - top], axis=1), height, width
    return boxes


def flip(probability: float, rng: np.random.Generator) -> bool:
    """Whether the clip is mirrored left to right."""
    return bool(rng.random() < probability)


def _even(length: float, most: int) -> int:
    """The nearest even number of pixels, at least 2 and within the frame (a frame of one pixel stays one)."""
    return most if most < 2 else min(max(2 * round(length / 2), 2), most - most % 2)


def _along(place: float, frame: int, box: int) -> int:
    """The even start nearest to `place` (0 start, 1 end) of the places that a box has in a frame."""
    return 2 * math.floor((frame - box) // 2 * place + 0.5)


def _box(top: int, left: int, height: int, width: int) -> np.ndarray:
    return np.array([top, left, top + height, left + width], np.float32)
