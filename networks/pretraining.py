"""What networks for pre-training have in common: a backbone, which is fine-tuned later, and parts that are not.

Shapes: B batch, N tokens, D dimension of the decoder.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from networks.argument_checks import Grid, check_positive
from networks.layers import NORM_EPS, Attention, Block, TubeletEmbed
from networks.pixel_targets import PixelTargets

BackboneT = TypeVar("BackboneT")


def build_backbone(name: str, variants: Mapping[str, Callable[..., BackboneT]], args: Mapping[str, Any]) -> BackboneT:
    """Build a backbone without a head. Raises ValueError for a name that is none of the variants."""
    if name not in variants:
        raise ValueError(f"backbone={name!r}: expected one of {', '.join(variants)}")
    return variants[name](**{"num_classes": 0} | dict(args))


class PretrainingNetwork(nn.Module):
    """A backbone without a head, and what predicts the hidden part of a clip from its tokens.

    A mask hides cells of `mask_grid`.
    """

    backbone: nn.Module
    mask_grid: Grid
    kwargs: dict[str, Any]

    @property
    def patch_embed(self) -> TubeletEmbed:
        """Return the backbone's patch embedding."""
        return self.backbone.patch_embed  # type: ignore[return-value]

    @property
    def blocks(self) -> nn.ModuleList:
        """Return the backbone's blocks."""
        return self.backbone.blocks  # type: ignore[return-value]


class MaskedAutoencoder(PretrainingNetwork):
    """A pre-training whose decoder predicts the pixels of patches, `pixel_targets`.

    Parameter names of the decoder are those of MAE (He et al., 2022). Its sizes are the arguments that begin with
    decoder_, `default_mask` and `default_mask_ratio` are the published ones.
    """

    pixel_targets: PixelTargets
    default_mask: str
    default_mask_ratio: float

    def _make_decoder(self, encoder_dim: int, in_chans: int, *, embed_bias: bool) -> None:
        """Make the decoder, except for its position embeddings; the mask token is not initialized."""
        args = self.kwargs
        embed_dim, depth, num_heads = (args[f"decoder_{key}"] for key in ("embed_dim", "depth", "num_heads"))
        check_positive(decoder_embed_dim=embed_dim, decoder_depth=depth)
        self.decoder_embed = nn.Linear(encoder_dim, embed_dim, bias=embed_bias)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.decoder_blocks = nn.ModuleList(
            Block(Attention(embed_dim, num_heads), args["decoder_mlp_ratio"]) for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(embed_dim, math.prod(self.pixel_targets.patch) * in_chans)
