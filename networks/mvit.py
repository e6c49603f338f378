"""MViT (Fan et al., "Multiscale Vision Transformers", 2021) and MViTv2 (Li et al., 2022): attention over pooled tokens.

Shapes: B batch, C channels, T frames, H W pixels; t h w the grid of a block's tokens, N = 1 + t h w tokens with the
class token first, D embedding dimension, which grows from stage to stage. Parameter names are SlowFast's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from networks.argument_checks import (
    Grid,
    check_bool,
    check_choice,
    check_odd,
    check_pooling,
    check_positive,
    jsonable_kwargs,
    to_3tuple,
)
from networks.layers import (
    NORM_EPS,
    AttentionLayout,
    TubeletEmbed,
    apply_mask_token,
    drop_path_rates,
    init_linear,
    make_head,
    pool_tokens,
    prepend_token,
    run_blocks,
    scale_head,
)
from networks.mvit_attention import UNPOOLED, MultiscaleBlock, PooledAttention, QKVPooling


class MViT(nn.Module):
    """Multiscale vision transformer: from stage to stage fewer tokens, of a larger dimension.

    `depths`, `embed_dims`, `num_heads` and `q_strides` have one entry per stage. The first block of a stage pools its
    queries by the stage's `q_strides`. Keys and values are pooled by `kv_stride`, divided by all query strides so far.
    `pool_kernel`=None: one more than the stride along every axis that is pooled.

    pos_embed="separable": learned tables for space, time and the class token (v1); "relative": relative positions in
    the attention (v2). expand_attn=True: the dimension grows in the attention of a stage's first block (v2); False: in
    the MLP of the last block before it (v1).

    pool_queries="strided": queries are convolved only where they are pooled (v1); "always": in all blocks (v2).
    pool_keys: the same for keys and values. SlowFast's published v1 weights have "strided" and pool_norm_eps=1e-5, its
    newer code "always" and 1e-6. `residual_pooling` is described in PooledAttention. `pooling` and `dropout` apply
    before the head; `checkpoint_blocks` blocks are recomputed in the backward pass.
    """

    pos_embed_spatial: Tensor
    pos_embed_temporal: Tensor
    pos_embed_class: Tensor

    # So many arguments because they are the network's configuration, kept as keywords in recipes and config.json.
    def __init__(  # noqa: PLR0913
        self,
        num_classes: int,
        *,
        num_frames: int = 16,
        image_size: int | Sequence[int] = 224,
        depths: Sequence[int] = (1, 2, 11, 2),
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        q_strides: Sequence[Sequence[int]] = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)),
        kv_stride: Sequence[int] = (1, 8, 8),
        pool_kernel: Sequence[int] | None = (3, 3, 3),
        patch_kernel: Sequence[int] = (3, 7, 7),
        patch_stride: Sequence[int] = (2, 4, 4),
        mlp_ratio: float = 4.0,
        pos_embed: str = "relative",
        expand_attn: bool = True,
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
        self.kwargs = jsonable_kwargs(locals())
        check_positive(**{f"depths[{i}]": depth for i, depth in enumerate(depths)})
        check_choice("pos_embed", pos_embed, ["relative", "separable"])
        check_bool("expand_attn", expand_attn)
        check_choice("pool_queries", pool_queries, ["always", "strided"])
        check_choice("pool_keys", pool_keys, ["always", "strided"])
        check_pooling(pooling, cls_token=True)
        if not len(depths) == len(embed_dims) == len(num_heads) == len(q_strides):
            raise ValueError(
                f"depths={depths}, embed_dims={embed_dims}, num_heads={num_heads} and q_strides={q_strides}: "
                "expected one entry per stage in each"
            )
        self.pooling = pooling
        self.has_separable_pos_embed = pos_embed == "separable"
        self.checkpoint_blocks = checkpoint_blocks

        stride = to_3tuple("patch_stride", patch_stride)
        kernel = check_odd("patch_kernel", to_3tuple("patch_kernel", patch_kernel))
        self.patch_embed = TubeletEmbed(num_frames, image_size, stride, embed_dims[0], in_chans, kernel)
        self._init_tokens(embed_dims[0])
        self.blocks = nn.ModuleList(self._make_blocks())
        self.norm = nn.LayerNorm(embed_dims[-1], eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = make_head(embed_dims[-1], num_classes)
        self.apply(init_linear)
        scale_head(self.head, head_scale)

    def _init_tokens(self, embed_dim: int) -> None:
        """Create the class token and, unless positions are relative, the tables of position embeddings."""
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.has_separable_pos_embed:
            t, h, w = self.patch_embed.grid
            for name, length in {"spatial": h * w, "temporal": t, "class": 1}.items():
                table = nn.Parameter(torch.empty(1, length, embed_dim))
                nn.init.trunc_normal_(table, std=0.02)
                self.register_parameter(f"pos_embed_{name}", table)

    def _make_blocks(self) -> Iterator[MultiscaleBlock]:
        """Yield the blocks of all stages; each starts from the grid and the dimension that the one before ends with."""
        args = self.kwargs
        kernel = args["pool_kernel"]
        if kernel is not None:
            kernel = check_odd("pool_kernel", to_3tuple("pool_kernel", kernel))
        stage_kv_stride = to_3tuple("kv_stride", args["kv_stride"])
        rates = iter(drop_path_rates(args["drop_path"], sum(args["depths"])))
        grid, embed_dim = self.patch_embed.grid, args["embed_dims"][0]
        for stage, depth in enumerate(args["depths"]):
            stage_q_stride = to_3tuple("q_strides", args["q_strides"][stage])
            stage_kv_stride = divide_stride(stage_kv_stride, stage_q_stride)
            attn_dim = args["embed_dims"][stage]
            for index in range(depth):
                q_stride = stage_q_stride if index == 0 else UNPOOLED
                is_before_next_stage = index == depth - 1 and stage + 1 < len(args["depths"])
                expands_in_mlp = is_before_next_stage and not args["expand_attn"]
                out_dim = args["embed_dims"][stage + 1] if expands_in_mlp else attn_dim
                pooling = QKVPooling(
                    kernel=kernel,
                    q_stride=q_stride,
                    kv_stride=stage_kv_stride,
                    pool_queries=args["pool_queries"] == "always" or q_stride != UNPOOLED,
                    pool_keys=args["pool_keys"] == "always" or stage_kv_stride != UNPOOLED,
                    norm_eps=args["pool_norm_eps"],
                )
                attn = PooledAttention(
                    embed_dim,
                    args["num_heads"][stage],
                    attn_dim,
                    grid,
                    pooling,
                    has_rel_pos=args["pos_embed"] == "relative",
                    residual_pooling=args["residual_pooling"],
                )
                options = dict(mlp_ratio=args["mlp_ratio"], drop_path=next(rates), gelu=args["gelu"])
                yield MultiscaleBlock(attn, q_stride, out_dim, **options)
                grid, embed_dim = attn.query_grid, out_dim

    @property
    def token_grid(self) -> Grid:
        """Return (t, h, w) of the tokens after the last block."""
        return self._last_attention().query_grid

    @property
    def attention_layout(self) -> AttentionLayout:
        """Return which tokens attend to each other."""
        return AttentionLayout("pooled", self._last_attention().key_grid)

    def _last_attention(self) -> PooledAttention:
        attn = self.blocks[-1].attn
        assert isinstance(attn, PooledAttention)
        return attn

    def embed(self, video: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, 1 + t h w, D); `mask` and `mask_token` as in `forward_tokens`."""
        patches = rearrange(apply_mask_token(self.patch_embed(video), mask, mask_token), "B t n D -> B (t n) D")
        if not self.has_separable_pos_embed:
            return prepend_token(self.cls_token, patches)
        t, h, w = self.patch_embed.grid
        pos_embed = repeat(self.pos_embed_spatial, "one n D -> one (t n) D", t=t)
        pos_embed = pos_embed + repeat(self.pos_embed_temporal, "one t D -> one (t n) D", n=h * w)
        return prepend_token(self.cls_token + self.pos_embed_class, patches + pos_embed)

    def forward_tokens(self, video: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of `token_grid`: normed, without the class token.

        `mask` (B, t, n), of patch_embed's grid, is True where `mask_token` (1, 1, D) replaces the embedded patch.
        """
        return self.norm(run_blocks(self.blocks, self.embed(video, mask, mask_token), self.checkpoint_blocks))[:, 1:]

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        tokens = run_blocks(self.blocks, self.embed(video), self.checkpoint_blocks)
        return pool_tokens(tokens, self.norm, self.pooling)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), or the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


def divide_stride(stride: Grid, divisor: Grid) -> Grid:
    """Divide a stride along each axis, rounding down, but not below 1."""
    t, h, w = (max(size // factor, 1) for size, factor in zip(stride, divisor, strict=True))
    return t, h, w


# ---- variants: `overrides` are arguments of MViT ---------------------------------------------------------------------

V1: dict[str, Any] = dict(pos_embed="separable", expand_attn=False, pool_queries="strided", residual_pooling=False)
B_32X3: dict[str, Any] = dict(num_frames=32, depths=(2, 3, 16, 3), drop_path=0.3)
L_40X3: dict[str, Any] = dict(
    num_frames=40,
    image_size=312,
    depths=(2, 6, 36, 4),
    embed_dims=(144, 288, 576, 1152),
    num_heads=(2, 4, 8, 16),
    drop_path=0.75,
)
TINY: dict[str, Any] = dict(
    num_frames=8,
    image_size=64,
    depths=(1, 1, 2),
    embed_dims=(24, 48, 96),
    num_heads=(1, 2, 4),
    kv_stride=(1, 4, 4),
    q_strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
    dropout=0.0,
)


def mvit_v1_tiny(num_classes: int, **overrides: Any) -> MViT:
    """Build an MViT for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    return MViT(num_classes, **V1 | TINY | overrides)


def mvit_v1_b(num_classes: int, **overrides: Any) -> MViT:
    """Build MViT-B 16x4; 32x3 needs num_frames=32 and drop_path=0.3."""
    return MViT(num_classes, **V1 | dict(drop_path=0.2) | overrides)


def mvit_v2_tiny(num_classes: int, **overrides: Any) -> MViT:
    """Build an MViTv2 for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    return MViT(num_classes, **TINY | overrides)


def mvit_v2_s(num_classes: int, **overrides: Any) -> MViT:
    """Build MViTv2-S 16x4. In MaskFeat's, stage 4 is not pooled: q_strides[3]=(1, 1, 1)."""
    return MViT(num_classes, **dict(drop_path=0.2) | overrides)


def mvit_v2_b(num_classes: int, **overrides: Any) -> MViT:
    """Build MViTv2-B 32x3 with its 24 blocks."""
    return MViT(num_classes, **B_32X3 | overrides)


def mvit_v2_l(num_classes: int, **overrides: Any) -> MViT:
    """Build MViTv2-L 40x3 for 312x312; 32x3 for 224x224 needs num_frames=32 and image_size=224."""
    return MViT(num_classes, **L_40X3 | overrides)
