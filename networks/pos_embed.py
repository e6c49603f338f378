"""Position embeddings: learned or fixed sine-cosine tables, and their resampling to other numbers of tokens.

Shapes: t frames, h rows, w columns, N = t h w tokens in that order, D embedding dimension.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import check_choice


def sincos_pos_embed(length: int, embed_dim: int) -> Tensor:
    """Return (1, length, D) float32: sine in even, cosine in odd columns, wavelengths from 2 pi to 10000 x 2 pi.

    Vaswani et al., 2017, section 3.5; VideoMAE numbers all tokens of a clip consecutively.
    """
    column = torch.arange(embed_dim, dtype=torch.float64)
    frequency = 10000.0 ** (-2.0 * (column // 2) / embed_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())[None].float()


def resample_pos_embed(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """(1, t h w, D) -> (1, t' h' w', D): bicubic with antialiasing over rows and columns, then linear over frames."""
    if tuple(old) == tuple(new):
        return table
    (t, h, w), (new_t, new_h, new_w) = old, new
    dtype, table = table.dtype, table.float()
    frames = rearrange(table, "one (t h w) D -> (one t) D h w", t=t, h=h, w=w)
    if (h, w) != (new_h, new_w):
        frames = F.interpolate(frames, size=(new_h, new_w), mode="bicubic", antialias=True, align_corners=False)
    table = resample_1d(rearrange(frames, "t D h w -> 1 t (D h w)"), new_t)
    return rearrange(table, "one t (D h w) -> one (t h w) D", h=new_h, w=new_w).to(dtype)


def resample_1d(table: Tensor, length: int) -> Tensor:
    """(1, t, D) -> (1, t', D), linear."""
    if table.shape[1] == length:
        return table
    channels = rearrange(table.float(), "one t D -> one D t")
    channels = F.interpolate(channels, size=length, mode="linear", align_corners=False)
    return rearrange(channels, "one D t -> one t D").to(table.dtype)


def add_pos_embed(
    module: nn.Module, name: str, kind: str, length: int, embed_dim: int, *, cls_token: bool = False
) -> None:
    """Register a table (1, [1 +] length, D) of position embeddings in a module.

    kind="learned": a parameter (truncated normal, std 0.02). "sincos": a buffer that is not part of the state dict;
    its row for the class token is zero.
    """
    check_choice("pos_embed", kind, ["learned", "sincos"])
    num_cls_tokens = int(cls_token)
    if kind == "learned":
        table = nn.Parameter(torch.empty(1, num_cls_tokens + length, embed_dim))
        nn.init.trunc_normal_(table, std=0.02)
        module.register_parameter(name, table)
    else:
        fixed = torch.zeros(1, num_cls_tokens + length, embed_dim)
        fixed[:, num_cls_tokens:] = sincos_pos_embed(length, embed_dim)
        module.register_buffer(name, fixed, persistent=False)
