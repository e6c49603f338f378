"""TimeSformer (Bertasius et al., "Is Space-Time Attention All You Need for Video Understanding?", 2021, section 3 and
figure 2) with divided, joint and space-only attention. Parameter names are those of the published checkpoints; only
`patch_embed.proj` differs in shape, a Conv3d of depth 1 instead of a Conv2d.

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
    check_choice,
    check_pooling,
    check_positive,
    drop_path_rates,
    init_linear,
    make_head,
    plain_kwargs,
    pool_tokens,
    prepend,
    run_blocks,
    scale_head,
)
from networks.pos_embed import add_positions


class DividedBlock(Block):
    """A Block that attends over time before it attends over space. Its own parameters are the temporal ones."""

    def __init__(self, width: int, heads: int, num_frames: int, **options: Any):
        super().__init__(Attention(width, heads), **options)
        self.num_frames = num_frames
        self.temporal_norm1 = nn.LayerNorm(width, eps=self.norm1.eps)
        self.temporal_attn = Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)

    def attend_time(self, patches: Tensor) -> Tensor:
        """(B, n T, D) -> its residual: each patch position sees itself in all frames, and no class token."""
        rows = rearrange(patches, "B (n T) D -> (B n) T D", T=self.num_frames)
        rows = self.temporal_fc(self.drop_path(self.temporal_attn(self.temporal_norm1(rows))))
        return rearrange(rows, "(B n) T D -> B (n T) D", B=patches.shape[0])

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
    """attention="divided": time, then space, in each block. "joint": all tokens of the clip see each other.
    "space": each frame by itself, the mean over frames before the final norm; no time embedding. A tubelet of more
    than one frame (not in the paper) counts as one frame.

    positions="sincos" fixes both tables. `norm_eps` is that of the blocks, the final norm has 1e-6. `dropout` acts
    before the head. Stochastic depth drops clips; with divided attention patch positions (time), frames (space) and
    clips (MLP); with space attention frames.
    """

    pos_embed: Tensor
    time_embed: Tensor

    def __init__(
        self,
        num_classes: int,
        num_frames: int = 8,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        tubelet: int = 1,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        attention: str = "divided",
        positions: str = "learned",
        pooling: str = "cls",
        drop_path: float = 0.1,
        dropout: float = 0.0,
        gelu: str = "exact",
        norm_eps: float = NORM_EPS,
        in_chans: int = 3,
        checkpoint_blocks: int = 0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.kwargs = plain_kwargs(locals())
        check_positive(depth=depth)
        check_choice("attention", attention, ["divided", "joint", "space"])
        check_pooling(pooling, cls_token=True)
        self.attention = attention
        self.pooling = pooling
        self.checkpoint_blocks = checkpoint_blocks

        self.patch_embed = TubeletEmbed(num_frames, image_size, (tubelet, patch_size, patch_size), width, in_chans)
        num_frames = self.patch_embed.num_frames
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        add_positions(self, "pos_embed", positions, self.patch_embed.num_patches, width, cls_token=True)
        if attention != "space":
            add_positions(self, "time_embed", positions, num_frames, width)

        def block(drop_path: float) -> Block:
            options: dict[str, Any] = dict(mlp_ratio=mlp_ratio, drop_path=drop_path, gelu=gelu, norm_eps=norm_eps)
            if attention == "divided":
                return DividedBlock(width, heads, num_frames, **options)
            return Block(Attention(width, heads), **options)

        self.blocks = nn.ModuleList(block(rate) for rate in drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = make_head(width, num_classes)

        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)
        scale_head(self.head, head_scale)
        # With time_embed and temporal_fc at zero the network starts as the image transformer it may be filled from.
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name == "time_embed" or "temporal_fc" in name:
                    parameter.zero_()

    def embed(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, 1 + n T, D); (B T, 1 + n, D) with space attention."""
        patches = self.patch_embed(video) + self.pos_embed[:, 1:]
        cls_token = self.cls_token + self.pos_embed[:, :1]
        if self.attention == "space":
            return prepend(cls_token, rearrange(patches, "B T n D -> (B T) n D"))
        patches = patches + rearrange(self.time_embed, "one T D -> one T 1 D")
        return prepend(cls_token, rearrange(patches, "B T n D -> B (n T) D"))

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        tokens = run_blocks(self.blocks, self.embed(video), self.checkpoint_blocks)
        if self.attention == "space":
            tokens = reduce(tokens, "(B T) N D -> B N D", "mean", T=self.patch_embed.num_frames)
        return pool_tokens(tokens, self.norm, self.pooling)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes); the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: every argument of TimeSformer can be given by keyword -------------------------------------------------


def timesformer_tiny(num_classes: int, **overrides: Any) -> TimeSformer:
    """8 frames of 64x64: small enough to train on a CPU, for tests and the demo."""
    settings = dict(num_frames=8, image_size=64, patch_size=8, width=96, depth=4, heads=4)
    return TimeSformer(num_classes, **settings | overrides)


def timesformer_s(num_classes: int, **overrides: Any) -> TimeSformer:
    """8 frames of 224x224, ViT-S."""
    return TimeSformer(num_classes, **dict(width=384, depth=12, heads=6) | overrides)


def timesformer_b(num_classes: int, **overrides: Any) -> TimeSformer:
    """The paper's TimeSformer: 8 frames of 224x224, ViT-B."""
    return TimeSformer(num_classes, **dict(width=768, depth=12, heads=12) | overrides)


def timesformer_hr(num_classes: int, **overrides: Any) -> TimeSformer:
    """The paper's TimeSformer-HR: 16 frames of 448x448, on the same ViT-B."""
    return timesformer_b(num_classes, **dict(num_frames=16, image_size=448) | overrides)


def timesformer_l(num_classes: int, **overrides: Any) -> TimeSformer:
    """The paper's TimeSformer-L: L is the length, 96 frames, on the same ViT-B."""
    return timesformer_b(num_classes, **dict(num_frames=96) | overrides)
