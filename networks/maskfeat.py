"""MaskFeat (Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", 2022): a network that
predicts the HOG of what is hidden from it. The backbone then starts a classifier.

Shapes: B batch, C channels, T frames, H W pixels; t h w the grid of the backbone's last tokens, D its width.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from networks.hog import target_width
from networks.layers import Triple, TubeletEmbed, check_positive, init_linear, plain_kwargs
from networks.mvit import MViT, mvit_v1_b, mvit_v1_tiny, mvit_v2_b, mvit_v2_s, mvit_v2_tiny
from networks.vivit import ViViT, vivit_b, vivit_fsa_b, vivit_tiny

BACKBONES = {
    network.__name__: network for network in (
        mvit_v1_b, mvit_v1_tiny, mvit_v2_b, mvit_v2_s, mvit_v2_tiny, vivit_b, vivit_fsa_b, vivit_tiny
    )
}  # fmt: skip


class MaskFeat(nn.Module):
    """A mask token after the patch embedding, a backbone without a head, and a linear layer on its normed tokens.

    `backbone` is a name and `backbone_args` are its arguments; MViT's last stage should not pool its queries (arguments
    of the variants below), so that tokens are 16 pixels wide. A mask's cells are mask_cell x mask_cell tokens (2 in
    the paper: 8x7x7 over 8x14x14). Of each token the HOG of its first target_frames frames is predicted.
    """

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
        self.kwargs = plain_kwargs(locals())
        if backbone not in BACKBONES:
            raise ValueError(f"backbone={backbone!r}: expected one of {', '.join(BACKBONES)}")
        sizes = dict(num_classes=0, num_frames=num_frames, image_size=image_size)
        network = BACKBONES[backbone](**sizes | (backbone_args or {}))
        assert isinstance(network, MViT | ViViT)
        if network.kwargs.get("attention") == "factorised_encoder":
            raise ValueError("attention='factorised_encoder': MaskFeat needs all tokens after the last block")
        self.backbone = network
        self.token_grid: Triple = network.token_grid
        t, h, w = self.token_grid
        check_positive(mask_cell=mask_cell, target_frames=target_frames)
        if h % mask_cell or w % mask_cell or network.patch_embed.grid[0] % t:
            raise ValueError(
                f"image_size={image_size}: masks of {mask_cell}x{mask_cell} tokens do not divide the {h}x{w} tokens of "
                "a frame"
            )
        if target_frames > num_frames // t:
            raise ValueError(f"target_frames={target_frames}: a token has {num_frames // t} frames")
        self.mask_grid = (t, h // mask_cell, w // mask_cell)
        self.target_frames = target_frames
        self.target_width = target_frames * target_width(network.patch_embed.input_shape[2:], self.token_grid)
        self.mask_token = nn.Parameter(torch.empty(1, 1, network.patch_embed.proj.out_channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.predict = nn.Linear(network.norm.normalized_shape[0], self.target_width)
        init_linear(self.predict)

    @property
    def patch_embed(self) -> TubeletEmbed:
        return self.backbone.patch_embed

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.blocks

    def spread(self, mask: Tensor, grid: Triple) -> Tensor:
        """(B, t, h, w) bool of mask_grid -> (B, t', h' w') bool of a finer grid: each cell over what it covers."""
        t, h, w = (fine // coarse for fine, coarse in zip(grid, self.mask_grid, strict=True))
        return repeat(mask, "B t h w -> B (t a) (h b w c)", a=t, b=h, c=w)

    def forward(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W), mask (B, t, h, w) bool of mask_grid, True where hidden -> (B, t, f, h, w, numbers) of the f
        frames of target_frames."""
        hidden = None if mask is None else self.spread(mask, self.backbone.patch_embed.grid)
        tokens = self.backbone.forward_tokens(video, hidden, self.mask_token)
        t, h, w = self.token_grid
        return rearrange(self.predict(tokens), "B (t h w) (f D) -> B t f h w D", t=t, h=h, w=w, f=self.target_frames)


# ---- variants --------------------------------------------------------------------------------------------------------


def maskfeat_mvit_v2_s(**overrides: Any) -> MaskFeat:
    """MViTv2-S with stage 4 unpooled and its width growing in the MLP, as the published one; 16x224x224."""
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 1, 1]]
    args: dict[str, Any] = dict(query_strides=strides, width_change="mlp", drop_path=0.0, dropout=0.0)
    settings: dict[str, Any] = dict(backbone="mvit_v2_s", backbone_args=args)
    return MaskFeat(**settings | overrides)


def maskfeat_mvit_v1_b(**overrides: Any) -> MaskFeat:
    """What VideoTransformer-pytorch pre-trains: MViT-B with stage 4 unpooled, masks of single tokens, the HOG of both
    frames of a token; 16x224x224. Its task has task.mask=runs and task.hog_gradient=central."""
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 1, 1]]
    args: dict[str, Any] = dict(query_strides=strides, drop_path=0.0, dropout=0.0, pool_norm_eps=1e-5)
    settings: dict[str, Any] = dict(backbone="mvit_v1_b", backbone_args=args, mask_cell=1, target_frames=2)
    return MaskFeat(**settings | overrides)


def maskfeat_tiny(**overrides: Any) -> MaskFeat:
    """8 frames of 64x64, stage 3 unpooled, tokens of 8x8 pixels: small enough for a CPU, for tests and the demo."""
    strides = [[1, 1, 1], [1, 2, 2], [1, 1, 1]]
    args: dict[str, Any] = dict(query_strides=strides, width_change="mlp", drop_path=0.0)
    settings: dict[str, Any] = dict(backbone="mvit_v2_tiny", num_frames=8, image_size=64, backbone_args=args)
    return MaskFeat(**settings | overrides)
