"""ViViT: A Video Vision Transformer (Arnab et al., 2021), models 1 and 2 of section 3.3.

Shapes: B batch, C channels, T frames, H W pixels; t = T / tubelet frames of tubelets, n patches of one frame,
N tokens, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.layers import (
    NORM_EPS,
    Block,
    TubeletEmbed,
    check_choice,
    check_positive,
    drop_path_rates,
    init_linear,
    prepend,
)


class ViViT(nn.Module):
    """attention="joint" (model 1): one encoder over all tubelets of the clip.

    attention="factorised" (model 2): `blocks` encode each frame of tubelets by itself, `temporal_blocks` then encode
    the sequence of frame features. Each encoder has its own class token, positions and final norm.

    pooling="cls" takes each encoder's class token, "mean" the mean of its other tokens; the parameters are the same.
    `dropout` acts before the head. In the factorised encoder stochastic depth drops single frames, not clips.
    """

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
        pooling: str = "cls",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        gelu: str = "tanh",
        in_chans: int = 3,
    ):
        super().__init__()
        self.kwargs: dict[str, Any] = dict(
            num_classes=num_classes, num_frames=num_frames,
            image_size=image_size if isinstance(image_size, int) else list(image_size),
            patch_size=patch_size, tubelet=tubelet, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio,
            attention=attention, temporal_depth=temporal_depth, pooling=pooling, drop_path=drop_path, dropout=dropout,
            gelu=gelu, in_chans=in_chans,
        )  # fmt: skip
        check_positive(num_classes=num_classes, depth=depth, temporal_depth=temporal_depth)
        check_choice("attention", attention, ["joint", "factorised"])
        check_choice("pooling", pooling, ["cls", "mean"])
        self.attention = attention
        self.pooling = pooling

        self.patch_embed = TubeletEmbed(num_frames, image_size, patch_size, tubelet, width, in_chans)
        num_patches = self.patch_embed.num_patches
        num_tokens = num_patches * (self.patch_embed.num_frames if attention == "joint" else 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, rate, gelu) for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

        if attention == "factorised":
            self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.temporal_pos_embed = nn.Parameter(torch.empty(1, 1 + self.patch_embed.num_frames, width))
            self.temporal_blocks = nn.ModuleList(
                Block(width, heads, mlp_ratio, rate, gelu) for rate in drop_path_rates(drop_path, temporal_depth)
            )
            self.temporal_norm = nn.LayerNorm(width, eps=NORM_EPS)
            nn.init.trunc_normal_(self.temporal_pos_embed, std=0.02)

        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        self.apply(init_linear)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, 1 + N, D) -> (B, D)."""
        return tokens[:, 0] if self.pooling == "cls" else reduce(tokens[:, 1:], "B N D -> B D", "mean")

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D): the only encoder of the joint model, the spatial one of the factorised model."""
        tokens = prepend(self.cls_token, tokens) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.pool(self.norm(tokens))

    def encode_time(self, frames: Tensor) -> Tensor:
        """(B, t, D) -> (B, D)."""
        frames = prepend(self.temporal_cls_token, frames) + self.temporal_pos_embed
        for block in self.temporal_blocks:
            frames = block(frames)
        return self.pool(self.temporal_norm(frames))

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        tokens = self.patch_embed(video)
        if self.attention == "joint":
            return self.encode(rearrange(tokens, "B t n D -> B (t n) D"))
        # t is the fast axis on the way in and on the way out, so that every frame returns to its own clip
        frames = self.encode(rearrange(tokens, "B t n D -> (B t) n D"))
        return self.encode_time(rearrange(frames, "(B t) D -> B t D", t=self.patch_embed.num_frames))

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes)."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: every argument of ViViT can be given by keyword -------------------------------------------------------


def vivit_tiny(num_classes: int, **overrides: Any) -> ViViT:
    """8 frames of 64x64: small enough to train on a CPU, for tests and the demo."""
    settings = dict(num_frames=8, image_size=64, patch_size=8, width=96, depth=4, heads=4)
    return ViViT(num_classes, **settings | overrides)


def vivit_b(num_classes: int, **overrides: Any) -> ViViT:
    """ViViT-B/16x2; the published one reads num_frames=32."""
    return ViViT(num_classes, **dict(width=768, depth=12, heads=12) | overrides)


def vivit_l(num_classes: int, **overrides: Any) -> ViViT:
    """ViViT-L/16x2; the published one reads num_frames=32."""
    return ViViT(num_classes, **dict(width=1024, depth=24, heads=16) | overrides)


def vivit_fe_tiny(num_classes: int, **overrides: Any) -> ViViT:
    return vivit_tiny(num_classes, **dict(attention="factorised", temporal_depth=2) | overrides)


def vivit_fe_b(num_classes: int, **overrides: Any) -> ViViT:
    """ViViT-B/16x2 FE: 12 spatial blocks, 4 temporal ones."""
    return vivit_b(num_classes, **dict(attention="factorised", temporal_depth=4) | overrides)
