"""Hiera's attention within mask units, and its block (Ryali et al., 2023, section 3).

Shapes: B batch, N tokens (N' after pooling), D embedding dimension, `heads` heads of dimension d.
"""

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from networks.layers import Attention, Block, attend


class MaskUnitAttention(Attention):
    """Attention within mask units of `unit_size` tokens (0: over all tokens), from `embed_dim` to `out_dim`.

    The queries of `pool` tokens become one by their maximum.
    """

    def __init__(self, embed_dim: int, num_heads: int, out_dim: int, unit_size: int = 0, pool: int = 1):
        super().__init__(embed_dim, num_heads, out_dim)
        self.unit_size, self.pool = unit_size, pool

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N', D)."""
        query, key, value = self.query_key_value(tokens)
        return self.proj(self.merge_units(attend(query, key, value, self.scale), self.count_units(tokens)))

    def count_units(self, tokens: Tensor) -> int:
        """Return the number of mask units among tokens (B, N, D) that attend by themselves: 1 if all attend to all."""
        return tokens.shape[1] // self.unit_size if self.unit_size else 1

    def merge_units(self, mixed: Tensor, units: int) -> Tensor:
        """(B units, heads, N' / units, d) -> (B, N', D)."""
        # The batch size is left open: a number given here would be that of an exported network for ever.
        return rearrange(mixed, "(B units) heads n d -> B (n units) (heads d)", units=units)

    def query_key_value(self, tokens: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> query (B units, heads, N' / units, d), key, value (B units, heads, N / units, d)."""
        query, key, value = rearrange(
            self.qkv(tokens),
            "B (n units) (three heads d) -> three (B units) heads n d",
            three=3,
            heads=self.num_heads,
            units=self.count_units(tokens),
        )
        return max_pool(query, self.pool), key, value


def max_pool(tokens: Tensor, pool: int) -> Tensor:
    """(..., N, D) -> (..., N / pool, D): the maximum of the tokens that lie within one stride, which come first."""
    return tokens.unflatten(-2, (pool, -1)).amax(-3) if pool > 1 else tokens


class HieraBlock(Block):
    """A Block around MaskUnitAttention. Where the dimension grows, the residual is the projected and pooled input."""

    def __init__(self, attn: MaskUnitAttention, **options: Any):
        super().__init__(attn, **options)
        self.pool = attn.pool
        self.expands = attn.out_dim != attn.embed_dim
        if self.expands:
            self.proj = nn.Linear(attn.embed_dim, attn.out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N', D')."""
        normed = self.norm1(tokens)
        residual = max_pool(self.proj(normed), self.pool) if self.expands else tokens
        tokens = residual + self.drop_path(self.attn(normed))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))
