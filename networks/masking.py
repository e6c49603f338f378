"""Which parts of a clip a pre-training hides: boolean grids, True where hidden. Pure; drawn from a NumPy generator.

Shapes: t frames, h rows, w columns of a coarse grid; `ratio` of its cells is hidden, round(ratio t h w) exactly.
"""

import math
from collections.abc import Sequence

import numpy as np

KINDS = ("cube", "tube", "random", "runs")
SMALLEST, LARGEST, ASPECT = 9 / 49, 1.0, 0.3  # of a cube: share of a frame's cells, and narrowest height to width
ATTEMPTS = 100


def cube_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(t, h, w) bool: cubes of random area, aspect, length and place, overlapping, until enough is hidden (MaskFeat,
    section 4.1: 157 of 8x7x7 cells). The last one is left incomplete rather than one cell too many hidden."""
    t, h, w = grid
    mask, wanted = np.zeros((t, h, w), bool), round(ratio * t * h * w)
    for _ in range(ATTEMPTS * wanted):
        missing = wanted - int(mask.sum())
        if not missing:
            break
        area = rng.uniform(SMALLEST, LARGEST) * h * w
        aspect = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < rows < h and 0 < columns < w):
            continue
        frames = int(rng.integers(1, t + 1))
        front, top, left = (int(rng.integers(0, room + 1)) for room in (t - frames, h - rows, w - columns))
        cube = np.zeros_like(mask)
        cube[front : front + frames, top : top + rows, left : left + columns] = True
        new = np.flatnonzero(cube & ~mask)
        if len(new) > missing and missing > ratio * t * h * w / 10:
            continue  # try one that fits; near the end take a part
        mask.flat[rng.permutation(new)[:missing]] = True
    left_over = wanted - int(mask.sum())
    if left_over:  # grids of a row or a column have no such cubes
        mask.flat[rng.choice(np.flatnonzero(~mask), left_over, replace=False)] = True
    return mask


def tube_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(t, h, w) bool: the same random cells of every frame (VideoMAE, section 3.2)."""
    t, h, w = grid
    frame = np.zeros(h * w, bool)
    frame[rng.permutation(h * w)[: round(ratio * h * w)]] = True
    return np.broadcast_to(frame.reshape(1, h, w), (t, h, w)).copy()


def random_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(t, h, w) bool: cells hidden independently of each other."""
    mask = np.zeros(math.prod(grid), bool)
    mask[rng.permutation(mask.size)[: round(ratio * mask.size)]] = True
    return mask.reshape(tuple(grid))


def run_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(t, h, w) bool: runs of frames, int(ratio t) frames in all, each run with blocks of its own that hide the share
    of each of its frames; so ratio x ratio of all cells (VideoTransformer-pytorch)."""
    t, h, w = grid
    mask = np.zeros((t, h, w), bool)
    left = max(1, int(ratio * t))
    while left:
        start, length = int(rng.integers(0, t)), int(rng.integers(1, left + 1))
        blocks = cube_mask((1, h, w), ratio, rng)[0]
        for frame in range(start, min(start + length, t)):
            if mask[frame].any():
                break
            mask[frame] = blocks
            left -= 1
    return mask


def middle_frames(mask: np.ndarray, frames: int) -> np.ndarray:
    """(B, t, h, w) bool of run_mask -> (B, t, frames) bool: the middle frame of each run, `frames` frames to a cell."""
    middle = np.zeros((*mask.shape[:2], frames), bool)
    for clip, hidden in enumerate(mask):
        start = 0
        for end in range(1, len(hidden) + 1):
            if end < len(hidden) and (hidden[end] == hidden[start]).all():
                continue
            if hidden[start].any():
                middle[clip].flat[start * frames + (end - start) * frames // 2] = True
            start = end
    return middle


def draw_masks(kind: str, grid: Sequence[int], ratio: float, seeds: Sequence[Sequence[int]]) -> np.ndarray:
    """(B, t, h, w) bool, each from the (seed, epoch, sample) of its clip alone."""
    if kind not in KINDS:
        raise ValueError(f"mask={kind!r}: expected one of {', '.join(KINDS)}")
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"mask_ratio={ratio}: must lie between 0 and 1")
    draw = {"cube": cube_mask, "tube": tube_mask, "random": random_mask, "runs": run_mask}[kind]
    # the 2: [seed, epoch, sample, 1] alone is the stream of the clip's frames and crop
    return np.stack([draw(grid, ratio, np.random.default_rng([*seed, 2])) for seed in seeds])
