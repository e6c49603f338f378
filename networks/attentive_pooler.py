"""Attentive pooling: a learned query attends to the tokens of an encoder (Bardes et al., "V-JEPA", 2024, section 4.3),
after further blocks of self-attention in V-JEPA 2 (Assran et al., 2025, section 5.1). Names are those of V-JEPA's code.

Shapes: B batch, N tokens, Q queries, D embedding dimension, h heads, d dimension of one head.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import check_positive
from networks.layers import NORM_EPS, Attention, Block, Mlp, run_blocks


class CrossAttention(nn.Module):
    """Multi-head attention of few queries to many other tokens; V-JEPA's has no projection after it.

    Keys and values are never made: a score is query @ (W_k @ token), which is (query @ W_k) @ token, and the weighted
    sum of the values is that of the tokens times W_v. For one query of 16 heads in 1024 dimensions that is a 64th of
    the multiplications. The bias of the keys adds the same to all scores of a query, which the softmax ignores.
    """

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

    def project_queries(self, queries: Tensor) -> Tensor:
        """(B, Q, D) -> (B, h, Q, d); the scores are their products with the keys times `scale`."""
        return rearrange(self.q(queries), "B Q (h d) -> B h Q d", h=self.num_heads)

    def forward(
        self, queries: Tensor, tokens: Tensor, weight: Tensor | None = None, bias: Tensor | float = 0.0
    ) -> Tensor:
        """(B, Q, D), (B, N, D) -> (B, Q, D).

        `weight` and `bias` (D,) are those of a norm that came before, if the tokens were only standardized.
        """
        key_weight, value_weight = rearrange(self.kv.weight, "(two h d) D -> two h d D", two=2, h=self.num_heads)
        query = torch.einsum("BhQd,hdD->BhQD", self.project_queries(queries) * self.scale, key_weight)
        query = rearrange(query if weight is None else query * weight, "B h Q D -> B (h Q) D")
        mixed = (query @ tokens.transpose(-2, -1)).softmax(-1) @ tokens
        if weight is not None:
            mixed = mixed * weight + bias
        mixed = rearrange(mixed, "B (h Q) D -> B h Q D", h=self.num_heads)
        value_bias = self.kv.bias.chunk(2)[1]
        return rearrange(torch.einsum("BhQD,hdD->BhQd", mixed, value_weight), "B h Q d -> B Q (h d)") + value_bias

    def attention_weights(self, queries: Tensor, tokens: Tensor, *norm: Tensor) -> Tensor:
        """Return the weights (B, h, Q, N) of the tokens in `forward` of the same arguments; rows sum to 1."""
        query, (weight, bias) = self.project_queries(queries), norm or (1.0, 0.0)
        key = F.linear(tokens * weight + bias, *(part.chunk(2)[0] for part in (self.kv.weight, self.kv.bias)))
        key = rearrange(key, "B N (h d) -> B h N d", h=self.num_heads)
        return (query.float() @ key.float().transpose(-2, -1) * self.scale).softmax(-1)


def standardize(tokens: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Norm the tokens (..., D) as LayerNorm does before its weight and bias."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=eps)


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
        return self.attend_to_standardized(queries, standardize(tokens, self.norm1.eps))

    def attend_to_standardized(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Attend as forward() does; tokens (B, N, D) are standardized already, which several blocks can share."""
        queries = queries + self.xattn(queries, tokens, self.norm1.weight, self.norm1.bias)
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
        return self.pool_standardized(standardize(tokens, self.cross_attention_block.norm1.eps))

    def pool_standardized(self, tokens: Tensor) -> Tensor:
        """Pool what `standardize` made of the tokens (B, N, D) after the last block of self-attention: (B, D)."""
        queries = self.query_tokens.expand(tokens.shape[0], -1, -1)
        return rearrange(self.cross_attention_block.attend_to_standardized(queries, tokens), "B 1 D -> B D")
