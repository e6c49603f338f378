"""VideoPrism (Zhao et al., "VideoPrism: A Foundational Visual Encoder for Video Understanding", 2024) as transformers
has it: a spatial encoder of each frame, then a temporal encoder at each patch position, and attention pooling. Scores
are capped by a tanh, so there is no fused kernel for them.

Shapes: B batch, C channels, T frames, H W pixels; t = T / tubelet_size frames of tubelets, n patches per frame, D
embedding dimension, h heads, d dimension of one head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.argument_checks import Grid, check_choice, check_positive, jsonable_kwargs
from networks.attentive_pooler import CrossAttention
from networks.layers import (
    NORM_EPS,
    Attention,
    AttentionLayout,
    Block,
    TubeletEmbed,
    drop_path_rates,
    init_linear,
    make_head,
    run_blocks,
    scale_head,
)
from networks.pos_embed import add_pos_embed

INVERSE_SOFTPLUS_OF_ZERO = 1.442695041  # a per_dim_scale of zero leaves the queries as they are


class SoftcapAttention(Attention):
    """Attention whose scores s become softcap * tanh(s / softcap) before the softmax."""

    def __init__(self, embed_dim: int, num_heads: int, softcap: float):
        super().__init__(embed_dim, num_heads)
        self.softcap = softcap

    def attention_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, h, N, d), (B, h, N, d) -> (B, h, N, N)."""
        scores = query * (self.scale / self.softcap) @ key.transpose(-2, -1)
        return (scores.tanh_() * self.softcap).softmax(-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = self.query_key_value(tokens)
        return self.proj(self.merge_heads(self.attention_weights(query, key) @ value))


class PoolingAttention(CrossAttention):
    """Cross-attention in `inner_dim` dimensions, with a learned scale of each dimension of the queries."""

    def __init__(self, embed_dim: int, num_heads: int, inner_dim: int):
        super().__init__(embed_dim, num_heads, inner_dim)
        head_dim = inner_dim // num_heads
        self.query_scale = INVERSE_SOFTPLUS_OF_ZERO * head_dim**-0.5
        self.scale = 1.0  # of the scores; project_queries() scales the queries
        self.per_dim_scale = nn.Parameter(torch.zeros(head_dim))
        self.proj = nn.Linear(inner_dim, embed_dim)

    def project_queries(self, queries: Tensor) -> Tensor:
        """(B, Q, D) -> (B, h, Q, d), scaled."""
        query = super().project_queries(queries)
        return query * (F.softplus(self.per_dim_scale) * self.query_scale).to(query.dtype)

    def forward(
        self, queries: Tensor, tokens: Tensor, weight: Tensor | None = None, bias: Tensor | float = 0.0
    ) -> Tensor:
        """(B, Q, D), (B, N, D) -> (B, Q, D)."""
        return self.proj(super().forward(queries, tokens, weight, bias))


class MultiheadAttentionPoolingHead(nn.Module):
    """Pool tokens into one feature: the given blocks, then attention of one learned query, then a norm."""

    def __init__(self, embed_dim: int, num_heads: int, inner_dim: int, blocks: Sequence[Block], norm_eps: float):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, 1, embed_dim))
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        self.blocks = nn.ModuleList(blocks)
        self.xattn = PoolingAttention(embed_dim, num_heads, inner_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        queries = self.query_tokens.expand(tokens.shape[0], -1, -1)
        return rearrange(self.norm(self.xattn(queries, run_blocks(self.blocks, tokens))), "B 1 D -> B D")


class VideoPrism(nn.Module):
    """The encoder of VideoPrism with a classifier.

    pooling="attentive" classifies the feature of attention pooling, before which there are pooler_depth - 1 blocks (two
    in the networks that were trained with text); "mean" the mean of the normed tokens. `attn_softcap` caps the scores
    of all blocks. Stochastic depth drops frames in the spatial encoder and patch positions in the temporal one.
    `dropout` applies before the head. `checkpoint_blocks` of `blocks` are recomputed in the backward pass.
    """

    has_cls_token = False
    pos_embed: Tensor
    temporal_pos_embed: Tensor

    # So many arguments because they are the network's configuration, kept as keywords in recipes and config.json.
    def __init__(  # noqa: PLR0913
        self,
        num_classes: int,
        *,
        num_frames: int = 16,
        image_size: int | Sequence[int] = 288,
        patch_size: int = 18,
        tubelet_size: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        temporal_depth: int = 4,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        attn_softcap: float = 50.0,
        pooling: str = "attentive",
        pooler_depth: int = 1,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        gelu: str = "exact",
        norm_eps: float = NORM_EPS,
        in_chans: int = 3,
        checkpoint_blocks: int = 0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        check_positive(depth=depth, temporal_depth=temporal_depth, pooler_depth=pooler_depth)
        check_positive(attn_softcap=attn_softcap)
        check_choice("pooling", pooling, ["attentive", "mean"])
        self.pooling, self.checkpoint_blocks = pooling, checkpoint_blocks

        tubelet = (tubelet_size, patch_size, patch_size)
        self.patch_embed = TubeletEmbed(num_frames, image_size, tubelet, embed_dim, in_chans)
        add_pos_embed(self, "pos_embed", "learned", self.patch_embed.num_patches, embed_dim)
        self.blocks = nn.ModuleList(self._make_blocks(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        add_pos_embed(self, "temporal_pos_embed", "learned", self.patch_embed.num_frames, embed_dim)
        self.temporal_blocks = nn.ModuleList(self._make_blocks(temporal_depth))
        self.temporal_norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        if pooling == "attentive":
            inner_dim = int(embed_dim * mlp_ratio)
            blocks = self._make_blocks(pooler_depth - 1)
            self.pooler = MultiheadAttentionPoolingHead(embed_dim, num_heads, inner_dim, blocks, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.head = make_head(embed_dim, num_classes)
        self.apply(init_linear)
        scale_head(self.head, head_scale)

    def _make_blocks(self, depth: int) -> list[Block]:
        """Make the blocks of one encoder; stochastic depth grows from its first to its last block."""
        args = self.kwargs
        options = {key: args[key] for key in ("mlp_ratio", "gelu", "norm_eps")}
        return [
            Block(
                SoftcapAttention(args["embed_dim"], args["num_heads"], args["attn_softcap"]), drop_path=rate, **options
            )
            for rate in drop_path_rates(args["drop_path"], depth)
        ]

    @property
    def token_grid(self) -> Grid:
        """Return (t, h, w) of the tokens after the last block."""
        return self.patch_embed.grid

    @property
    def attention_layout(self) -> AttentionLayout:
        """Return which tokens attend to each other."""
        return AttentionLayout(
            "space_then_time", self.patch_embed.grid, num_prefix_tokens=0, pooler_layer="pooler.xattn"
        )

    def forward_tokens(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of `token_grid`, normed."""
        patches = self.patch_embed(video)
        frames = rearrange(patches, "B t n D -> (B t) n D") + self.pos_embed
        frames = self.norm(run_blocks(self.blocks, frames, self.checkpoint_blocks))
        positions = rearrange(frames, "(B t) n D -> (B n) t D", t=self.patch_embed.num_frames)
        positions = self.temporal_norm(run_blocks(self.temporal_blocks, positions + self.temporal_pos_embed))
        return rearrange(positions, "(B n) t D -> B (t n) D", n=self.patch_embed.num_patches)

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        tokens = self.forward_tokens(video)
        return self.pooler(tokens) if self.pooling == "attentive" else reduce(tokens, "B N D -> B D", "mean")

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), or the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: `overrides` are arguments of VideoPrism ---------------------------------------------------------------

TINY: dict[str, Any] = dict(num_frames=8, image_size=64, patch_size=8, embed_dim=96, depth=4, num_heads=4)
LARGE: dict[str, Any] = dict(num_frames=8, embed_dim=1024, depth=24, num_heads=16)


def videoprism_tiny(num_classes: int, **overrides: Any) -> VideoPrism:
    """Build a VideoPrism for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    return VideoPrism(num_classes, **TINY | dict(temporal_depth=2) | overrides)


def videoprism_b(num_classes: int, **overrides: Any) -> VideoPrism:
    """Build VideoPrism-B for 16 frames of 288x288."""
    return VideoPrism(num_classes, **overrides)


def videoprism_l(num_classes: int, **overrides: Any) -> VideoPrism:
    """Build VideoPrism-L for 8 frames of 288x288."""
    return VideoPrism(num_classes, **LARGE | overrides)
