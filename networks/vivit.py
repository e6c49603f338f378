"""ViViT (Arnab et al., "ViViT: A Video Vision Transformer", 2021), models 1 to 4 of section 3.3.

Shapes: B batch, C channels, T frames, H W pixels; t = T / tubelet_size frames of tubelets, n patches per frame,
N tokens, D embedding dimension.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import Grid, check_choice, check_pooling, check_positive, jsonable_kwargs
from networks.layers import (
    NORM_EPS,
    Attention,
    AttentionLayout,
    Block,
    TubeletEmbed,
    apply_mask_token,
    drop_path_rates,
    gather_tokens,
    init_linear,
    make_head,
    pool_tokens,
    prepend_token,
    run_blocks,
    scale_head,
)
from networks.pos_embed import add_pos_embed
from networks.run_length import Packing, changed_patches, check_rlt_threshold, run_packed_blocks
from networks.vivit_attention import FactorizedBlock, FactorizedDotProductAttention

ATTENTION = ("joint", "factorized_encoder", "factorized_attention", "factorized_dot_product")


class ViViT(nn.Module):
    """A vision transformer over tubelets, in one of the paper's four models.

    attention="joint" (model 1): one encoder over all tubelets of the clip.

    attention="factorized_encoder" (model 2): `blocks` encode the tubelets of each frame, then `temporal_blocks` encode
    the sequence of frame features. Each encoder has its own class token, position embeddings and final norm.

    attention="factorized_attention" (model 3): each block attends over time, then over space; no class token.

    attention="factorized_dot_product" (model 4): half of the heads attend over time, half over space; no class token.

    pooling="cls" takes the class token of each encoder, "mean" the mean of its other tokens, "fc_norm" that mean before
    the norm; the parameters are the same. pos_embed="sincos": fixed position embeddings. `dropout` applies before the
    head. Stochastic depth drops clips, in the factorized encoder single frames. `norm_eps` is that of the blocks, the
    final norms have 1e-6. `checkpoint_blocks` of `blocks` are recomputed in the backward pass. With a `rlt_threshold`
    (model 1) patches that change by less, in units of the normalized input, are left out: run-length tokenization.
    """

    pos_embed: Tensor
    temporal_pos_embed: Tensor

    # So many arguments because they are the network's configuration, kept as keywords in recipes and config.json.
    def __init__(  # noqa: PLR0913
        self,
        num_classes: int,
        *,
        num_frames: int = 16,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        tubelet_size: int = 2,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        attention: str = "joint",
        temporal_depth: int = 4,
        cls_token: bool = True,
        pos_embed: str = "learned",
        pooling: str = "cls",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        gelu: str = "tanh",
        norm_eps: float = NORM_EPS,
        in_chans: int = 3,
        checkpoint_blocks: int = 0,
        rlt_threshold: float = 0.0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        check_positive(depth=depth, temporal_depth=temporal_depth)
        check_rlt_threshold(rlt_threshold, attention == "joint")
        check_choice("attention", attention, ATTENTION)
        check_pooling(pooling, cls_token)
        if attention in ("factorized_attention", "factorized_dot_product") and cls_token:
            raise ValueError(f"attention={attention!r} has no class token: it needs cls_token=False")
        self.attention, self.pooling, self.has_cls_token = attention, pooling, cls_token
        self.checkpoint_blocks, self.rlt_threshold = checkpoint_blocks, rlt_threshold

        tubelet = (tubelet_size, patch_size, patch_size)
        self.patch_embed = TubeletEmbed(num_frames, image_size, tubelet, embed_dim, in_chans)
        num_tokens = self.patch_embed.num_patches
        if attention != "factorized_encoder":
            num_tokens *= self.patch_embed.num_frames
        if cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        add_pos_embed(self, "pos_embed", pos_embed, num_tokens, embed_dim, cls_token=cls_token)

        self.blocks = self._make_blocks(depth)
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)

        if attention == "factorized_encoder":
            if cls_token:
                self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            num_frames = self.patch_embed.num_frames
            add_pos_embed(self, "temporal_pos_embed", pos_embed, num_frames, embed_dim, cls_token=cls_token)
            self.temporal_blocks = self._make_blocks(temporal_depth)
            self.temporal_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)

        self.dropout, self.head = nn.Dropout(dropout), make_head(embed_dim, num_classes)
        self.apply(init_linear)
        scale_head(self.head, head_scale)

    def _make_blocks(self, depth: int) -> nn.ModuleList:
        """Make the blocks of one encoder; stochastic depth grows from its first to its last block."""
        args = self.kwargs
        options = {key: args[key] for key in ("mlp_ratio", "gelu", "norm_eps")}

        def make_block(drop_path: float) -> Block:
            embed_dim, num_heads, num_frames = args["embed_dim"], args["num_heads"], self.patch_embed.num_frames
            if self.attention == "factorized_attention":
                return FactorizedBlock(embed_dim, num_heads, num_frames, drop_path=drop_path, **options)
            if self.attention == "factorized_dot_product":
                attn: Attention = FactorizedDotProductAttention(embed_dim, num_heads, num_frames)
            else:
                attn = Attention(embed_dim, num_heads)
            return Block(attn, drop_path=drop_path, **options)

        return nn.ModuleList(make_block(rate) for rate in drop_path_rates(args["drop_path"], depth))

    @property
    def token_grid(self) -> Grid:
        """Return (t, h, w) of the tokens after the last block."""
        return self.patch_embed.grid

    @property
    def attention_layout(self) -> AttentionLayout:
        """Return which tokens attend to each other."""
        kinds = {"factorized_attention": "divided", "factorized_dot_product": "joint"}
        kind = kinds.get(self.attention, self.attention)
        return AttentionLayout(kind, self.patch_embed.grid, num_prefix_tokens=int(self.has_cls_token))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, [1 +] N, D), not normed: by the only encoder, or by the spatial one of model 2."""
        if self.has_cls_token:
            tokens = prepend_token(self.cls_token, tokens)
        return run_blocks(self.blocks, tokens + self.pos_embed, self.checkpoint_blocks)

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        return pool_tokens(self.encode_tokens(tokens), self.norm, self.pooling, self.has_cls_token)

    def forward_tokens(self, video: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of `token_grid`: normed, without the class token; of model 2 (B, t, D).

        `mask` (B, t, n) is True where `mask_token` (1, 1, D) replaces the embedded patch.
        """
        patches = apply_mask_token(self.patch_embed(video), mask, mask_token)
        if self.attention == "factorized_encoder":
            tokens = self.temporal_norm(self.encode_time(self.encode_frames(patches)))
        else:
            tokens = self.norm(self.encode_tokens(rearrange(patches, "B t n D -> B (t n) D")))
        return tokens[:, 1:] if self.has_cls_token else tokens

    def forward_visible(self, video: Tensor, visible: Tensor) -> Tensor:
        """(B, C, T, H, W), positions (B, n) int64 -> (B, n, D): normed, from these patches alone.

        For joint attention without a class token.
        """
        tokens = self.patch_embed.embed_at(video, visible) + gather_tokens(self.pos_embed, visible)
        return self.norm(run_blocks(self.blocks, tokens, self.checkpoint_blocks))

    def encode_frames(self, patches: Tensor) -> Tensor:
        """(B, t, n, D) -> (B, t, D): the spatial encoder of model 2."""
        # t must be the fast axis in both patterns, or the frames of different clips would be mixed up
        frames = self.encode(rearrange(patches, "B t n D -> (B t) n D"))
        return rearrange(frames, "(B t) D -> B t D", t=self.patch_embed.num_frames)

    def encode_time(self, frames: Tensor) -> Tensor:
        """(B, t, D) -> (B, [1 +] t, D), not normed: the temporal encoder of model 2."""
        if self.has_cls_token:
            frames = prepend_token(self.temporal_cls_token, frames)
        return run_blocks(self.temporal_blocks, frames + self.temporal_pos_embed)

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        tokens = self.patch_embed(video)
        if self.rlt_threshold:
            return self.encode_changed(video, rearrange(tokens, "B t n D -> B (t n) D"))
        if self.attention != "factorized_encoder":
            return self.encode(rearrange(tokens, "B t n D -> B (t n) D"))
        frames = self.encode_time(self.encode_frames(tokens))
        return pool_tokens(frames, self.temporal_norm, self.pooling, self.has_cls_token)

    def encode_changed(self, video: Tensor, tokens: Tensor) -> Tensor:
        """(B, C, T, H, W), (B, N, D) -> (B, D), from the tokens that change by rlt_threshold or more."""
        keep = changed_patches(video, self.patch_embed.stride, self.rlt_threshold)
        packing = Packing.of(keep, num_prefix_tokens=int(self.has_cls_token))
        if packing.is_complete:  # bit for bit the same as without a threshold
            return self.encode(tokens)
        tokens = (prepend_token(self.cls_token, tokens) if self.has_cls_token else tokens) + self.pos_embed
        clips = packing.split(run_packed_blocks(self.blocks, packing.pack(tokens), packing, self.checkpoint_blocks))
        return torch.cat([pool_tokens(clip[None], self.norm, self.pooling, self.has_cls_token) for clip in clips])

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), or the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: `overrides` are arguments of ViViT --------------------------------------------------------------------

TINY: dict[str, Any] = dict(num_frames=8, image_size=64, patch_size=8, embed_dim=96, depth=4, num_heads=4)
FACTORIZED_ENCODER: dict[str, Any] = dict(attention="factorized_encoder", temporal_depth=4)
FACTORIZED_ATTENTION: dict[str, Any] = dict(attention="factorized_attention", cls_token=False, pooling="mean")
FACTORIZED_DOT_PRODUCT: dict[str, Any] = FACTORIZED_ATTENTION | dict(attention="factorized_dot_product")


def vivit_tiny(num_classes: int, **overrides: Any) -> ViViT:
    """Build a ViViT for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    return ViViT(num_classes, **TINY | overrides)


def vivit_s(num_classes: int, **overrides: Any) -> ViViT:
    """Build ViViT-S/16x2: the sizes of ViT-S; not in the paper."""
    return ViViT(num_classes, **dict(embed_dim=384, depth=12, num_heads=6) | overrides)


def vivit_b(num_classes: int, **overrides: Any) -> ViViT:
    """Build ViViT-B/16x2; the published one has num_frames=32."""
    return ViViT(num_classes, **dict(embed_dim=768, depth=12, num_heads=12) | overrides)


def vivit_l(num_classes: int, **overrides: Any) -> ViViT:
    """Build ViViT-L/16x2; the published one has num_frames=32."""
    return ViViT(num_classes, **dict(embed_dim=1024, depth=24, num_heads=16) | overrides)


def vivit_fe_tiny(num_classes: int, **overrides: Any) -> ViViT:
    """Build vivit_tiny as model 2, with two temporal blocks."""
    return vivit_tiny(num_classes, **FACTORIZED_ENCODER | dict(temporal_depth=2) | overrides)


def vivit_fe_b(num_classes: int, **overrides: Any) -> ViViT:
    """Build ViViT-B/16x2 FE (model 2): 12 spatial and 4 temporal blocks."""
    return vivit_b(num_classes, **FACTORIZED_ENCODER | overrides)


def vivit_fe_l(num_classes: int, **overrides: Any) -> ViViT:
    """Build ViViT-L/16x2 FE (model 2): 24 spatial and 4 temporal blocks."""
    return vivit_l(num_classes, **FACTORIZED_ENCODER | overrides)


def vivit_fsa_tiny(num_classes: int, **overrides: Any) -> ViViT:
    """Build vivit_tiny as model 3."""
    return vivit_tiny(num_classes, **FACTORIZED_ATTENTION | overrides)


def vivit_fsa_b(num_classes: int, **overrides: Any) -> ViViT:
    """Build ViViT-B/16x2 with factorized self-attention (model 3)."""
    return vivit_b(num_classes, **FACTORIZED_ATTENTION | overrides)


def vivit_fdp_tiny(num_classes: int, **overrides: Any) -> ViViT:
    """Build vivit_tiny as model 4."""
    return vivit_tiny(num_classes, **FACTORIZED_DOT_PRODUCT | overrides)


def vivit_fdp_b(num_classes: int, **overrides: Any) -> ViViT:
    """Build ViViT-B/16x2 with factorized dot-product attention (model 4)."""
    return vivit_b(num_classes, **FACTORIZED_DOT_PRODUCT | overrides)
