"""MViT's attention, with queries, keys and values pooled over the grid of a clip and relative positions, and its block.

Shapes: B batch; t h w the grid of the tokens, N = 1 + t h w tokens with the class token first (N' after the queries,
N'' after the keys are pooled), D embedding dimension, `heads` heads of dimension d.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import Grid
from networks.layers import NORM_EPS, Attention, Block, attend

UNPOOLED: Grid = (1, 1, 1)

ALIGNMENT = 8  # fused kernels need a head dimension that is a multiple of this


class QKVPooling(NamedTuple):
    """Pooling of queries, and of keys and values, by depthwise convolutions followed by a norm.

    kernel=None: one more than the stride along every axis that is pooled. Without pool_queries (or pool_keys) the
    queries (or keys and values) stay as they are, and their stride must be 1.
    """

    kernel: Grid | None
    q_stride: Grid
    kv_stride: Grid
    pool_queries: bool
    pool_keys: bool
    norm_eps: float = NORM_EPS


def pooled_grid(grid: Grid, stride: Grid) -> Grid:
    """Return the grid after pooling with a stride, an odd kernel and half the kernel as padding."""
    t, h, w = (-(-size // factor) for size, factor in zip(grid, stride, strict=True))
    return t, h, w


def relative_index(num_queries: int, num_keys: int) -> Tensor:
    """Return (queries, keys): where a table of 2 max(queries, keys) - 1 distances has that of each pair.

    The coarser of the two axes is stretched to the length of the finer one.
    """
    query, key = torch.arange(num_queries)[:, None], torch.arange(num_keys)[None, :]
    stretched_query = query * max(num_keys / num_queries, 1.0)
    return (stretched_query - (key + 1 - num_keys) * max(num_queries / num_keys, 1.0)).long()


class PooledAttention(Attention):
    """Attention whose queries, keys and values are pooled over the grid (MViT, section 3.1).

    `has_rel_pos` adds decomposed relative position embeddings to the scores, `residual_pooling` adds the pooled queries
    to the output (MViTv2, section 4.1). Neither applies to the class token.
    """

    rel_pos_t: Tensor
    rel_pos_h: Tensor
    rel_pos_w: Tensor
    index_t: Tensor
    index_h: Tensor
    index_w: Tensor
    key_one_hot: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        out_dim: int,
        grid: Grid,
        pooling: QKVPooling,
        *,
        has_rel_pos: bool,
        residual_pooling: bool,
    ):
        super().__init__(embed_dim, num_heads, out_dim)
        self.grid, self.query_grid, self.key_grid = grid, grid, pooled_grid(grid, pooling.kv_stride)
        self.pool_queries, self.pool_keys = pooling.pool_queries, pooling.pool_keys
        self.has_rel_pos, self.residual_pooling = has_rel_pos, residual_pooling
        d = self.head_dim

        def make_conv(stride: Grid) -> nn.Conv3d:
            t, h, w = pooling.kernel or (size + (size > 1) for size in stride)
            return nn.Conv3d(d, d, (t, h, w), stride, (t // 2, h // 2, w // 2), groups=d, bias=False)

        if self.pool_queries:
            self.query_grid = pooled_grid(grid, pooling.q_stride)
            self.pool_q, self.norm_q = make_conv(pooling.q_stride), nn.LayerNorm(d, eps=pooling.norm_eps)
        if self.pool_keys:
            self.pool_k, self.norm_k = make_conv(pooling.kv_stride), nn.LayerNorm(d, eps=pooling.norm_eps)
            self.pool_v, self.norm_v = make_conv(pooling.kv_stride), nn.LayerNorm(d, eps=pooling.norm_eps)
        if has_rel_pos:
            self.init_rel_pos()

    def init_rel_pos(self) -> None:
        """Create for each axis a table of distances and the index of every pair of query and key in it."""
        for axis, queries, keys in zip("thw", self.query_grid, self.key_grid, strict=True):
            table = nn.Parameter(torch.empty(2 * max(queries, keys) - 1, self.head_dim))
            nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(f"rel_pos_{axis}", table)
            self.register_buffer(f"index_{axis}", relative_index(queries, keys), persistent=False)
        # (t h w, t + h + w): for each key three ones, at its frame, its row and its column
        t, h, w = self.key_grid
        columns = torch.cartesian_prod(torch.arange(t), torch.arange(h) + t, torch.arange(w) + t + h)
        self.register_buffer("key_one_hot", F.one_hot(columns, t + h + w).sum(1).float(), persistent=False)

    def pool(self, tokens: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
        """(B, heads, 1 + t h w, d) -> (B, heads, 1 + t' h' w', d): the class token is normed, but not pooled."""
        t, h, w = self.grid
        cls_token, patches = tokens[:, :, :1], tokens[:, :, 1:]
        patches = conv(rearrange(patches, "B heads (t h w) d -> (B heads) d t h w", t=t, h=h, w=w))
        patches = rearrange(patches, "(B heads) d t h w -> B heads (t h w) d", B=tokens.shape[0])
        return norm(torch.cat([cls_token, patches], dim=2))

    def query_key_value(self, tokens: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> (B, heads, N', d + extra), (B, heads, N'', d + extra), (B, heads, N'', d).

        The `extra` columns carry the relative positions. A query has there its score for every frame, row and column,
        a key a one for its own frame, row and column and zeros elsewhere. The product of the two adds the three scores,
        so a fused kernel can be used and no (N', N'') table of biases is needed.
        """
        query, key, value = super().query_key_value(tokens)
        if self.pool_queries:
            query = self.pool(query, self.pool_q, self.norm_q)
        if self.pool_keys:
            key = self.pool(key, self.pool_k, self.norm_k)
            value = self.pool(value, self.pool_v, self.norm_v)
        if not self.has_rel_pos:
            return query, key, value
        one_hot = F.pad(self.key_one_hot, (0, 0, 1, 0)).to(key.dtype).expand(*key.shape[:3], -1)
        query, key = torch.cat([query, self.relative_scores(query)], dim=-1), torch.cat([key, one_hot], dim=-1)
        padding = -query.shape[-1] % ALIGNMENT
        return F.pad(query, (0, padding)), F.pad(key, (0, padding)), value

    def relative_scores(self, query: Tensor) -> Tensor:
        """(B, heads, 1 + t h w, d) -> (B, heads, 1 + t h w, t + h + w of the keys), divided by the attention's scale.

        The scores of the class token are zero.
        """
        t, h, w = self.query_grid
        grid = rearrange(query[:, :, 1:], "B heads (t h w) d -> B heads t h w d", t=t, h=h, w=w)
        frames = torch.einsum("bnthwd,tkd->bnthwk", grid, self.rel_pos_t[self.index_t])
        rows = torch.einsum("bnthwd,hkd->bnthwk", grid, self.rel_pos_h[self.index_h])
        columns = torch.einsum("bnthwd,wkd->bnthwk", grid, self.rel_pos_w[self.index_w])
        scores = torch.cat([frames, rows, columns], dim=-1) / self.scale
        return F.pad(rearrange(scores, "B heads t h w k -> B heads (t h w) k"), (0, 0, 1, 0))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + t h w, D) -> (B, 1 + t' h' w', D')."""
        query, key, value = self.query_key_value(tokens)
        mixed = attend(query, key, value, self.scale)
        if self.residual_pooling:
            pooled_query = query[..., : self.head_dim]
            mixed = torch.cat([mixed[:, :, :1], mixed[:, :, 1:] + pooled_query[:, :, 1:]], dim=2)
        return self.proj(rearrange(mixed, "B heads N d -> B N (heads d)"))


class MultiscaleBlock(Block):
    """A Block around PooledAttention. The embedding dimension grows in the attention or in the MLP, or not at all."""

    def __init__(self, attn: PooledAttention, q_stride: Grid, out_dim: int, **options: Any):
        super().__init__(attn, out_dim=out_dim, **options)
        self.grid, self.q_stride = attn.grid, q_stride
        self.expands_in_attention = attn.out_dim != attn.embed_dim
        self.expands_in_mlp = out_dim != attn.out_dim
        if out_dim != attn.embed_dim:
            self.proj = nn.Linear(attn.embed_dim, out_dim)

    def pool_residual(self, tokens: Tensor) -> Tensor:
        """(B, 1 + t h w, D) -> (B, 1 + t' h' w', D): max pooling of the residual, where the queries are pooled."""
        if self.q_stride == UNPOOLED:
            return tokens
        t, h, w = self.grid
        patches = rearrange(tokens[:, 1:], "B (t h w) D -> B D t h w", t=t, h=h, w=w)
        kernel = [size + 1 if size > 1 else 1 for size in self.q_stride]
        patches = F.max_pool3d(patches, kernel, self.q_stride, [size // 2 for size in kernel])
        return torch.cat([tokens[:, :1], rearrange(patches, "B D t h w -> B (t h w) D")], dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + t h w, D) -> (B, 1 + t' h' w', D')."""
        normed = self.norm1(tokens)
        residual = self.proj(normed) if self.expands_in_attention else tokens
        tokens = self.pool_residual(residual) + self.drop_path(self.attn(normed))
        normed = self.norm2(tokens)
        residual = self.proj(normed) if self.expands_in_mlp else tokens
        return residual + self.drop_path(self.mlp(normed))
