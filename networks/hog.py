"""Histograms of oriented gradients as MaskFeat's targets (Wei et al., 2022, section 3.2): on the device, batched.

Definition: Sobel gradients of each colour (reflected at the border), magnitude |(gx, gy)|, unsigned orientation
atan2(gx, gy) in 9 bins of 20 degrees, the magnitude added to its one bin, summed over cells of 8x8 pixels, each cell's
9 numbers divided by their L2 norm.

Shapes: N frames, 3 colours, H W pixels; t h w the grid of tokens.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

BINS, CELL = 9, 8


def hog(frames: Tensor, window: int = 0) -> Tensor:
    """(N, 3, H, W), H and W multiples of 8 -> (N, 3, 9, H / 8, W / 8) float32.

    window > 0 weighs the magnitudes by a Gaussian repeated every `window` pixels (16 in mmselfsup; SlowFast has none).
    """
    height, width = frames.shape[-2:]
    if height % CELL or width % CELL:
        raise ValueError(f"frames of {height}x{width}: HOG cells of {CELL} pixels do not divide them")
    pixels = F.pad(frames.float(), (1, 1, 1, 1), mode="reflect")
    # Sobel in two passes: (1, 2, 1) along one axis, a difference along the other
    smooth_rows = pixels[..., :-2, :] + 2 * pixels[..., 1:-1, :] + pixels[..., 2:, :]
    smooth_columns = pixels[..., :-2] + 2 * pixels[..., 1:-1] + pixels[..., 2:]
    gx = smooth_rows[..., :-2] - smooth_rows[..., 2:]
    gy = smooth_columns[..., :-2, :] - smooth_columns[..., 2:, :]
    magnitude = torch.sqrt(gx * gx + gy * gy)
    if window:
        magnitude = magnitude * gaussian(window, height, width, frames.device)
    # Whether atan2(gx, gy) is beyond k 20 degrees is the sign of a cross product, once it points into [0, 180): cheaper
    # than the angle, and a bin at a time fuses into few passes, with the same sum in the same order on every device.
    opposite = (gx < 0) | ((gx == 0) & (gy < 0))
    gx, gy = torch.where(opposite, -gx, gx), torch.where(opposite, -gy, gy)
    bins = []
    for number in range(BINS):
        inside = magnitude
        if number:
            inside = torch.where(is_beyond(gx, gy, number), inside, 0.0)
        if number + 1 < BINS:
            inside = torch.where(is_beyond(gx, gy, number + 1), 0.0, inside)
        cells = rearrange(inside, "n C (h a) (w b) -> n C h a w b", a=CELL, b=CELL)
        bins.append(cells.sum(3).sum(-1))
    return F.normalize(torch.stack(bins, dim=2), dim=2)


def is_beyond(gx: Tensor, gy: Tensor, number: int) -> Tensor:
    """Whether atan2(gx, gy), in [0, 180) degrees, is at least number x 20."""
    angle = number * math.pi / BINS
    return gx * math.cos(angle) - gy * math.sin(angle) >= 0


def gaussian(window: int, height: int, width: int, device: torch.device) -> Tensor:
    """(H, W): a normal density of deviation window / 4 around the middle of each window, where it sums to 1."""
    if height % window or width % window:
        raise ValueError(f"hog_window={window} does not divide frames of {height}x{width}")
    offset = torch.arange(window, device=device) - (window - 1) / 2
    line = torch.exp(-(offset**2) / (2 * (window / 4) ** 2))
    one = line[:, None] * line[None, :]
    return (one / one.sum()).repeat(height // window, width // window)


def hog_targets(video: Tensor, grid: Sequence[int], window: int = 0) -> Tensor:
    """(B, 3, T, H, W) -> (B, t, h, w, 27 c c): of the first frame of each token, c x c the cells that one covers.

    Numbers are ordered colour, bin, row and column of the cell. Raises ValueError if a token covers no whole cells.
    """
    t, h, w = grid
    batch, _, frames, height, width = video.shape
    if frames % t or height % (h * CELL) or width % (w * CELL):
        raise ValueError(
            f"video of {frames}x{height}x{width}: its {t}x{h}x{w} tokens cover no whole HOG cells of {CELL}"
        )
    first = rearrange(video[:, :, :: frames // t], "B C t H W -> (B t) C H W")
    cells = hog(first, window)
    return rearrange(cells, "(B t) C o (h a) (w b) -> B t h w (C o a b)", t=t, h=h, w=w)


def target_width(image_size: Sequence[int], grid: Sequence[int]) -> int:
    """How many numbers a token's target has: 108 for tokens of 16x16 pixels."""
    (height, width), (_, h, w) = image_size, grid
    if height % (h * CELL) or width % (w * CELL):
        raise ValueError(
            f"image_size={height}x{width}: tokens of a {h}x{w} grid cover no whole HOG cells of {CELL} pixels"
        )
    return 3 * BINS * (height // h // CELL) * (width // w // CELL)


def draw_cells(cells: Tensor, size: int = 16) -> Tensor:
    """(9, h, w) of a colour, or of their mean -> (h size, w size): edges, in each cell a line across each gradient."""
    place = torch.arange(size) - (size - 1) / 2
    row, column = place[:, None], place[None, :]
    picture = torch.zeros(cells.shape[1] * size, cells.shape[2] * size)
    for number in range(BINS):
        angle = (number + 0.5) * math.pi / BINS  # the gradient is (sin, cos) in columns and rows
        line = ((math.sin(angle) * column + math.cos(angle) * row).abs() < 0.7) & (row**2 + column**2 < (size / 2) ** 2)
        picture += torch.kron(cells[number].float().cpu().clamp_min(0), line.float())
    return picture
