"""TimeSformer with divided space-time attention (Bertasius et al., "Is Space-Time Attention All You Need for Video
Understanding?", 2021, section 3). Parameter names are those of the published checkpoints; only `patch_embed.proj`
differs in shape, a Conv3d of depth 1 instead of a Conv2d.

Shapes: B batch, C channels, T frames, H W pixels; n patches of one frame, D width.
Tokens are ordered (n T): all frames of the first patch, then all frames of the second.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from networks.layers import (
    NORM_EPS,
    Attention,
    Block,
    TubeletEmbed,
    check_positive,
    drop_path_rates,
    init_linear,
    prepend,
)


class DividedBlock(Block):
    """A Block that attends over time before it attends over space. Its own parameters are the temporal ones."""

    def __init__(self, width: int, heads: int, num_frames: int, mlp_ratio: float, drop_path: float, gelu: str):
        super().__init__(width, heads, mlp_ratio, drop_path, gelu)
        self.num_frames = num_frames
        self.temporal_norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.temporal_attn = Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)

    def attend_time(self, patches: Tensor) -> Tensor:
        """(B, n T, D) -> its residual: each patch position sees itself in all frames, and no class token."""
        rows = rearrange(patches, "B (n T) D -> (B n) T D", T=self.num_frames)
        rows = self.temporal_fc(self.drop_path(self.temporal_attn(self.temporal_norm1(rows))))
        return rearrange(rows, "(B n) T D -> B (n T) D", B=len(patches))

    def attend_space(self, cls_token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, D), (B, n T, D) -> their residuals: each frame sees its patches and a copy of the class token."""
        frames = rearrange(patches, "B (n T) D -> (B T) n D", T=self.num_frames)
        copies = repeat(cls_token, "B one D -> (B T) one D", T=self.num_frames)
        frames = torch.cat([copies, frames], dim=1)
        frames = self.drop_path(self.attn(self.norm1(frames)))
        cls_residual = reduce(frames[:, :1], "(B T) one D -> B one D", "mean", T=self.num_frames)
        patch_residual = rearrange(frames[:, 1:], "(B T) n D -> B (n T) D", T=self.num_frames)
        return cls_residual, patch_residual

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + n T, D) -> (B, 1 + n T, D)."""
        cls_token, patches = tokens[:, :1], tokens[:, 1:]
        patches = patches + self.attend_time(patches)
        cls_residual, patch_residual = self.attend_space(cls_token, patches)
        tokens = torch.cat([cls_token + cls_residual, patches + patch_residual], dim=1)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class TimeSformer(nn.Module):
    """`dropout` acts before the head. Stochastic depth drops patch positions (time), frames (space) and clips (MLP)."""

    def __init__(
        self,
        num_classes: int,
        num_frames: int = 8,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        dropout: float = 0.0,
        gelu: str = "exact",
        in_chans: int = 3,
    ):
        super().__init__()
        self.kwargs: dict[str, Any] = dict(
            num_classes=num_classes, num_frames=num_frames,
            image_size=image_size if isinstance(image_size, int) else list(image_size),
            patch_size=patch_size, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, drop_path=drop_path,
            dropout=dropout, gelu=gelu, in_chans=in_chans,
        )  # fmt: skip
        check_positive(num_classes=num_classes, depth=depth)

        self.patch_embed = TubeletEmbed(num_frames, image_size, patch_size, 1, width, in_chans)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.patch_embed.num_patches, width))
        self.time_embed = nn.Parameter(torch.zeros(1, num_frames, width))
        self.blocks = nn.ModuleList(
            DividedBlock(width, heads, num_frames, mlp_ratio, rate, gelu) for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_linear)
        # With time_embed and temporal_fc at zero the network starts as the image transformer it may be filled from.
        for block in self.blocks:
            assert isinstance(block, DividedBlock)
            nn.init.zeros_(block.temporal_fc.weight)

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        patches = self.patch_embed(video) + self.pos_embed[:, 1:]
        patches = patches + rearrange(self.time_embed, "one T D -> one T 1 D")
        tokens = prepend(self.cls_token + self.pos_embed[:, :1], rearrange(patches, "B T n D -> B (n T) D"))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes)."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: every argument of TimeSformer can be given by keyword -------------------------------------------------


def timesformer_tiny(num_classes: int, **overrides: Any) -> TimeSformer:
    """8 frames of 64x64: small enough to train on a CPU, for tests and the demo."""
    settings = dict(num_frames=8, image_size=64, patch_size=8, width=96, depth=4, heads=4)
    return TimeSformer(num_classes, **settings | overrides)


def timesformer_b(num_classes: int, **overrides: Any) -> TimeSformer:
    """The paper's TimeSformer: 8 frames of 224x224, ViT-B."""
    return TimeSformer(num_classes, **dict(width=768, depth=12, heads=12) | overrides)


def timesformer_l(num_classes: int, **overrides: Any) -> TimeSformer:
    """The paper's TimeSformer-L: L is the length, 96 frames, on the same ViT-B."""
    return timesformer_b(num_classes, **dict(num_frames=96) | overrides)
