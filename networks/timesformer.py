"""TimeSformer (Bertasius et al., "Is Space-Time Attention All You Need for Video Understanding?", 2021): divided, joint
and space-only attention, as in section 3 and figure 2. Parameter names are those of the published checkpoints; only
`patch_embed.proj` differs in shape: it is a Conv3d of depth 1 instead of a Conv2d.

Shapes: B batch, C channels, T frames, H W pixels; n patches per frame, D embedding dimension.
Tokens are ordered (n T): all frames of the first patch, then all frames of the second.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from networks.argument_checks import Grid, check_choice, check_pooling, check_positive, jsonable_kwargs
from networks.layers import (
    NORM_EPS,
    Attention,
    AttentionLayout,
    Block,
    TubeletEmbed,
    drop_path_rates,
    init_linear,
    make_head,
    pool_tokens,
    prepend_token,
    run_blocks,
    scale_head,
)
from networks.pos_embed import add_pos_embed


class DividedBlock(Block):
    """A Block with attention over time before that over space. It adds the temporal parameters to those of Block."""

    def __init__(self, embed_dim: int, num_heads: int, num_frames: int, **options: Any):
        super().__init__(Attention(embed_dim, num_heads), **options)
        self.num_frames = num_frames
        self.temporal_norm1 = nn.LayerNorm(embed_dim, eps=self.norm1.eps)
        self.temporal_attn = Attention(embed_dim, num_heads)
        self.temporal_fc = nn.Linear(embed_dim, embed_dim)

    def attend_time(self, patches: Tensor) -> Tensor:
        """(B, n T, D) -> its residual: a patch attends to its position in all frames, but not to the class token."""
        positions = rearrange(patches, "B (n T) D -> (B n) T D", T=self.num_frames)
        positions = self.temporal_fc(self.drop_path(self.temporal_attn(self.temporal_norm1(positions))))
        return rearrange(positions, "(B n) T D -> B (n T) D", B=patches.shape[0])

    def attend_space(self, cls_token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, D), (B, n T, D) -> their residuals: a patch attends to its frame and a copy of the class token."""
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
    """A vision transformer over all patches of a clip, with one of three kinds of attention.

    attention="divided": over time, then over space in each block. "joint": all tokens of the clip attend to each other.
    "space": only those of one frame do, there is no time embedding, and the final norm follows the mean over frames.
    With tubelet_size > 1 (not in the paper) a tubelet counts as a frame.

    pos_embed="sincos": both tables are fixed. `norm_eps` is that of the blocks, the final norm has 1e-6. `dropout`
    applies before the head. Stochastic depth drops clips; with divided attention patch positions (time), frames (space)
    and clips (MLP); with space attention frames. `checkpoint_blocks` blocks are recomputed in the backward pass.
    """

    pos_embed: Tensor
    time_embed: Tensor

    # So many arguments because they are the network's configuration, kept as keywords in recipes and config.json.
    def __init__(  # noqa: PLR0913
        self,
        num_classes: int,
        *,
        num_frames: int = 8,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        tubelet_size: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        attention: str = "divided",
        pos_embed: str = "learned",
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
        self.kwargs = jsonable_kwargs(locals())
        check_positive(depth=depth)
        check_choice("attention", attention, ["divided", "joint", "space"])
        check_pooling(pooling, cls_token=True)
        self.attention = attention
        self.pooling = pooling
        self.checkpoint_blocks = checkpoint_blocks

        tubelet = (tubelet_size, patch_size, patch_size)
        self.patch_embed = TubeletEmbed(num_frames, image_size, tubelet, embed_dim, in_chans)
        num_frames = self.patch_embed.num_frames
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        add_pos_embed(self, "pos_embed", pos_embed, self.patch_embed.num_patches, embed_dim, cls_token=True)
        if attention != "space":
            add_pos_embed(self, "time_embed", pos_embed, num_frames, embed_dim)

        def make_block(drop_path: float) -> Block:
            options: dict[str, Any] = dict(mlp_ratio=mlp_ratio, drop_path=drop_path, gelu=gelu, norm_eps=norm_eps)
            if attention == "divided":
                return DividedBlock(embed_dim, num_heads, num_frames, **options)
            return Block(Attention(embed_dim, num_heads), **options)

        self.blocks = nn.ModuleList(make_block(rate) for rate in drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = make_head(embed_dim, num_classes)

        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)
        scale_head(self.head, head_scale)
        self._init_as_image_model()

    @torch.no_grad()
    def _init_as_image_model(self) -> None:
        """Zero time_embed and temporal_fc: the network then starts as the image model that it may be filled from."""
        for name, parameter in self.named_parameters():
            if name == "time_embed" or "temporal_fc" in name:
                parameter.zero_()

    @property
    def token_grid(self) -> Grid:
        """Return (t, h, w) of the tokens after the last block."""
        return self.patch_embed.grid

    @property
    def attention_layout(self) -> AttentionLayout:
        """Return which tokens attend to each other."""
        if self.attention == "joint":
            return AttentionLayout("joint", self.patch_embed.grid, token_order="(h w t)")
        return AttentionLayout("divided" if self.attention == "divided" else "per_frame", self.patch_embed.grid)

    def embed(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, 1 + n T, D); (B T, 1 + n, D) with space attention."""
        patches = self.patch_embed(video) + self.pos_embed[:, 1:]
        cls_token = self.cls_token + self.pos_embed[:, :1]
        if self.attention == "space":
            return prepend_token(cls_token, rearrange(patches, "B T n D -> (B T) n D"))
        patches = patches + rearrange(self.time_embed, "one T D -> one T 1 D")
        return prepend_token(cls_token, rearrange(patches, "B T n D -> B (n T) D"))

    def encode_tokens(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, 1 + n T, D), or with space attention (B T, 1 + n, D); not normed."""
        return run_blocks(self.blocks, self.embed(video), self.checkpoint_blocks)

    def forward_tokens(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of `token_grid`: normed, without class tokens."""
        tokens = self.norm(self.encode_tokens(video))[:, 1:]
        order = "(B T) n D" if self.attention == "space" else "B (n T) D"
        return rearrange(tokens, f"{order} -> B (T n) D", T=self.patch_embed.num_frames)

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        tokens = self.encode_tokens(video)
        if self.attention == "space":
            tokens = reduce(tokens, "(B T) N D -> B N D", "mean", T=self.patch_embed.num_frames)
        return pool_tokens(tokens, self.norm, self.pooling)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), or the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: `overrides` are arguments of TimeSformer --------------------------------------------------------------


def timesformer_tiny(num_classes: int, **overrides: Any) -> TimeSformer:
    """Build a TimeSformer for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    settings = dict(num_frames=8, image_size=64, patch_size=8, embed_dim=96, depth=4, num_heads=4)
    return TimeSformer(num_classes, **settings | overrides)


def timesformer_s(num_classes: int, **overrides: Any) -> TimeSformer:
    """Build a TimeSformer on ViT-S: 8 frames of 224x224."""
    return TimeSformer(num_classes, **dict(embed_dim=384, depth=12, num_heads=6) | overrides)


def timesformer_b(num_classes: int, **overrides: Any) -> TimeSformer:
    """Build the paper's TimeSformer, on ViT-B: 8 frames of 224x224."""
    return TimeSformer(num_classes, **dict(embed_dim=768, depth=12, num_heads=12) | overrides)


def timesformer_hr(num_classes: int, **overrides: Any) -> TimeSformer:
    """Build the paper's TimeSformer-HR, on the same ViT-B: 16 frames of 448x448."""
    return timesformer_b(num_classes, **dict(num_frames=16, image_size=448) | overrides)


def timesformer_l(num_classes: int, **overrides: Any) -> TimeSformer:
    """Build the paper's TimeSformer-L, on the same ViT-B: L is the length, 96 frames."""
    return timesformer_b(num_classes, **dict(num_frames=96) | overrides)
