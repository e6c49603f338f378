"""Attentive pooling: a learned query attends to the tokens of an encoder (Bardes et al., "V-JEPA", 2024, section 4.3),
after further blocks of self-attention in V-JEPA 2 (Assran et al., 2025, section 5.1). Names are those of V-JEPA's code.

Shapes: B batch, N tokens, Q queries, D embedding dimension, h heads, d dimension of one head.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import check_positive
from networks.layers import NORM_EPS, Attention, Block, Mlp, attend, run_blocks


class CrossAttention(nn.Module):
    """Multi-head attention of queries to other tokens; V-JEPA's has no projection after it."""

    def __init__(self, embed_dim: int, num_heads: int, inner_dim: int | None = None):
        super().__init__()
        inner_dim = inner_dim or embed_dim
        check_positive(embed_dim=embed_dim, num_heads=num_heads)
        if inner_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide embed_dim={inner_dim}")
        self.num_heads = num_heads
        self.scale = (inner_dim // num_heads) ** -0.5
        self.q = nn.Linear(embed_dim, inner_dim)
        self.kv = nn.Linear(embed_dim, 2 * inner_dim)

    def query_key_value(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Q, D), (B, N, D) -> query (B, h, Q, d), key, value (B, h, N, d)."""
        query = rearrange(self.q(queries), "B Q (h d) -> B h Q d", h=self.num_heads)
        key, value = rearrange(self.kv(tokens), "B N (two h d) -> two B h N d", two=2, h=self.num_heads)
        return query, key, value

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(B, Q, D), (B, N, D) -> (B, Q, D)."""
        query, key, value = self.query_key_value(queries, tokens)
        return self.merge_heads(attend(query, key, value, self.scale))

    def attention_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, h, Q, d), (B, h, N, d) -> (B, h, Q, N); rows sum to 1."""
        return (query @ key.transpose(-2, -1) * self.scale).softmax(-1)

    def merge_heads(self, mixed: Tensor) -> Tensor:
        """(B, h, Q, d) -> (B, Q, D)."""
        return rearrange(mixed, "B h Q d -> B Q (h d)")


class CrossAttentionBlock(nn.Module):
    """Pre-norm block in which queries attend to normed tokens; the queries themselves are not normed before it."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float = 4.0, norm_eps: float = NORM_EPS):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.xattn = CrossAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(B, Q, D), (B, N, D) -> (B, Q, D)."""
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """Pool tokens into one feature: depth - 1 blocks of self-attention, then one learned query attends to the result.

    The MLPs have four times the embedding dimension, whatever the encoder has (as in transformers and V-JEPA).
    """

    def __init__(self, embed_dim: int, num_heads: int, depth: int = 1, norm_eps: float = NORM_EPS):
        super().__init__()
        check_positive(pooler_depth=depth)
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.blocks = nn.ModuleList(Block(Attention(embed_dim, num_heads), norm_eps=norm_eps) for _ in range(depth - 1))
        self.cross_attention_block = CrossAttentionBlock(embed_dim, num_heads, norm_eps=norm_eps)
        nn.init.trunc_normal_(self.query_tokens, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        tokens = run_blocks(self.blocks, tokens)
        queries = self.query_tokens.expand(tokens.shape[0], -1, -1)
        return rearrange(self.cross_attention_block(queries, tokens), "B 1 D -> B D")
