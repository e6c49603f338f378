"""Rotary position embeddings in three dimensions: queries and keys are turned by angles that grow with the frame, the
row and the column of their token (Assran et al., "V-JEPA 2", 2025, section 2.1; Su et al., "RoFormer", 2021).

Shapes: B batch, h heads, N = t h w tokens in the order of frames, rows and columns, d dimension of one head.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import Grid, check_choice, check_positive
from networks.layers import Attention, Block, attend

ROPE_LAYOUTS = ("tiled", "interleaved")
BASE = 10000.0


def token_positions(grid: Grid, ref_grid_size: int = 0) -> Tensor:
    """Return (3, N) float64: frame, row and column of each token.

    With `ref_grid_size`, rows and columns are stretched so that the last ones are at ref_grid_size - 1, as in the
    pre-training, whatever the size of the image (V-JEPA 2.1).
    """
    t, h, w = grid
    axes = [torch.arange(size, dtype=torch.float64) for size in (t, h, w)]
    if ref_grid_size:
        axes[1:] = [axis * (ref_grid_size - 1) / max(len(axis) - 1, 1) for axis in axes[1:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def rotary_tables(positions: Tensor, head_dim: int, layout: str) -> tuple[Tensor, Tensor]:
    """(3, N) -> cosines and signed sines, (N, d) float32 each, for RotaryEmbedding.

    Each of the three axes turns 2 ((d / 3) // 2) dimensions in pairs of neighbors; what is left of d is not turned.
    layout="interleaved": both dimensions of pair i of an axis of D dimensions turn by position / 10000^(2 i / D).
    "tiled": dimension j turns by the angle of i = j modulo D / 2, as V-JEPA 2 was trained with: the two of a pair
    differ, so that it is no rotation.
    """
    check_choice("rope_layout", layout, ROPE_LAYOUTS)
    axis_dim = 2 * (head_dim // 3 // 2)
    frequency = BASE ** (-2.0 * torch.arange(axis_dim // 2, dtype=torch.float64) / max(axis_dim, 1))
    frequency = frequency.repeat(2) if layout == "tiled" else frequency.repeat_interleave(2)
    angle = (positions[:, :, None] * frequency).transpose(0, 1).flatten(1)  # (N, 3 D)
    angle = torch.cat([angle, angle.new_zeros(len(angle), head_dim - angle.shape[1])], dim=1)
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(head_dim // 2 + 1)[:head_dim]
    return angle.cos().float(), (angle.sin() * sign).float()


class RotaryEmbedding(nn.Module):
    """Turn queries or keys by the position of their tokens. One module serves all layers of a network; no parameters.

    `head_dim` must be even: dimensions are turned in pairs.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: Grid, head_dim: int, layout: str = "interleaved", ref_grid_size: int = 0):
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"embed_dim / num_heads = {head_dim}: rotary positions need an even number")
        if ref_grid_size:
            check_positive(ref_grid_size=ref_grid_size)
        cos, sin = rotary_tables(token_positions(grid, ref_grid_size), head_dim, layout)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, heads: Tensor, positions: Tensor | None = None) -> Tensor:
        """(..., N, d) -> (..., N, d); `positions`, (N,) or (B, N), are those of the tokens, if some are left out."""
        cos, sin = (self.cos, self.sin) if positions is None else (self.cos[positions], self.sin[positions])
        if cos.ndim == 3:  # the heads of a clip share its positions
            cos, sin = cos[:, None], sin[:, None]
        swapped = heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # the two dimensions of each pair
        return torch.addcmul(heads * cos.to(heads.dtype), swapped, sin.to(heads.dtype))


class RotaryAttention(Attention):
    """Attention whose queries and keys are turned by a RotaryEmbedding that the layers of a network share."""

    def __init__(self, embed_dim: int, num_heads: int, rope: RotaryEmbedding):
        super().__init__(embed_dim, num_heads)
        self.rope = rope

    def query_key_value(self, tokens: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> query, key, value (B, h, N, d) each."""
        qkv = rearrange(self.qkv(tokens), "B N (three h d) -> three B h N d", three=3, h=self.num_heads)
        query_key, value = qkv.split([2, 1])
        query, key = self.rope(query_key, positions)
        return query, key, value.squeeze(0).contiguous()  # a view would keep all of qkv for the backward pass

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `positions` (B, N) int64 are those of the tokens, if some are left out."""
        query, key, value = self.query_key_value(tokens, positions)
        return self.proj(self.merge_heads(attend(query, key, value, self.scale)))


class RotaryBlock(Block):
    """A Block around RotaryAttention, for all tokens of a clip or for some of them."""

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `positions` (B, N) int64 are those of the tokens, if some are left out."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), positions))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))
