"""Masks for pre-training: boolean grids, True where a clip is hidden. Pure arithmetic, drawn from a NumPy generator.

Shapes: t frames, h rows, w columns of a coarse grid; `ratio` of its cells is hidden, round(ratio t h w) exactly.
"""

import math
from collections.abc import Sequence

import numpy as np

from utils import random_streams

MASK_TYPES = ("cube", "tube", "random", "frame_runs")
# The two masks of V-JEPA: the area of a block as a share of a frame, and the share that its blocks hide together.
# V-JEPA draws 8 small or 2 large blocks, which on a 16x16 grid hide 0.62 and 0.81 on average, and cuts what is visible
# and what is predicted to the least of a batch. Here as many blocks are drawn as hide just that share: the number of
# tokens does not depend on the batch, nor on the number of processes.
MULTI_BLOCKS = ((0.15, 0.62), (0.7, 0.81))
MIN_BLOCK_ASPECT, MAX_BLOCK_ASPECT = 0.75, 1.5  # height / width
MIN_CUBE_AREA, MAX_CUBE_AREA = 9 / 49, 1.0  # share of a frame's cells
MIN_CUBE_ASPECT = 0.3  # height / width; at most its inverse
MAX_DRAWS_PER_CELL = 100


def cube_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return (t, h, w) bool: overlapping cubes, drawn until enough cells are hidden (MaskFeat, section 4.1).

    Area, aspect ratio, length and position of a cube are random. The paper hides 157 of 8x7x7 cells. Only a part of
    the last cube is used if all of it would hide too many cells.
    """
    t, h, w = grid
    mask, num_hidden = np.zeros((t, h, w), bool), round(ratio * t * h * w)
    for _ in range(MAX_DRAWS_PER_CELL * num_hidden):
        missing = num_hidden - int(mask.sum())
        if not missing:
            break
        cube = _draw_cube(t, h, w, rng)
        if cube is None:
            continue
        added = np.flatnonzero(cube & ~mask)
        if len(added) > missing and missing > ratio * t * h * w / 10:
            continue  # while much is missing, draw another cube, which may fit as a whole
        mask.flat[rng.permutation(added)[:missing]] = True
    missing = num_hidden - int(mask.sum())
    if missing:  # a grid of one row or one column has no cubes of the required shape
        mask.flat[rng.choice(np.flatnonzero(~mask), missing, replace=False)] = True
    return mask


def _draw_cube(t: int, h: int, w: int, rng: np.random.Generator) -> np.ndarray | None:
    """Return (t, h, w) bool, True in one cube, or None if the drawn one is not smaller than a frame."""
    area = rng.uniform(MIN_CUBE_AREA, MAX_CUBE_AREA) * h * w
    aspect = math.exp(rng.uniform(math.log(MIN_CUBE_ASPECT), -math.log(MIN_CUBE_ASPECT)))
    rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < rows < h and 0 < columns < w):
        return None
    frames = int(rng.integers(1, t + 1))
    first, top, left = (int(rng.integers(0, last + 1)) for last in (t - frames, h - rows, w - columns))
    cube = np.zeros((t, h, w), bool)
    cube[first : first + frames, top : top + rows, left : left + columns] = True
    return cube


def tube_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return (t, h, w) bool: the same random cells in every frame (VideoMAE, section 3.2)."""
    t, h, w = grid
    frame = np.zeros(h * w, bool)
    frame[rng.permutation(h * w)[: round(ratio * h * w)]] = True
    return np.broadcast_to(frame.reshape(1, h, w), (t, h, w)).copy()


def random_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return (t, h, w) bool: cells hidden independently of each other."""
    mask = np.zeros(math.prod(grid), bool)
    mask[rng.permutation(mask.size)[: round(ratio * mask.size)]] = True
    return mask.reshape(tuple(grid))


def frame_run_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return (t, h, w) bool: runs of int(ratio t) frames in all, at least one (VideoTransformer-pytorch).

    All frames of a run have the same random blocks, which hide `ratio` of a frame; so about ratio x ratio of all cells
    are hidden.
    """
    t, h, w = grid
    mask = np.zeros((t, h, w), bool)
    frames_left = max(1, int(ratio * t))
    while frames_left:
        start, length = int(rng.integers(0, t)), int(rng.integers(1, frames_left + 1))
        blocks = cube_mask((1, h, w), ratio, rng)[0]
        for frame in range(start, min(start + length, t)):
            if mask[frame].any():
                break
            mask[frame] = blocks
            frames_left -= 1
    return mask


def middle_frames(mask: np.ndarray, frames_per_cell: int) -> np.ndarray:
    """(B, t, h, w) bool of `frame_run_mask` -> (B, t, frames_per_cell) bool, True in the middle frame of each run."""
    middle = np.zeros((*mask.shape[:2], frames_per_cell), bool)
    for clip, clip_mask in enumerate(mask):
        start = 0
        for end in range(1, len(clip_mask) + 1):
            if end < len(clip_mask) and (clip_mask[end] == clip_mask[start]).all():
                continue
            if clip_mask[start].any():
                middle[clip].flat[start * frames_per_cell + (end - start) * frames_per_cell // 2] = True
            start = end
    return middle


def multi_block_masks(grid: Sequence[int], seeds: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return for each of MULTI_BLOCKS the masks (B, t, h, w) bool: blocks of the same size in all frames (V-JEPA,
    section 3.2).

    Blocks are drawn until enough cells are hidden; of the last one only a part is used if all of it would be too much.
    """
    masks: list[list[np.ndarray]] = [[] for _ in MULTI_BLOCKS]
    for seed in seeds:
        rng = np.random.default_rng([*seed, random_streams.MASK])
        for number, (area, ratio) in enumerate(MULTI_BLOCKS):
            masks[number].append(_multi_block_mask(grid, area, ratio, rng))
    return [np.stack(part) for part in masks]


def _multi_block_mask(grid: Sequence[int], area: float, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return (t, h, w) bool: blocks that hide `ratio` of a frame."""
    t, h, w = grid
    aspect = rng.uniform(MIN_BLOCK_ASPECT, MAX_BLOCK_ASPECT)
    cells = max(1, int(area * h * w))
    rows, columns = min(h, max(1, round(math.sqrt(cells * aspect)))), min(w, max(1, round(math.sqrt(cells / aspect))))
    frame, num_hidden = np.zeros((h, w), bool), round(ratio * h * w)
    while (missing := num_hidden - int(frame.sum())) > 0:
        top, left = int(rng.integers(0, h - rows + 1)), int(rng.integers(0, w - columns + 1))
        block = np.zeros((h, w), bool)
        block[top : top + rows, left : left + columns] = True
        added = np.flatnonzero(block & ~frame)
        frame.flat[rng.permutation(added)[:missing]] = True
    return np.broadcast_to(frame, (t, h, w)).copy()


def running_cell_masks(grid: Sequence[int], ratio: float, seeds: Sequence[Sequence[int]]) -> np.ndarray:
    """Return (B, t, h, w) bool: 2x2 cells with 4 x ratio hidden patches that move on by one from frame to frame
    (VideoMAE v2, section 3.2).

    All cells are alike; where they start is drawn from a clip's seed. Raises ValueError for grids of odd height or
    width, and for a ratio that hides no patch of a cell or all of them.
    """
    t, h, w = grid
    num_hidden = round(4 * ratio)
    if h % 2 or w % 2:
        raise ValueError(f"decoder_mask_ratio: running cells of 2x2 do not divide the {h}x{w} patches of a frame")
    if 4 * ratio not in (1, 2, 3):
        raise ValueError(f"decoder_mask_ratio={ratio}: expected 0.25, 0.5 or 0.75, for running cells of 2x2 patches")
    masks = []
    for seed in seeds:
        start = int(np.random.default_rng([*seed, random_streams.DECODER_MASK]).integers(4))
        order = (np.arange(4) + np.arange(start + 1, start + 1 + t)[:, None]) % 4  # (t, 4)
        masks.append(np.tile((order < num_hidden).reshape(t, 2, 2), (1, h // 2, w // 2)))
    return np.stack(masks)


def upsample_mask(mask: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """(B, t, h, w) -> (B, t', h', w') of a finer grid: each cell is repeated."""
    for axis, size in enumerate(grid, 1):
        mask = mask.repeat(size // mask.shape[axis], axis)
    return mask


def draw_masks(mask_type: str, grid: Sequence[int], ratio: float, seeds: Sequence[Sequence[int]]) -> np.ndarray:
    """Return (B, t, h, w) bool: one mask per clip, which depends on the clip's seed (seed, epoch, sample) alone.

    Raises ValueError for an unknown type, and for a ratio that is not between 0 and 1.
    """
    if mask_type not in MASK_TYPES:
        raise ValueError(f"mask={mask_type!r}: expected one of {', '.join(MASK_TYPES)}")
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"mask_ratio={ratio}: must lie between 0 and 1")
    draw = {"cube": cube_mask, "tube": tube_mask, "random": random_mask, "frame_runs": frame_run_mask}[mask_type]
    # The 2 makes a stream of its own: [seed, epoch, sample, 1] is the one that draws the clip's frames and crop.
    return np.stack([draw(grid, ratio, np.random.default_rng([*seed, random_streams.MASK])) for seed in seeds])
