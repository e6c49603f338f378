"""MViT (Fan et al., "Multiscale Vision Transformers", 2021) and MViTv2 (Li et al., 2022): attention over pooled tokens.

Shapes: B batch, C channels, T frames, H W pixels; t h w the grid of a block's tokens, N = 1 + t h w tokens with the
class token first, D width (grows from stage to stage), `heads` heads of width d. Parameter names are SlowFast's.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from networks.layers import (
    NORM_EPS,
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
    odd,
    plain_kwargs,
    pool_tokens,
    prepend,
    run_blocks,
    scale_head,
    triple,
)
from networks.mvit_attention import PooledAttention


class MultiscaleBlock(Block):
    """A Block around PooledAttention. The width changes in the attention (its input projected) or in the MLP."""

    def __init__(self, attn: PooledAttention, stride: Triple, out_width: int, **options: Any):
        super().__init__(attn, out_width=out_width, **options)
        self.grid, self.stride = attn.grid, stride
        self.widens_in_attention = attn.out_width != attn.width
        if out_width != attn.width:
            self.proj = nn.Linear(attn.width, out_width)

    def shorten(self, tokens: Tensor) -> Tensor:
        """(B, 1 + t h w, D) -> (B, 1 + t' h' w', D): the residual's way past the pooled queries."""
        if max(self.stride) == 1:
            return tokens
        t, h, w = self.grid
        patches = rearrange(tokens[:, 1:], "B (t h w) D -> B D t h w", t=t, h=h, w=w)
        kernel = [step + 1 if step > 1 else 1 for step in self.stride]
        patches = F.max_pool3d(patches, kernel, self.stride, [size // 2 for size in kernel])
        return torch.cat([tokens[:, :1], rearrange(patches, "B D t h w -> B (t h w) D")], dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + t h w, D) -> (B, 1 + t' h' w', D')."""
        normed = self.norm1(tokens)
        residual = self.proj(normed) if self.widens_in_attention else tokens
        tokens = self.shorten(residual) + self.drop_path(self.attn(normed))
        normed = self.norm2(tokens)
        widens_here = hasattr(self, "proj") and not self.widens_in_attention
        return (self.proj(normed) if widens_here else tokens) + self.drop_path(self.mlp(normed))


class MViT(nn.Module):
    """Stages of `depths` blocks with `widths` and `heads`; the first block of a stage pools its queries by the stage's
    `query_strides`, and `key_stride` is what keys and values are pooled by in the first stage, less by what the queries
    have been since.

    positions="separable": learned tables over space, time and the class token (v1); "relative": in the attention (v2).
    width_change="mlp": the last block of a stage widens in its MLP (v1); "attention": the first of the next does (v2).
    pool_queries="strided": queries pass a convolution only where they are pooled (v1); "always" (v2). pool_keys
    likewise; SlowFast's published v1 weights have "strided" and pool_norm_eps=1e-5, its newer code "always" and 1e-6.
    pool_kernel=None: one more than the stride along each axis that is pooled. residual_pooling: see PooledAttention.
    pooling and dropout act before the head.
    """

    pos_embed_spatial: Tensor
    pos_embed_temporal: Tensor
    pos_embed_class: Tensor

    def __init__(
        self,
        num_classes: int,
        num_frames: int = 16,
        image_size: int | Sequence[int] = 224,
        depths: Sequence[int] = (1, 2, 11, 2),
        widths: Sequence[int] = (96, 192, 384, 768),
        heads: Sequence[int] = (1, 2, 4, 8),
        query_strides: Sequence[Sequence[int]] = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)),
        key_stride: Sequence[int] = (1, 8, 8),
        pool_kernel: Sequence[int] | None = (3, 3, 3),
        patch_kernel: Sequence[int] = (3, 7, 7),
        patch_stride: Sequence[int] = (2, 4, 4),
        mlp_ratio: float = 4.0,
        positions: str = "relative",
        width_change: str = "attention",
        pool_queries: str = "always",
        pool_keys: str = "always",
        pool_norm_eps: float = NORM_EPS,
        residual_pooling: bool = True,
        pooling: str = "cls",
        drop_path: float = 0.0,
        dropout: float = 0.5,
        gelu: str = "exact",
        in_chans: int = 3,
        checkpoint_blocks: int = 0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.kwargs = plain_kwargs(locals())
        check_positive(**{f"depths[{i}]": depth for i, depth in enumerate(depths)})
        check_choice("positions", positions, ["relative", "separable"])
        check_choice("width_change", width_change, ["attention", "mlp"])
        check_choice("pool_queries", pool_queries, ["always", "strided"])
        check_choice("pool_keys", pool_keys, ["always", "strided"])
        check_pooling(pooling, cls_token=True)
        if not len(depths) == len(widths) == len(heads) == len(query_strides):
            raise ValueError(
                f"depths={depths}, widths={widths}, heads={heads} and query_strides={query_strides}: "
                "expected one entry a stage in each"
            )
        self.pooling = pooling
        self.positions = positions
        self.checkpoint_blocks = checkpoint_blocks

        stem = triple("patch_stride", patch_stride), odd("patch_kernel", triple("patch_kernel", patch_kernel))
        self.patch_embed = TubeletEmbed(num_frames, image_size, stem[0], widths[0], in_chans, stem[1])
        grid = self.patch_embed.grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, widths[0]))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if positions == "separable":
            tables = {"spatial": grid[1] * grid[2], "temporal": grid[0], "class": 1}
            for name, length in tables.items():
                table = nn.Parameter(torch.empty(1, length, widths[0]))
                nn.init.trunc_normal_(table, std=0.02)
                self.register_parameter(f"pos_embed_{name}", table)

        self.blocks = nn.ModuleList()
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        width, left = widths[0], triple("key_stride", key_stride)
        kernel = None if pool_kernel is None else odd("pool_kernel", triple("pool_kernel", pool_kernel))
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = triple("query_strides", query_strides[stage]) if index == 0 else (1, 1, 1)
                left = (max(left[0] // stride[0], 1), max(left[1] // stride[1], 1), max(left[2] // stride[2], 1))
                is_last = index == depth - 1 and stage + 1 < len(depths)
                out_width = widths[stage + 1] if is_last and width_change == "mlp" else widths[stage]
                attn = PooledAttention(
                    width, heads[stage], widths[stage], grid, kernel, stride, left,
                    pool_query=pool_queries == "always" or max(stride) > 1,
                    pool_key=pool_keys == "always" or max(left) > 1,
                    relative=positions == "relative", residual=residual_pooling, norm_eps=pool_norm_eps,
                )  # fmt: skip
                block = MultiscaleBlock(attn, stride, out_width, mlp_ratio=mlp_ratio, drop_path=next(rates), gelu=gelu)
                self.blocks.append(block)
                width, grid = out_width, attn.query_grid

        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = make_head(width, num_classes)
        self.apply(init_linear)
        scale_head(self.head, head_scale)

    @property
    def token_grid(self) -> Triple:
        """(t, h, w) of the tokens after the last block."""
        last = self.blocks[-1].attn
        assert isinstance(last, PooledAttention)
        return last.query_grid

    def embed(self, video: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, 1 + t h w, D); mask as for forward_tokens."""
        patches = rearrange(hide(self.patch_embed(video), mask, mask_token), "B t n D -> B (t n) D")
        if self.positions != "separable":
            return prepend(self.cls_token, patches)
        t, h, w = self.patch_embed.grid
        places = repeat(self.pos_embed_spatial, "one n D -> one (t n) D", t=t)
        places = places + repeat(self.pos_embed_temporal, "one t D -> one (t n) D", n=h * w)
        return prepend(self.cls_token + self.pos_embed_class, patches + places)

    def forward_tokens(self, video: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of token_grid, normed, without the class token. `mask` (B, t, n) of
        patch_embed's grid is True where `mask_token` (1, 1, D) takes the place of what the patch embedding gave."""
        return self.norm(run_blocks(self.blocks, self.embed(video, mask, mask_token), self.checkpoint_blocks))[:, 1:]

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        tokens = run_blocks(self.blocks, self.embed(video), self.checkpoint_blocks)
        return pool_tokens(tokens, self.norm, self.pooling)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes); the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: every argument of MViT can be given by keyword --------------------------------------------------------

V1: dict[str, Any] = dict(positions="separable", width_change="mlp", pool_queries="strided", residual_pooling=False)
B_32X3: dict[str, Any] = dict(num_frames=32, depths=(2, 3, 16, 3), drop_path=0.3)
TINY: dict[str, Any] = dict(
    num_frames=8, image_size=64, depths=(1, 1, 2), widths=(24, 48, 96), heads=(1, 2, 4), key_stride=(1, 4, 4),
    query_strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)), dropout=0.0,
)  # fmt: skip


def mvit_v1_tiny(num_classes: int, **overrides: Any) -> MViT:
    """8 frames of 64x64: small enough to train on a CPU, for tests and the demo."""
    return MViT(num_classes, **V1 | TINY | overrides)


def mvit_v1_b(num_classes: int, **overrides: Any) -> MViT:
    """MViT-B 16x4; 32x3 is num_frames=32, drop_path=0.3."""
    return MViT(num_classes, **V1 | dict(drop_path=0.2) | overrides)


def mvit_v2_tiny(num_classes: int, **overrides: Any) -> MViT:
    """8 frames of 64x64: small enough to train on a CPU, for tests and the demo."""
    return MViT(num_classes, **TINY | overrides)


def mvit_v2_s(num_classes: int, **overrides: Any) -> MViT:
    """MViTv2-S 16x4. MaskFeat leaves stage 4 unpooled: query_strides[3]=(1, 1, 1)."""
    return MViT(num_classes, **dict(drop_path=0.2) | overrides)


def mvit_v2_b(num_classes: int, **overrides: Any) -> MViT:
    """MViTv2-B, 24 blocks, 32x3."""
    return MViT(num_classes, **B_32X3 | overrides)
