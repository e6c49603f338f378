"""Hiera (Ryali et al., "Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles", 2023): attention
within mask units in the first stages and over all tokens later, queries pooled by their maximum between the stages.

Parameter names are those of the published networks, except for the head. Shapes: B batch, C channels, T frames, H W
pixels; t h w the grid of the tokens, N = t h w tokens (N' after pooling), D embedding dimension, `heads` heads of
dimension d. A mask unit is a box of tokens that becomes one token in the last stage.

Tokens are in the order (s1 s2 ... u): the place of a token within the stride of the first pooling, within that of the
second, ..., then the mask unit, row by row. So each pooling is a maximum over the first part of the tokens, and mask
units, visible ones or all, need no rearrangement between the blocks. After the last pooling only u is left, (t h w).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import (
    Grid,
    check_bool,
    check_choice,
    check_odd,
    check_positive,
    jsonable_kwargs,
    to_3tuple,
)
from networks.hiera_attention import HieraBlock, MaskUnitAttention
from networks.layers import (
    NORM_EPS,
    AttentionLayout,
    TubeletEmbed,
    drop_path_rates,
    gather_tokens,
    init_linear,
    make_head,
    pool_tokens,
    run_blocks,
    scale_head,
)


class Hiera(nn.Module):
    """Hierarchical vision transformer: from stage to stage fewer tokens, of twice the dimension and twice the heads.

    `depths` and `mask_unit_attn`, whether a stage attends within mask units, have one entry per stage. The first block
    of a stage pools by `q_stride` and still attends as the stage before it; with `q_pool`, only those of so many stages
    after the first do, as in pre-training. `embed_dim` and `num_heads` are those of the first stage. pooling="fc_norm"
    classifies the norm of the mean of the tokens, as published, "mean" the mean of the normed tokens. `dropout` applies
    before the head; `checkpoint_blocks` blocks are recomputed in the backward pass.
    """

    has_cls_token = False

    # So many arguments because they are the network's configuration, kept as keywords in recipes and config.json.
    def __init__(  # noqa: PLR0913
        self,
        num_classes: int,
        *,
        num_frames: int = 16,
        image_size: int | Sequence[int] = 224,
        depths: Sequence[int] = (2, 3, 16, 3),
        embed_dim: int = 96,
        num_heads: int = 1,
        q_stride: Sequence[int] = (1, 2, 2),
        q_pool: int | None = None,
        mask_unit_attn: Sequence[bool] = (True, True, False, False),
        patch_kernel: Sequence[int] = (3, 7, 7),
        patch_stride: Sequence[int] = (2, 4, 4),
        mlp_ratio: float = 4.0,
        pooling: str = "fc_norm",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        gelu: str = "exact",
        in_chans: int = 3,
        checkpoint_blocks: int = 0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        check_choice("pooling", pooling, ["mean", "fc_norm"])
        self._check_stages()
        self.pooling, self.checkpoint_blocks = pooling, checkpoint_blocks

        stride = to_3tuple("patch_stride", patch_stride)
        kernel = check_odd("patch_kernel", to_3tuple("patch_kernel", patch_kernel))
        self.patch_embed = TubeletEmbed(num_frames, image_size, stride, embed_dim, in_chans, kernel)
        self.q_stride = to_3tuple("q_stride", q_stride)
        self.num_strides = len(depths) - 1  # of a mask unit, which would be one token if all of them were pooled
        self.q_pool = self.num_strides if q_pool is None else q_pool
        self.unit_grid = self._divide_into_units()
        t, h, w = self.patch_embed.grid
        self.pos_embed_spatial = nn.Parameter(torch.empty(1, h * w, embed_dim))
        self.pos_embed_temporal = nn.Parameter(torch.empty(1, t, embed_dim))
        for table in (self.pos_embed_spatial, self.pos_embed_temporal):
            nn.init.trunc_normal_(table, std=0.02)
        self.blocks = nn.ModuleList(self._make_blocks())
        out_dim = embed_dim * 2**self.num_strides
        self.norm = nn.LayerNorm(out_dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = make_head(out_dim, num_classes)
        self.apply(init_linear)
        scale_head(self.head, head_scale)

    def _check_stages(self) -> None:
        depths, flags = self.kwargs["depths"], self.kwargs["mask_unit_attn"]
        check_positive(**{f"depths[{i}]": depth for i, depth in enumerate(depths)})
        if len(depths) < 2 or depths[-1] < 2:
            raise ValueError(f"depths={depths}: expected two stages or more, and two blocks or more in the last")
        if len(depths) != len(flags):
            raise ValueError(f"depths={depths} and mask_unit_attn={flags}: expected one entry per stage in each")
        for flag in flags:
            check_bool("mask_unit_attn", flag)
        if flags[-1]:
            raise ValueError(f"mask_unit_attn={flags}: the last stage attends to all tokens, so expected false")
        q_pool = self.kwargs["q_pool"]
        if q_pool is not None and q_pool not in range(1, len(depths)):
            raise ValueError(f"q_pool={q_pool!r}: expected a whole number from 1 to {len(depths) - 1}")

    def _divide_into_units(self) -> Grid:
        """Return the grid of mask units. Raises ValueError if they do not fill that of the tokens."""
        unit = self.unit_shape(0)
        grid = self.patch_embed.grid
        if any(tokens % size for tokens, size in zip(grid, unit, strict=True)):
            frames, height, width = (n * s for n, s in zip(unit, self.kwargs["patch_stride"], strict=True))
            clip = f"num_frames={self.kwargs['num_frames']}, image_size={self.kwargs['image_size']}"
            raise ValueError(f"{clip}: expected multiples of a mask unit, {frames} frames of {height}x{width}")
        t, h, w = (tokens // size for tokens, size in zip(grid, unit, strict=True))
        return t, h, w

    def _make_blocks(self) -> Iterator[HieraBlock]:
        """Yield the blocks of all stages."""
        args = self.kwargs
        rates = iter(drop_path_rates(args["drop_path"], sum(args["depths"])))
        in_dim = args["embed_dim"]
        for stage, depth in enumerate(args["depths"]):
            dim, num_heads = args["embed_dim"] * 2**stage, args["num_heads"] * 2**stage
            for index in range(depth):
                source = stage - 1 if stage and not index else stage  # the stage whose tokens come in
                in_units = args["mask_unit_attn"][source]
                unit_size = math.prod(self.unit_shape(source)) if in_units else 0
                pool = math.prod(self.unit_shape(source)) // math.prod(self.unit_shape(stage))
                attn = MaskUnitAttention(in_dim, num_heads, dim, unit_size, pool)
                yield HieraBlock(attn, mlp_ratio=args["mlp_ratio"], drop_path=next(rates), gelu=args["gelu"])
                in_dim = dim

    def unit_shape(self, stage: int) -> Grid:
        """Return the frames, rows and columns of tokens that a mask unit has after a stage, counted from 0."""
        t, h, w = (stride ** (self.num_strides - min(stage, self.q_pool)) for stride in self.q_stride)
        return t, h, w

    @property
    def token_grid(self) -> Grid:
        """Return (t, h, w) of the tokens after the last block."""
        shape = self.unit_shape(self.num_strides)
        t, h, w = (units * size for units, size in zip(self.unit_grid, shape, strict=True))
        return t, h, w

    @property
    def attention_layout(self) -> AttentionLayout:
        """Return which tokens attend to each other."""
        kind = "pooled" if self.q_pool == self.num_strides else "unrolled"
        return AttentionLayout(kind, self.token_grid, num_prefix_tokens=0)

    def unroll(self, patches: Tensor) -> Tensor:
        """(B, t, n, D) -> (B, N, D) in the order of the tokens, (s1 s2 ... u)."""
        steps = range(1, self.num_strides + 1)
        t, h, w = (f"{axis} " + " ".join(f"{axis}{step}" for step in reversed(steps)) for axis in "thw")
        order = " ".join(f"t{step} h{step} w{step}" for step in steps)
        sizes = {f"{axis}{step}": size for step in steps for axis, size in zip("thw", self.q_stride, strict=True)}
        _, height, width = self.unit_grid
        return rearrange(patches, f"B ({t}) ({h} {w}) D -> B ({order} t h w) D", h=height, w=width, **sizes)

    def reroll(self, tokens: Tensor, stage: int) -> Tensor:
        """(B, N, D) after a stage -> (B, units, t, h, w, D), each mask unit with its tokens in their places."""
        steps = range(min(stage, self.q_pool) + 1, self.num_strides + 1)
        order = " ".join(f"t{step} h{step} w{step}" for step in steps)
        t, h, w = (" ".join(f"{axis}{step}" for step in reversed(steps)) for axis in "thw")
        sizes = {f"{axis}{step}": size for step in steps for axis, size in zip("thw", self.q_stride, strict=True)}
        return rearrange(tokens, f"B ({order} units) D -> B units ({t}) ({h}) ({w}) D", **sizes)

    def from_units(self, units: Tensor) -> Tensor:
        """(B, units, a, b, c, D) -> (B, t h w, D): the tokens of all mask units, frame by frame and row by row."""
        t, h, _ = self.unit_grid
        return rearrange(units, "B (t h w) a b c D -> B (t a h b w c) D", t=t, h=h)

    def embed(self, video: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, N, D), of all mask units or of the visible ones, (B, units) int64.

        The pixels of the others are set to zero, as the patches overlap.
        """
        pos_embed = self.pos_embed_spatial[:, None] + self.pos_embed_temporal[:, :, None]
        if visible is None:
            return self.unroll(self.patch_embed(video) + pos_embed)
        t, h, w = self.unit_grid
        keep = video.new_zeros(len(video), t * h * w).scatter(1, visible, 1)
        keep = F.interpolate(rearrange(keep, "B (t h w) -> B 1 t h w", t=t, h=h), size=video.shape[2:])
        tokens = self.unroll(self.patch_embed(video * keep) + pos_embed)
        tokens = rearrange(tokens, "B (s units) D -> B units (s D)", units=t * h * w)
        return rearrange(gather_tokens(tokens, visible), "B units (s D) -> B (s units) D", D=pos_embed.shape[-1])

    def stage_outputs(self, video: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """(B, C, T, H, W), (B, units) int64 -> (B, N', D') of each stage, not normed, of the visible mask units."""
        tokens, outputs, start = self.embed(video, visible), [], 0
        for depth in self.kwargs["depths"]:
            tokens = run_blocks(self.blocks[start : start + depth], tokens, self.checkpoint_blocks - start)
            outputs.append(tokens)
            start += depth
        return outputs

    def encode(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of `token_grid`, not normed."""
        return self.from_units(self.reroll(self.stage_outputs(video)[-1], self.num_strides))

    def forward_tokens(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of `token_grid`, normed."""
        return self.norm(self.encode(video))

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        return pool_tokens(self.encode(video), self.norm, self.pooling, cls_token=False)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), or the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: `overrides` are arguments of Hiera --------------------------------------------------------------------

TINY: dict[str, Any] = dict(
    num_frames=8, image_size=64, depths=(1, 1, 2), embed_dim=24, mask_unit_attn=(True, False, False)
)

B_PLUS: dict[str, Any] = dict(embed_dim=112, num_heads=2)
L: dict[str, Any] = dict(embed_dim=144, num_heads=2, depths=(2, 6, 36, 4))
H: dict[str, Any] = dict(embed_dim=256, num_heads=4, depths=(2, 6, 36, 4))


def hiera_tiny(num_classes: int, **overrides: Any) -> Hiera:
    """Build a Hiera for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    return Hiera(num_classes, **TINY | overrides)


def hiera_b(num_classes: int, **overrides: Any) -> Hiera:
    """Build Hiera-B for 16 frames of 224x224."""
    return Hiera(num_classes, **overrides)


def hiera_b_plus(num_classes: int, **overrides: Any) -> Hiera:
    """Build Hiera-B+ for 16 frames of 224x224."""
    return Hiera(num_classes, **B_PLUS | overrides)


def hiera_l(num_classes: int, **overrides: Any) -> Hiera:
    """Build Hiera-L for 16 frames of 224x224."""
    return Hiera(num_classes, **L | overrides)


def hiera_h(num_classes: int, **overrides: Any) -> Hiera:
    """Build Hiera-H for 16 frames of 224x224."""
    return Hiera(num_classes, **H | overrides)
