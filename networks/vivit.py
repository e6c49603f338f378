"""ViViT: A Video Vision Transformer (Arnab et al., 2021), models 1 to 3 of section 3.3, and VideoMAE's encoder (Tong et
al., 2022), which is model 1 without a class token and with fixed positions.

Shapes: B batch, C channels, T frames, H W pixels; t = T / tubelet frames of tubelets, n patches of one frame,
N tokens, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from networks.layers import (
    NORM_EPS,
    Attention,
    Block,
    Triple,
    TubeletEmbed,
    check_choice,
    check_pooling,
    check_positive,
    drop_path_rates,
    hide,
    init_linear,
    make_head,
    plain_kwargs,
    pool_tokens,
    prepend,
    run_blocks,
    scale_head,
)
from networks.pos_embed import add_positions


class FactorisedBlock(Block):
    """Model 3: attention over time, then over space, then the MLP, each with a norm and a residual of its own.

    Stochastic depth drops patch positions (time), frames (space) and clips (MLP).
    """

    def __init__(self, width: int, heads: int, num_frames: int, **options: Any):
        super().__init__(Attention(width, heads), **options)
        self.num_frames = num_frames
        self.temporal_norm1 = nn.LayerNorm(width, eps=self.norm1.eps)
        self.temporal_attn = Attention(width, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, t n, D) -> (B, t n, D)."""
        t = self.num_frames
        rows = rearrange(tokens, "B (t n) D -> (B n) t D", t=t)
        rows = rows + self.drop_path(self.temporal_attn(self.temporal_norm1(rows)))
        frames = rearrange(rows, "(B n) t D -> (B t) n D", B=tokens.shape[0])
        frames = frames + self.drop_path(self.attn(self.norm1(frames)))
        tokens = rearrange(frames, "(B t) n D -> B (t n) D", t=t)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class ViViT(nn.Module):
    """attention="joint" (model 1): one encoder over all tubelets of the clip.

    attention="factorised_encoder" (model 2): `blocks` encode each frame of tubelets by itself, `temporal_blocks` then
    encode the sequence of frame features. Each encoder has its own class token, positions and final norm.

    attention="factorised_attention" (model 3): each block attends over time, then over space; no class token.

    pooling="cls" takes each encoder's class token, "mean" the mean of its other tokens, "fc_norm" that mean before
    the norm; the parameters are the same. positions="sincos" fixes the positions. `dropout` acts before the head. In
    the factorised encoder stochastic depth drops single frames, not clips. `norm_eps` is that of the blocks, the final
    norms have 1e-6. `checkpoint_blocks` of `blocks` are recomputed on the way back.
    """

    pos_embed: Tensor
    temporal_pos_embed: Tensor

    def __init__(
        self,
        num_classes: int,
        num_frames: int = 16,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        tubelet: int = 2,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        attention: str = "joint",
        temporal_depth: int = 4,
        cls_token: bool = True,
        positions: str = "learned",
        pooling: str = "cls",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        gelu: str = "tanh",
        norm_eps: float = NORM_EPS,
        in_chans: int = 3,
        checkpoint_blocks: int = 0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.kwargs = plain_kwargs(locals())
        check_positive(depth=depth, temporal_depth=temporal_depth)
        check_choice("attention", attention, ["joint", "factorised_encoder", "factorised_attention"])
        check_pooling(pooling, cls_token)
        if attention == "factorised_attention" and cls_token:
            raise ValueError("attention='factorised_attention' has no place for a class token: cls_token=False")
        self.attention = attention
        self.pooling = pooling
        self.has_cls_token = cls_token
        self.checkpoint_blocks = checkpoint_blocks

        self.patch_embed = TubeletEmbed(num_frames, image_size, (tubelet, patch_size, patch_size), width, in_chans)
        num_tokens = self.patch_embed.num_patches
        if attention != "factorised_encoder":
            num_tokens *= self.patch_embed.num_frames
        if cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        add_positions(self, "pos_embed", positions, num_tokens, width, cls_token)

        def block(drop_path: float) -> Block:
            options: dict[str, Any] = dict(mlp_ratio=mlp_ratio, drop_path=drop_path, gelu=gelu, norm_eps=norm_eps)
            if attention == "factorised_attention":
                return FactorisedBlock(width, heads, self.patch_embed.num_frames, **options)
            return Block(Attention(width, heads), **options)

        self.blocks = nn.ModuleList(block(rate) for rate in drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

        if attention == "factorised_encoder":
            if cls_token:
                self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, width))
            add_positions(self, "temporal_pos_embed", positions, self.patch_embed.num_frames, width, cls_token)
            rates = drop_path_rates(drop_path, temporal_depth)
            self.temporal_blocks = nn.ModuleList(block(rate) for rate in rates)
            self.temporal_norm = nn.LayerNorm(width, eps=NORM_EPS)

        self.dropout = nn.Dropout(dropout)
        self.head = make_head(width, num_classes)
        self.apply(init_linear)
        scale_head(self.head, head_scale)

    @property
    def token_grid(self) -> Triple:
        """(t, h, w) of the tokens after the last block."""
        return self.patch_embed.grid

    def run(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, [1 +] N, D): the only encoder of models 1 and 3, the spatial one of model 2, not normed."""
        if self.has_cls_token:
            tokens = prepend(self.cls_token, tokens)
        return run_blocks(self.blocks, tokens + self.pos_embed, self.checkpoint_blocks)

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        return pool_tokens(self.run(tokens), self.norm, self.pooling, self.has_cls_token)

    def forward_tokens(self, video: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of token_grid, normed, without the class token; models 1 and 3. `mask`
        (B, t, n) is True where `mask_token` (1, 1, D) takes the place of what the patch embedding gave."""
        patches = hide(self.patch_embed(video), mask, mask_token)
        tokens = self.norm(self.run(rearrange(patches, "B t n D -> B (t n) D")))
        return tokens[:, 1:] if self.has_cls_token else tokens

    def encode_time(self, frames: Tensor) -> Tensor:
        """(B, t, D) -> (B, D)."""
        if self.has_cls_token:
            frames = prepend(self.temporal_cls_token, frames)
        frames = run_blocks(self.temporal_blocks, frames + self.temporal_pos_embed)
        return pool_tokens(frames, self.temporal_norm, self.pooling, self.has_cls_token)

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        tokens = self.patch_embed(video)
        if self.attention != "factorised_encoder":
            return self.encode(rearrange(tokens, "B t n D -> B (t n) D"))
        # t is the fast axis on the way in and on the way out, so that every frame returns to its own clip
        frames = self.encode(rearrange(tokens, "B t n D -> (B t) n D"))
        return self.encode_time(rearrange(frames, "(B t) D -> B t D", t=self.patch_embed.num_frames))

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes); the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: every argument of ViViT can be given by keyword -------------------------------------------------------

TINY: dict[str, Any] = dict(num_frames=8, image_size=64, patch_size=8, width=96, depth=4, heads=4)
FACTORISED_ENCODER: dict[str, Any] = dict(attention="factorised_encoder", temporal_depth=4)
FACTORISED_ATTENTION: dict[str, Any] = dict(attention="factorised_attention", cls_token=False, pooling="mean")
VIDEOMAE: dict[str, Any] = dict(cls_token=False, positions="sincos", pooling="fc_norm", gelu="exact")


def vivit_tiny(num_classes: int, **overrides: Any) -> ViViT:
    """8 frames of 64x64: small enough to train on a CPU, for tests and the demo."""
    return ViViT(num_classes, **TINY | overrides)


def vivit_s(num_classes: int, **overrides: Any) -> ViViT:
    return ViViT(num_classes, **dict(width=384, depth=12, heads=6) | overrides)


def vivit_b(num_classes: int, **overrides: Any) -> ViViT:
    """ViViT-B/16x2; the published one reads num_frames=32."""
    return ViViT(num_classes, **dict(width=768, depth=12, heads=12) | overrides)


def vivit_l(num_classes: int, **overrides: Any) -> ViViT:
    """ViViT-L/16x2; the published one reads num_frames=32."""
    return ViViT(num_classes, **dict(width=1024, depth=24, heads=16) | overrides)


def vivit_fe_tiny(num_classes: int, **overrides: Any) -> ViViT:
    return vivit_tiny(num_classes, **FACTORISED_ENCODER | dict(temporal_depth=2) | overrides)


def vivit_fe_b(num_classes: int, **overrides: Any) -> ViViT:
    """ViViT-B/16x2 FE (model 2): 12 spatial blocks, 4 temporal ones."""
    return vivit_b(num_classes, **FACTORISED_ENCODER | overrides)


def vivit_fe_l(num_classes: int, **overrides: Any) -> ViViT:
    """ViViT-L/16x2 FE (model 2): 24 spatial blocks, 4 temporal ones."""
    return vivit_l(num_classes, **FACTORISED_ENCODER | overrides)


def vivit_fsa_tiny(num_classes: int, **overrides: Any) -> ViViT:
    return vivit_tiny(num_classes, **FACTORISED_ATTENTION | overrides)


def vivit_fsa_b(num_classes: int, **overrides: Any) -> ViViT:
    """ViViT-B/16x2 factorised self-attention (model 3)."""
    return vivit_b(num_classes, **FACTORISED_ATTENTION | overrides)


def videomae_tiny(num_classes: int, **overrides: Any) -> ViViT:
    return vivit_tiny(num_classes, **VIDEOMAE | overrides)


def videomae_s(num_classes: int, **overrides: Any) -> ViViT:
    """VideoMAE's ViT-S encoder, 16 frames."""
    return vivit_s(num_classes, **VIDEOMAE | overrides)


def videomae_b(num_classes: int, **overrides: Any) -> ViViT:
    """VideoMAE's ViT-B encoder, 16 frames."""
    return vivit_b(num_classes, **VIDEOMAE | overrides)


def videomae_l(num_classes: int, **overrides: Any) -> ViViT:
    """VideoMAE's ViT-L encoder, 16 frames."""
    return vivit_l(num_classes, **VIDEOMAE | overrides)


def videomae_h(num_classes: int, **overrides: Any) -> ViViT:
    """VideoMAE's ViT-H encoder, 16 frames."""
    return ViViT(num_classes, **VIDEOMAE | dict(width=1280, depth=32, heads=16) | overrides)
