"""The factorized attention of ViViT's models 3 and 4 (Arnab et al., 2021, section 3.3).

Shapes: B batch, t frames of tubelets, n patches per frame, N = t n tokens in that order, D embedding dimension, h
heads, d dimension of one head.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from networks.layers import Attention, Block, attend


class FactorizedBlock(Block):
    """Block of model 3: attention over time, attention over space and MLP, each with its own norm and residual.

    Stochastic depth drops patch positions (time), frames (space) and clips (MLP).
    """

    def __init__(self, embed_dim: int, num_heads: int, num_frames: int, **options: Any):
        super().__init__(Attention(embed_dim, num_heads), **options)
        self.num_frames = num_frames
        self.temporal_norm1 = nn.LayerNorm(embed_dim, eps=self.norm1.eps)
        self.temporal_attn = Attention(embed_dim, num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, t n, D) -> (B, t n, D)."""
        t = self.num_frames
        positions = rearrange(tokens, "B (t n) D -> (B n) t D", t=t)
        positions = positions + self.drop_path(self.temporal_attn(self.temporal_norm1(positions)))
        frames = rearrange(positions, "(B n) t D -> (B t) n D", B=tokens.shape[0])
        frames = frames + self.drop_path(self.attn(self.norm1(frames)))
        tokens = rearrange(frames, "(B t) n D -> B (t n) D", t=t)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class FactorizedDotProductAttention(Attention):
    """Attention of model 4: half of the heads attend over the frames at each patch position, half within each frame."""

    def __init__(self, embed_dim: int, num_heads: int, num_frames: int):
        super().__init__(embed_dim, num_heads)
        if num_heads % 2:
            raise ValueError(f"num_heads={num_heads}: expected an even number, half for time and half for space")
        self.num_frames = num_frames

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, t n, D) -> (B, t n, D)."""
        t, n = self.num_frames, tokens.shape[1] // self.num_frames
        halves = [heads.chunk(2, dim=1) for heads in self.query_key_value(tokens)]
        query, key, value = (rearrange(time, "B h (t n) d -> (B n) h t d", t=t) for time, _ in halves)
        over_time = attend(query, key, value, self.scale)
        query, key, value = (rearrange(space, "B h (t n) d -> (B t) h n d", t=t) for _, space in halves)
        over_space = attend(query, key, value, self.scale)
        mixed = [
            rearrange(over_time, "(B n) h t d -> B h (t n) d", n=n),
            rearrange(over_space, "(B t) h n d -> B h (t n) d", t=t),
        ]
        return self.proj(self.merge_heads(torch.cat(mixed, dim=1)))

    def attention_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, h, N, d), (B, h, N, d) -> (B, h, N, N), zero for other positions (time) or other frames (space)."""
        token = torch.arange(query.shape[2], device=query.device)
        n = query.shape[2] // self.num_frames
        same_position = (token[:, None] - token) % n == 0
        same_frame = token[:, None] // n == token // n
        allowed = torch.stack([same_position, same_frame]).repeat_interleave(self.num_heads // 2, dim=0)
        scores = query @ key.transpose(-2, -1) * self.scale
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1)
