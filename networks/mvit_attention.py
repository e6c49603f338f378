"""MViT's attention: queries, keys and values pooled over the clip's grid, with relative positions.

Shapes: B batch; t h w the grid of the tokens, N = 1 + t h w tokens with the class token first, D width, `heads` heads
of width d.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from networks.layers import Attention, Triple, attend

ALIGNMENT = 8  # columns: what fused kernels want of the width of a head


def pooled(grid: Triple, stride: Triple) -> Triple:
    """The grid after a convolution or a maximum with odd kernel, half of it as padding, and this stride."""
    t, h, w = (-(-size // step) for size, step in zip(grid, stride, strict=True))
    return t, h, w


def relative_index(queries: int, keys: int) -> Tensor:
    """(queries, keys): the row of a table of 2 max(queries, keys) - 1 distances; the coarser grid is stretched."""
    query, key = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
    return (query * max(keys / queries, 1.0) - (key + 1 - keys) * max(queries / keys, 1.0)).long()


class PooledAttention(Attention):
    """Attention whose queries, keys and values are pooled over the grid by depthwise convolutions (MViT, section 3.1).

    `relative` adds decomposed relative positions to the scores, `residual` the pooled queries to the output (MViTv2,
    section 4.1); neither touches the class token. Without `pool_query` or `pool_key` those are left as they are.
    """

    rel_pos_t: Tensor
    rel_pos_h: Tensor
    rel_pos_w: Tensor
    index_t: Tensor
    index_h: Tensor
    index_w: Tensor
    key_places: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        out_width: int,
        grid: Triple,
        kernel: Triple | None,
        query_stride: Triple,
        key_stride: Triple,
        pool_query: bool,
        pool_key: bool,
        relative: bool,
        residual: bool,
        norm_eps: float,
    ):
        super().__init__(width, heads, out_width)
        self.grid, self.query_grid, self.key_grid = grid, grid, pooled(grid, key_stride)
        self.residual, self.pool_query, self.pool_key = residual, pool_query, pool_key
        d = self.head_width

        def pool(stride: Triple) -> nn.Conv3d:
            t, h, w = kernel or (step + (step > 1) for step in stride)
            return nn.Conv3d(d, d, (t, h, w), stride, (t // 2, h // 2, w // 2), groups=d, bias=False)

        if pool_query:
            self.query_grid = pooled(grid, query_stride)
            self.pool_q, self.norm_q = pool(query_stride), nn.LayerNorm(d, eps=norm_eps)
        if pool_key:
            self.pool_k, self.norm_k = pool(key_stride), nn.LayerNorm(d, eps=norm_eps)
            self.pool_v, self.norm_v = pool(key_stride), nn.LayerNorm(d, eps=norm_eps)
        self.relative = relative
        if relative:
            self.add_relative_positions()

    def add_relative_positions(self) -> None:
        """A table of distances for each axis and where each pair of query and key finds its own."""
        for axis, queries, keys in zip("thw", self.query_grid, self.key_grid, strict=True):
            table = nn.Parameter(torch.empty(2 * max(queries, keys) - 1, self.head_width))
            nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(f"rel_pos_{axis}", table)
            self.register_buffer(f"index_{axis}", relative_index(queries, keys), persistent=False)
        # which row, column and frame each key lies in: (1 + t h w, t + h + w), zeros for the class token
        t, h, w = self.key_grid
        places = torch.cartesian_prod(torch.arange(t), torch.arange(h) + t, torch.arange(w) + t + h)
        self.register_buffer("key_places", F.one_hot(places, t + h + w).sum(1).float(), persistent=False)

    def pool(self, tokens: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
        """(B, h, 1 + t h w, d) -> (B, h, 1 + t' h' w', d): the class token is normed, not pooled."""
        t, h, w = self.grid
        cls_token, patches = tokens[:, :, :1], tokens[:, :, 1:]
        patches = conv(rearrange(patches, "B heads (t h w) d -> (B heads) d t h w", t=t, h=h, w=w))
        patches = rearrange(patches, "(B heads) d t h w -> B heads (t h w) d", B=tokens.shape[0])
        return norm(torch.cat([cls_token, patches], dim=2))

    def query_key_value(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> (B, heads, N', d + extra), (B, heads, N'', d + extra), (B, heads, N'', d).

        Relative positions ride in `extra` columns: a query's score for each frame, row and column beside a key's
        0 or 1 for each, so that their product is the sum of three and no N' x N'' table of biases is ever made.
        """
        query, key, value = super().query_key_value(tokens)
        if self.pool_query:
            query = self.pool(query, self.pool_q, self.norm_q)
        if self.pool_key:
            key = self.pool(key, self.pool_k, self.norm_k)
            value = self.pool(value, self.pool_v, self.norm_v)
        if not self.relative:
            return query, key, value
        places = F.pad(self.key_places, (0, 0, 1, 0)).to(key.dtype).expand(*key.shape[:3], -1)
        query, key = torch.cat([query, self.relative_scores(query)], dim=-1), torch.cat([key, places], dim=-1)
        to_aligned = -query.shape[-1] % ALIGNMENT
        return F.pad(query, (0, to_aligned)), F.pad(key, (0, to_aligned)), value

    def relative_scores(self, query: Tensor) -> Tensor:
        """(B, heads, 1 + t h w, d) -> (B, heads, 1 + t h w, t + h + w of the keys), over the attention's scale."""
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
        if self.residual:
            pooled_query = query[..., : self.head_width]
            mixed = torch.cat([mixed[:, :, :1], mixed[:, :, 1:] + pooled_query[:, :, 1:]], dim=2)
        return self.proj(rearrange(mixed, "B heads N d -> B N (heads d)"))
