"""What networks for pre-training have in common: a backbone, which is fine-tuned later, and parts that are not."""

from torch import nn

from networks.argument_checks import Grid
from networks.layers import TubeletEmbed


class PretrainingNetwork(nn.Module):
    """A backbone without a head, and what predicts the hidden part of a clip from its tokens.

    A mask hides cells of `mask_grid`. `default_mask` and `default_mask_ratio` are the published ones.
    """

    backbone: nn.Module
    mask_grid: Grid
    default_mask: str
    default_mask_ratio: float

    @property
    def patch_embed(self) -> TubeletEmbed:
        """Return the backbone's patch embedding."""
        return self.backbone.patch_embed  # type: ignore[return-value]

    @property
    def blocks(self) -> nn.ModuleList:
        """Return the backbone's blocks."""
        return self.backbone.blocks  # type: ignore[return-value]
