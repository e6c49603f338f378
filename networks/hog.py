"""Histograms of oriented gradients as MaskFeat's targets (Wei et al., 2022, section 3.2): on the device, batched.

Definition: Sobel gradients of each colour (reflected at the border), magnitude |(gx, gy)|, unsigned orientation
atan2(gx, gy) in 9 bins of 20 degrees, the magnitude added to its one bin, summed over cells of 8x8 pixels, each cell's
9 numbers divided by their L2 norm. That is SlowFast's convention, "sobel". scikit-image's, "central", differs in the
gradients (differences of the two neighbours, none at the border) and in the angle, atan2(gy, gx).

Shapes: N frames, 3 colours, H W pixels; t h w the grid of tokens.
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
    """(N, 3, H, W), H and W multiples of 8 -> (N, 3, 9, H / 8, W / 8) float32.

    window > 0 weighs the magnitudes by a Gaussian repeated every `window` pixels (16 in mmselfsup; SlowFast has none).
    """
    height, width = frames.shape[-2:]
    if height % CELL or width % CELL:
        raise ValueError(f"frames of {height}x{width}: HOG cells of {CELL} pixels do not divide them")
    rise, run = gradients(frames.float(), gradient)
    magnitude = torch.sqrt(rise * rise + run * run)
    if window:
        magnitude = magnitude * gaussian(window, height, width, frames.device)
    # Whether atan2(rise, run) is beyond k 20 degrees is the sign of a cross product, once it points into [0, 180):
    # cheaper than the angle, and a bin at a time fuses into few passes, the same sum in the same order on every device.
    opposite = (rise < 0) | ((rise == 0) & (run < 0))
    rise, run = torch.where(opposite, -rise, rise), torch.where(opposite, -run, run)
    bins = []
    for number in range(BINS):
        inside = magnitude
        if number:
            inside = torch.where(is_beyond(rise, run, number), inside, 0.0)
        if number + 1 < BINS:
            inside = torch.where(is_beyond(rise, run, number + 1), 0.0, inside)
        cells = rearrange(inside, "n C (h a) (w b) -> n C h a w b", a=CELL, b=CELL)
        bins.append(cells.sum(3).sum(-1))
    return F.normalize(torch.stack(bins, dim=2), dim=2)


def gradients(frames: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) -> rise and run (N, 3, H, W), whose atan2 is the orientation."""
    if kind == "sobel":
        pixels = F.pad(frames, (1, 1, 1, 1), mode="reflect")
        # in two passes: (1, 2, 1) along one axis, a difference along the other
        smooth_rows = pixels[..., :-2, :] + 2 * pixels[..., 1:-1, :] + pixels[..., 2:, :]
        smooth_columns = pixels[..., :-2] + 2 * pixels[..., 1:-1] + pixels[..., 2:]
        gx = smooth_rows[..., :-2] - smooth_rows[..., 2:]
        gy = smooth_columns[..., :-2, :] - smooth_columns[..., 2:, :]
        return gx, gy
    if kind == "central":
        gx = F.pad(frames[..., 2:] - frames[..., :-2], (1, 1))
        gy = F.pad(frames[..., 2:, :] - frames[..., :-2, :], (0, 0, 1, 1))
        return gy, gx
    raise ValueError(f"gradient={kind!r}: expected one of {', '.join(GRADIENTS)}")


def is_beyond(rise: Tensor, run: Tensor, number: int) -> Tensor:
    """Whether atan2(rise, run), in [0, 180) degrees, is at least number x 20."""
    angle = number * math.pi / BINS
    return rise * math.cos(angle) - run * math.sin(angle) >= 0


def gaussian(window: int, height: int, width: int, device: torch.device) -> Tensor:
    """(H, W): a normal density of deviation window / 4 around the middle of each window, where it sums to 1."""
    if height % window or width % window:
        raise ValueError(f"hog_window={window} does not divide frames of {height}x{width}")
    offset = torch.arange(window, device=device) - (window - 1) / 2
    line = torch.exp(-(offset**2) / (2 * (window / 4) ** 2))
    one = line[:, None] * line[None, :]
    return (one / one.sum()).repeat(height // window, width // window)


def hog_targets(
    video: Tensor, grid: Sequence[int], frames: int = 1, window: int = 0, gradient: str = "sobel"
) -> Tensor:
    """(B, 3, T, H, W) -> (B, t, f, h, w, 27 c c): of the first `frames` (f) frames of each token, c x c the cells that
    one covers.

    Numbers are ordered colour, bin, row and column of the cell. Raises ValueError if a token covers no whole cells.
    """
    t, h, w = grid
    total, height, width = video.shape[2:]
    if total % t or height % (h * CELL) or width % (w * CELL):
        raise ValueError(
            f"video of {total}x{height}x{width}: its {t}x{h}x{w} tokens cover no whole HOG cells of {CELL}"
        )
    chosen = rearrange(video, "B C (t d) H W -> B t d C H W", t=t)[:, :, :frames]
    cells = hog(rearrange(chosen, "B t f C H W -> (B t f) C H W"), window, gradient)
    return rearrange(cells, "(B t f) C o (h a) (w b) -> B t f h w (C o a b)", t=t, f=chosen.shape[2], h=h, w=w)


def target_width(image_size: Sequence[int], grid: Sequence[int]) -> int:
    """How many numbers the target of a token and a frame has: 108 for tokens of 16x16 pixels."""
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
