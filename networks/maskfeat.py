"""MaskFeat (Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", 2022): a network that
predicts the HOG of masked tokens. Its backbone is then fine-tuned as a classifier.

Shapes: B batch, C channels, T frames, H W pixels; t h w the grid of the backbone's last tokens, D their dimension.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from networks.argument_checks import Grid, check_positive, jsonable_kwargs
from networks.hog import target_dim
from networks.layers import init_linear
from networks.mvit import MViT, mvit_v1_b, mvit_v1_tiny, mvit_v2_b, mvit_v2_s, mvit_v2_tiny
from networks.pretraining import PretrainingNetwork, build_backbone
from networks.vivit import ViViT, vivit_b, vivit_fsa_b, vivit_tiny

BACKBONES = {
    variant.__name__: variant
    for variant in (mvit_v1_b, mvit_v1_tiny, mvit_v2_b, mvit_v2_s, mvit_v2_tiny, vivit_b, vivit_fsa_b, vivit_tiny)
}


class MaskFeat(PretrainingNetwork):
    """A backbone without head whose masked patches are replaced by a token, and a linear layer on its normed tokens.

    `backbone` is the name of a variant, `backbone_args` its arguments. MViT's last stage should not pool its queries
    (see the variants below), so that a token covers 16x16 pixels. A cell of a mask covers mask_cell x mask_cell tokens
    (2 in the paper: 8x7x7 cells for 8x14x14 tokens). Predicted are the HOG of the first `target_frames` frames of each
    token. Raises ValueError if cells or tokens do not divide a frame, or if `target_frames` exceeds a token's frames.
    """

    backbone: MViT | ViViT
    default_mask, default_mask_ratio = "cube", 0.4

    def __init__(
        self,
        backbone: str = "mvit_v2_s",
        num_frames: int = 16,
        image_size: Any = 224,
        backbone_args: dict[str, Any] | None = None,
        mask_cell: int = 2,
        target_frames: int = 1,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        sizes: dict[str, Any] = dict(num_frames=num_frames, image_size=image_size)
        network = build_backbone(backbone, BACKBONES, sizes | (backbone_args or {}))
        assert isinstance(network, MViT | ViViT)
        if network.attention_layout.kind == "factorized_encoder":
            raise ValueError("attention='factorized_encoder': MaskFeat needs all tokens after the last block")
        self.backbone = network
        self.token_grid: Grid = network.token_grid
        t, h, w = self.token_grid
        check_positive(mask_cell=mask_cell, target_frames=target_frames)
        if h % mask_cell or w % mask_cell or network.patch_embed.grid[0] % t:
            raise ValueError(
                f"image_size={image_size}: masks of {mask_cell}x{mask_cell} tokens do not divide the {h}x{w} tokens of "
                "a frame; change image_size, or mask_cell"
            )
        if target_frames > num_frames // t:
            raise ValueError(f"target_frames={target_frames}: a token has only {num_frames // t} frames")
        self.mask_grid = (t, h // mask_cell, w // mask_cell)
        self.target_frames = target_frames
        self.target_dim = target_frames * target_dim(network.patch_embed.input_shape[2:], self.token_grid)
        self.mask_token = nn.Parameter(torch.empty(1, 1, network.patch_embed.proj.out_channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.predict = nn.Linear(network.norm.normalized_shape[0], self.target_dim)
        init_linear(self.predict)

    def upsample_mask(self, mask: Tensor, grid: Grid) -> Tensor:
        """(B, t, h, w) bool of `mask_grid` -> (B, t', h' w') bool of a finer grid: each cell is repeated."""
        t, h, w = (fine // coarse for fine, coarse in zip(grid, self.mask_grid, strict=True))
        return repeat(mask, "B t h w -> B (t a) (h b w c)", a=t, b=h, c=w)

    def forward(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W), mask (B, t, h, w) bool of `mask_grid` -> (B, t, f, h, w, numbers), f = target_frames.

        The mask is True where the clip is hidden; without one nothing is.
        """
        patch_mask = None if mask is None else self.upsample_mask(mask, self.patch_embed.grid)
        tokens = self.backbone.forward_tokens(video, patch_mask, self.mask_token)
        t, h, w = self.token_grid
        return rearrange(self.predict(tokens), "B (t h w) (f D) -> B t f h w D", t=t, h=h, w=w, f=self.target_frames)


# ---- variants: `overrides` are arguments of MaskFeat -----------------------------------------------------------------


def maskfeat_mvit_v2_s(**overrides: Any) -> MaskFeat:
    """Build MaskFeat on MViTv2-S for 16x224x224 as published: stage 4 not pooled, expansion in the MLP."""
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 1, 1]]
    args: dict[str, Any] = dict(q_strides=strides, expand_attn=False, drop_path=0.0, dropout=0.0)
    settings: dict[str, Any] = dict(backbone="mvit_v2_s", backbone_args=args)
    return MaskFeat(**settings | overrides)


def maskfeat_mvit_v1_b(**overrides: Any) -> MaskFeat:
    """Build MaskFeat on MViT-B for 16x224x224 as VideoTransformer-pytorch pre-trains it.

    Stage 4 is not pooled, masks consist of single tokens, and the HOG of both frames of a token are predicted. The
    matching task has task.mask=frame_runs and task.hog_gradient=central.
    """
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 1, 1]]
    args: dict[str, Any] = dict(q_strides=strides, drop_path=0.0, dropout=0.0, pool_norm_eps=1e-5)
    settings: dict[str, Any] = dict(backbone="mvit_v1_b", backbone_args=args, mask_cell=1, target_frames=2)
    return MaskFeat(**settings | overrides)


def maskfeat_tiny(**overrides: Any) -> MaskFeat:
    """Build MaskFeat for 8 frames of 64x64, small enough for a CPU: for tests and the demo.

    Stage 3 is not pooled, so tokens cover 8x8 pixels.
    """
    strides = [[1, 1, 1], [1, 2, 2], [1, 1, 1]]
    args: dict[str, Any] = dict(q_strides=strides, expand_attn=False, drop_path=0.0)
    settings: dict[str, Any] = dict(backbone="mvit_v2_tiny", num_frames=8, image_size=64, backbone_args=args)
    return MaskFeat(**settings | overrides)
