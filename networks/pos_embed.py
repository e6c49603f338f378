"""Position embeddings: fixed sine-cosine tables, and learned ones resized to another number of frames, rows or columns.

Shapes: t frames, h rows, w columns, N = t h w tokens in that order, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from networks.layers import check_choice


def sincos_table(length: int, width: int) -> Tensor:
    """(1, length, D) float32: sine in even, cosine in odd columns, wavelengths from 2 pi to 10000 x 2 pi
    (Vaswani et al., 2017, section 3.5); VideoMAE's over all tokens of a clip."""
    column = torch.arange(width, dtype=torch.float64)
    rate = 10000.0 ** (-2.0 * (column // 2) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())[None].float()


def resize_grid(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """(1, t h w, D) -> (1, t' h' w', D): bicubic with antialiasing over rows and columns, then linear over frames."""
    if tuple(old) == tuple(new):
        return table
    (t, h, w), (new_t, new_h, new_w) = old, new
    dtype, table = table.dtype, table.float()
    frames = rearrange(table, "one (t h w) D -> (one t) D h w", t=t, h=h, w=w)
    if (h, w) != (new_h, new_w):
        frames = F.interpolate(frames, size=(new_h, new_w), mode="bicubic", antialias=True, align_corners=False)
    table = resize_line(rearrange(frames, "t D h w -> 1 t (D h w)"), new_t)
    return rearrange(table, "one t (D h w) -> one (t h w) D", h=new_h, w=new_w).to(dtype)


def resize_line(table: Tensor, length: int) -> Tensor:
    """(1, t, D) -> (1, t', D), linear."""
    if table.shape[1] == length:
        return table
    line = rearrange(table.float(), "one t D -> one D t")
    line = F.interpolate(line, size=length, mode="linear", align_corners=False)
    return rearrange(line, "one D t -> one t D").to(table.dtype)


def add_positions(
    module: nn.Module, name: str, positions: str, length: int, width: int, cls_token: bool = False
) -> None:
    """Gives `module` a table (1, [1 +] length, D) under `name`: a parameter ("learned", std .02), or a buffer that no
    checkpoint holds ("sincos"), whose row for the class token is zero."""
    check_choice("positions", positions, ["learned", "sincos"])
    rows = length + int(cls_token)
    if positions == "learned":
        table = nn.Parameter(torch.empty(1, rows, width))
        nn.init.trunc_normal_(table, std=0.02)
        module.register_parameter(name, table)
    else:
        fixed = torch.zeros(1, rows, width)
        fixed[:, int(cls_token) :] = sincos_table(length, width)
        module.register_buffer(name, fixed, persistent=False)
