"""Hiera's masked autoencoder (Ryali et al., "Hiera", 2023, section 3): the encoder sees some of the mask units, and a
decoder predicts the pixels of the others from the tokens of all stages.

Parameter names are those of the published networks, except for the encoder's norm. Shapes: B batch, C channels, T
frames, H W pixels; n visible mask units; m predicted tokens of `token_grid`; D embedding dimension; P pixels of a
patch.
"""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import jsonable_kwargs
from networks.hiera import Hiera, hiera_b, hiera_b_plus, hiera_h, hiera_l, hiera_tiny
from networks.layers import gather_tokens, init_xavier, run_blocks
from networks.pixel_targets import PixelTargets
from networks.pretraining import MaskedAutoencoder, build_backbone

ENCODERS = {variant.__name__: variant for variant in (hiera_tiny, hiera_b, hiera_b_plus, hiera_l, hiera_h)}


class HieraMAE(MaskedAutoencoder):
    """A Hiera for the visible mask units, and a decoder of `decoder_depth` blocks over all of them.

    `backbone` is the name of a Hiera, `backbone_args` its arguments. Its last stage is not pooled (q_pool), so that a
    mask unit has 2x2 tokens at the end. The tokens of the pooled stages are brought to this size by convolutions
    (`multi_scale_fusion_heads`) and added. Predicted are the pixels of the first of `patch_stride` frames.
    """

    backbone: Hiera
    default_mask, default_mask_ratio = "random", 0.9

    def __init__(  # noqa: PLR0913  # the network's configuration, kept as keywords in recipes and config.json
        self,
        backbone: str = "hiera_b",
        num_frames: int = 16,
        image_size: Any = 224,
        backbone_args: dict[str, Any] | None = None,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        decoder_mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        args: dict[str, Any] = dict(num_frames=num_frames, image_size=image_size, pooling="mean") | (
            backbone_args or {}
        )
        num_strides = build_backbone(backbone, ENCODERS, args).num_strides
        self.backbone = encoder = build_backbone(backbone, ENCODERS, dict(q_pool=max(1, num_strides - 1)) | args)
        self.mask_grid, self.token_grid = encoder.unit_grid, encoder.token_grid
        channels, _, height, width = encoder.patch_embed.input_shape
        patch = (1, height // self.token_grid[1], width // self.token_grid[2])
        step = num_frames // self.token_grid[0]
        self.pixel_targets = PixelTargets(self.token_grid, patch, step, per_channel=False, unit_range=False)

        embed_dim = encoder.norm.normalized_shape[0]
        heads: list[nn.Module] = [self._make_fusion_head(stage, embed_dim) for stage in range(encoder.q_pool)]
        self.multi_scale_fusion_heads = nn.ModuleList([*heads, nn.Identity()])
        self._make_decoder(embed_dim, channels, embed_bias=True)
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, math.prod(self.token_grid), decoder_embed_dim))
        self.apply(init_xavier)
        for parameter in (self.mask_token, self.decoder_pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.xavier_uniform_(encoder.patch_embed.proj.weight.data.flatten(1))

    def _make_fusion_head(self, stage: int, embed_dim: int) -> nn.Conv3d:
        """Return the convolution that brings the tokens of a stage to the size and dimension of the last one."""
        encoder = self.backbone
        shapes = zip(encoder.unit_shape(stage), encoder.unit_shape(encoder.num_strides), strict=True)
        t, h, w = (size // last for size, last in shapes)
        return nn.Conv3d(encoder.kwargs["embed_dim"] * 2**stage, embed_dim, (t, h, w), (t, h, w))

    def fuse(self, outputs: list[Tensor]) -> Tensor:
        """(B, N', D') of each stage -> (B, units, a, b, c, D), not normed: the pooled stages and the last added."""
        encoder, fused = self.backbone, torch.zeros((), device=outputs[0].device)
        stages = [*range(encoder.q_pool), encoder.num_strides]
        for head, stage in zip(self.multi_scale_fusion_heads, stages, strict=True):
            units = encoder.reroll(outputs[stage], stage)
            if isinstance(head, nn.Conv3d):
                maps = head(rearrange(units, "B units a b c D -> (B units) D a b c"))
                units = rearrange(maps, "(B units) D a b c -> B units a b c D", B=len(units))
            fused = fused + units
        return fused

    def forward(self, video: Tensor, visible: Tensor, predicted: Tensor) -> Tensor:
        """(B, C, T, H, W), positions (B, n) int64 of visible mask units, (B, m) of predicted tokens -> (B, m, P C)."""
        units = self.decoder_embed(self.backbone.norm(self.fuse(self.backbone.stage_outputs(video, visible))))
        shape, dim = units.shape[2:-1], units.shape[-1]
        all_units = self.mask_token.to(units.dtype)[..., None, None, :].expand(
            len(video), math.prod(self.mask_grid), *shape, dim
        )
        index = visible[..., None, None, None, None].expand_as(units)
        tokens = self.backbone.from_units(all_units.scatter(1, index, units)) + self.decoder_pos_embed
        tokens = self.decoder_norm(run_blocks(self.decoder_blocks, tokens))
        return self.decoder_pred(gather_tokens(tokens, predicted))


# ---- variants: `overrides` are arguments of HieraMAE -----------------------------------------------------------------


def mae_hiera_tiny(**overrides: Any) -> HieraMAE:
    """Build Hiera's masked autoencoder for 8 frames of 64x64, small enough to train on a CPU: for tests."""
    decoder: dict[str, Any] = dict(decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=4)
    sizes: dict[str, Any] = dict(num_frames=8, image_size=64)
    return HieraMAE(**dict(backbone="hiera_tiny") | sizes | decoder | overrides)


def mae_hiera_b(**overrides: Any) -> HieraMAE:
    """Build the masked autoencoder of Hiera-B for 16x224x224."""
    return HieraMAE(**overrides)


def mae_hiera_b_plus(**overrides: Any) -> HieraMAE:
    """Build the masked autoencoder of Hiera-B+ for 16x224x224."""
    return HieraMAE(**dict(backbone="hiera_b_plus") | overrides)


def mae_hiera_l(**overrides: Any) -> HieraMAE:
    """Build the masked autoencoder of Hiera-L for 16x224x224."""
    return HieraMAE(**dict(backbone="hiera_l") | overrides)


def mae_hiera_h(**overrides: Any) -> HieraMAE:
    """Build the masked autoencoder of Hiera-H for 16x224x224."""
    return HieraMAE(**dict(backbone="hiera_h") | overrides)
