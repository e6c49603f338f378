"""Histograms of oriented gradients as MaskFeat's targets (Wei et al., 2022, section 3.2): on the device, batched.

Definition: Sobel gradients of each color (reflected at the border), magnitude |(gx, gy)|, unsigned orientation
atan2(gx, gy) in 9 bins of 20 degrees. The magnitude is added to its one bin and summed over cells of 8x8 pixels; the 9
numbers of a cell are divided by their L2 norm. This is SlowFast's convention, gradient="sobel". scikit-image's,
"central", differs in the gradients (differences of the two neighbors, zero at the border) and the angle, atan2(gy, gx).

Shapes: N frames, 3 colors, H W pixels; t h w the grid of tokens.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

BINS, CELL = 9, 8
GRADIENTS = ("sobel", "central")


def hog(frames: Tensor, window: int = 0, gradient: str = "sobel") -> Tensor:
    """(N, 3, H, W) -> (N, 3, 9, H / 8, W / 8) float32. Raises ValueError unless H and W are multiples of 8.

    window > 0 weights the magnitudes by a Gaussian that repeats every `window` pixels (mmselfsup: 16; SlowFast: none).
    """
    height, width = frames.shape[-2:]
    if height % CELL or width % CELL:
        raise ValueError(f"frames of {height}x{width}: HOG cells of {CELL} pixels do not divide them")
    rise, run = gradients(frames.float(), gradient)
    magnitude = torch.sqrt(rise * rise + run * run)
    if window:
        magnitude = magnitude * gaussian_weights(window, height, width, frames.device)
    # Once the gradient points into [0, 180) degrees, the sign of a cross product tells whether its angle reaches the
    # edge of a bin. That is cheaper than the angle itself, and one bin at a time compiles to few kernels that add up in
    # the same order on every device.
    is_opposite = (rise < 0) | ((rise == 0) & (run < 0))
    rise, run = torch.where(is_opposite, -rise, rise), torch.where(is_opposite, -run, run)
    histogram = []
    for bin_index in range(BINS):
        in_bin = magnitude
        if bin_index:
            in_bin = torch.where(reaches_bin(rise, run, bin_index), in_bin, 0.0)
        if bin_index + 1 < BINS:
            in_bin = torch.where(reaches_bin(rise, run, bin_index + 1), 0.0, in_bin)
        cells = rearrange(in_bin, "n C (h a) (w b) -> n C h a w b", a=CELL, b=CELL)
        histogram.append(cells.sum(3).sum(-1))
    return F.normalize(torch.stack(histogram, dim=2), dim=2)


def gradients(frames: Tensor, gradient: str) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) -> rise and run, (N, 3, H, W) each, whose atan2 is the orientation."""
    if gradient == "sobel":
        pixels = F.pad(frames, (1, 1, 1, 1), mode="reflect")
        # The filter is separable: weights (1, 2, 1) along one axis, a difference along the other.
        smooth_rows = pixels[..., :-2, :] + 2 * pixels[..., 1:-1, :] + pixels[..., 2:, :]
        smooth_columns = pixels[..., :-2] + 2 * pixels[..., 1:-1] + pixels[..., 2:]
        gx = smooth_rows[..., :-2] - smooth_rows[..., 2:]
        gy = smooth_columns[..., :-2, :] - smooth_columns[..., 2:, :]
        return gx, gy
    if gradient == "central":
        gx = F.pad(frames[..., 2:] - frames[..., :-2], (1, 1))
        gy = F.pad(frames[..., 2:, :] - frames[..., :-2, :], (0, 0, 1, 1))
        return gy, gx
    raise ValueError(f"gradient={gradient!r}: expected one of {', '.join(GRADIENTS)}")


def reaches_bin(rise: Tensor, run: Tensor, bin_index: int) -> Tensor:
    """Return where atan2(rise, run), which lies in [0, 180) degrees, is at least bin_index x 20 degrees."""
    angle = bin_index * math.pi / BINS
    return rise * math.cos(angle) - run * math.sin(angle) >= 0


def gaussian_weights(window: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return (H, W): windows of normal densities of standard deviation window / 4, each of which sums to 1.

    Raises ValueError if the window does not divide height and width.
    """
    if height % window or width % window:
        raise ValueError(f"hog_window={window} does not divide frames of {height}x{width}")
    offset = torch.arange(window, device=device) - (window - 1) / 2
    density = torch.exp(-(offset**2) / (2 * (window / 4) ** 2))
    weights = density[:, None] * density[None, :]
    return (weights / weights.sum()).repeat(height // window, width // window)


def hog_targets(
    video: Tensor, grid: Sequence[int], target_frames: int = 1, window: int = 0, gradient: str = "sobel"
) -> Tensor:
    """(B, 3, T, H, W) -> (B, t, f, h, w, 27 c c): the HOG of the first f = target_frames frames of each token.

    A token covers c x c cells; the numbers are ordered by color, bin, row and column of the cell. Raises ValueError if
    tokens do not cover whole cells.
    """
    t, h, w = grid
    num_frames, height, width = video.shape[2:]
    if num_frames % t or height % (h * CELL) or width % (w * CELL):
        raise ValueError(
            f"video of {num_frames}x{height}x{width}: its {t}x{h}x{w} tokens cover no whole HOG cells of {CELL} pixels"
        )
    frames = rearrange(video, "B C (t d) H W -> B t d C H W", t=t)[:, :, :target_frames]
    cells = hog(rearrange(frames, "B t f C H W -> (B t f) C H W"), window, gradient)
    return rearrange(cells, "(B t f) C o (h a) (w b) -> B t f h w (C o a b)", t=t, f=frames.shape[2], h=h, w=w)


def target_dim(image_size: Sequence[int], grid: Sequence[int]) -> int:
    """Return how many numbers the HOG of one frame of a token has: 108 for tokens of 16x16 pixels.

    Raises ValueError if tokens do not cover whole cells.
    """
    (height, width), (_, h, w) = image_size, grid
    if height % (h * CELL) or width % (w * CELL):
        raise ValueError(
            f"image_size={height}x{width}: tokens of a {h}x{w} grid cover no whole HOG cells of {CELL} pixels"
        )
    return 3 * BINS * (height // h // CELL) * (width // w // CELL)


def draw_cells(cells: Tensor, cell_size: int = 16) -> Tensor:
    """(9, h, w) of a color, or of the mean over colors -> (h cell_size, w cell_size), an image of the edges.

    Each cell has one line per bin, perpendicular to the gradient and as bright as its number.
    """
    offset = torch.arange(cell_size) - (cell_size - 1) / 2
    row, column = offset[:, None], offset[None, :]
    is_in_circle = row**2 + column**2 < (cell_size / 2) ** 2
    image = torch.zeros(cells.shape[1] * cell_size, cells.shape[2] * cell_size)
    for bin_index in range(BINS):
        angle = (bin_index + 0.5) * math.pi / BINS  # the gradient is (sin, cos) in columns and rows
        line = ((math.sin(angle) * column + math.cos(angle) * row).abs() < 0.7) & is_in_circle
        image += torch.kron(cells[bin_index].float().cpu().clamp_min(0), line.float())
    return image
