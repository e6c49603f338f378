"""VideoMAE (Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
Pre-Training", 2022) and VideoMAE v2 (Wang et al., 2023): an encoder that sees a tenth of a clip's patches, and a narrow
decoder that predicts the pixels of the others. The encoder is ViViT's model 1 without a class token and with fixed
position embeddings.

Shapes: B batch, C channels, T frames, H W pixels; N patches of a clip, n of them visible, m predicted; D embedding
dimension; P pixels of a patch.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from networks.argument_checks import jsonable_kwargs
from networks.layers import gather_tokens, init_xavier, run_blocks
from networks.pixel_targets import PixelTargets
from networks.pos_embed import add_pos_embed
from networks.pretraining import MaskedAutoencoder, build_backbone
from networks.vivit import ViViT, vivit_b, vivit_l, vivit_s, vivit_tiny

VIDEOMAE: dict[str, Any] = dict(cls_token=False, pos_embed="sincos", pooling="fc_norm", gelu="exact")
VIT_GIANT: dict[str, Any] = dict(patch_size=14, embed_dim=1408, depth=40, num_heads=16, mlp_ratio=48 / 11)


# ---- encoders: `overrides` are arguments of ViViT --------------------------------------------------------------------


def videomae_tiny(num_classes: int, **overrides: Any) -> ViViT:
    """Build vivit_tiny as VideoMAE's encoder."""
    return vivit_tiny(num_classes, **VIDEOMAE | overrides)


def videomae_s(num_classes: int, **overrides: Any) -> ViViT:
    """Build VideoMAE's ViT-S encoder for 16 frames."""
    return vivit_s(num_classes, **VIDEOMAE | overrides)


def videomae_b(num_classes: int, **overrides: Any) -> ViViT:
    """Build VideoMAE's ViT-B encoder for 16 frames."""
    return vivit_b(num_classes, **VIDEOMAE | overrides)


def videomae_l(num_classes: int, **overrides: Any) -> ViViT:
    """Build VideoMAE's ViT-L encoder for 16 frames."""
    return vivit_l(num_classes, **VIDEOMAE | overrides)


def videomae_h(num_classes: int, **overrides: Any) -> ViViT:
    """Build VideoMAE's ViT-H encoder for 16 frames."""
    return ViViT(num_classes, **VIDEOMAE | dict(embed_dim=1280, depth=32, num_heads=16) | overrides)


def videomae_g(num_classes: int, **overrides: Any) -> ViViT:
    """Build the ViT-g/14 encoder of VideoMAE v2 for 16 frames; its smaller encoders are those of VideoMAE."""
    return ViViT(num_classes, **VIDEOMAE | VIT_GIANT | overrides)


ENCODERS = {
    variant.__name__: variant for variant in (videomae_tiny, videomae_s, videomae_b, videomae_l, videomae_h, videomae_g)
}


# ---- pre-training ----------------------------------------------------------------------------------------------------


class VideoMAE(MaskedAutoencoder):
    """An encoder for the visible patches, and a decoder of `decoder_depth` blocks for the others.

    `backbone` is the name of an encoder, `backbone_args` its arguments. The encoder never sees a mask token; the
    decoder has one in the place of each patch that it predicts, after the visible ones. Predicted are the pixels of
    patches, in the order of their frames, rows, columns and channels.
    """

    backbone: ViViT
    decoder_pos_embed: Tensor
    default_mask, default_mask_ratio = "tube", 0.9

    def __init__(  # noqa: PLR0913  # the network's configuration, kept as keywords in recipes and config.json
        self,
        backbone: str = "videomae_b",
        num_frames: int = 16,
        image_size: Any = 224,
        backbone_args: dict[str, Any] | None = None,
        decoder_embed_dim: int = 384,
        decoder_depth: int = 4,
        decoder_num_heads: int = 6,
        decoder_mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        sizes: dict[str, Any] = dict(num_frames=num_frames, image_size=image_size, pooling="mean")
        self.backbone = build_backbone(backbone, ENCODERS, sizes | (backbone_args or {}))
        args, patch_embed = self.backbone.kwargs, self.backbone.patch_embed
        if args["attention"] != "joint" or args["cls_token"] or args["rlt_threshold"]:
            raise ValueError("backbone_args: expected joint attention, no class token and no rlt_threshold")
        self.mask_grid = patch_embed.grid
        self.pixel_targets = PixelTargets(patch_embed.grid, patch_embed.stride)
        self._make_decoder(args["embed_dim"], args["in_chans"], embed_bias=False)
        add_pos_embed(self, "decoder_pos_embed", "sincos", math.prod(self.mask_grid), decoder_embed_dim)
        self.apply(init_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, video: Tensor, visible: Tensor, predicted: Tensor) -> Tensor:
        """(B, C, T, H, W), positions (B, n) and (B, m) int64 of visible and predicted patches -> (B, m, P C)."""
        tokens = self.decoder_embed(self.backbone.forward_visible(video, visible))
        tokens = tokens + gather_tokens(self.decoder_pos_embed, visible)
        hidden = self.mask_token + gather_tokens(self.decoder_pos_embed, predicted)
        tokens = torch.cat([tokens, hidden.to(tokens.dtype)], dim=1)
        tokens = run_blocks(self.decoder_blocks, tokens)[:, visible.shape[1] :]
        return self.decoder_pred(self.decoder_norm(tokens))


# ---- variants: `overrides` are arguments of VideoMAE -----------------------------------------------------------------

WIDE_DECODER: dict[str, Any] = dict(decoder_embed_dim=512, decoder_depth=12, decoder_num_heads=8)


def pretrain_videomae_tiny(**overrides: Any) -> VideoMAE:
    """Build VideoMAE for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    sizes: dict[str, Any] = dict(
        num_frames=8, image_size=64, decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=4
    )
    return VideoMAE(**dict(backbone="videomae_tiny") | sizes | overrides)


def pretrain_videomae_s(**overrides: Any) -> VideoMAE:
    """Build VideoMAE ViT-S for 16x224x224."""
    decoder: dict[str, Any] = dict(decoder_embed_dim=192, decoder_num_heads=3)
    return VideoMAE(**dict(backbone="videomae_s") | decoder | overrides)


def pretrain_videomae_b(**overrides: Any) -> VideoMAE:
    """Build VideoMAE or VideoMAE v2 ViT-B for 16x224x224."""
    return VideoMAE(**overrides)


def pretrain_videomae_l(**overrides: Any) -> VideoMAE:
    """Build VideoMAE ViT-L for 16x224x224; that of v2 has decoder_depth=4."""
    return VideoMAE(**dict(backbone="videomae_l") | WIDE_DECODER | overrides)


def pretrain_videomae_h(**overrides: Any) -> VideoMAE:
    """Build VideoMAE ViT-H for 16x224x224; that of v2 has decoder_embed_dim=512 and decoder_depth=4."""
    return VideoMAE(**dict(backbone="videomae_h") | WIDE_DECODER | dict(decoder_embed_dim=640) | overrides)


def pretrain_videomae_g(**overrides: Any) -> VideoMAE:
    """Build VideoMAE v2 ViT-g/14 for 16x224x224."""
    return VideoMAE(**dict(backbone="videomae_g") | WIDE_DECODER | dict(decoder_depth=4) | overrides)
