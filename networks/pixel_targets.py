"""Pixels as the targets of masked autoencoders: patches of clips, normalized, and clips from what was predicted.

Shapes: B batch, C channels, T frames, H W pixels; a patch has a frames, b rows and c columns, P = a b c pixels; N
patches of a clip, frame by frame and row by row.
"""

from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from networks.argument_checks import Grid
from networks.layers import gather_patches


class PixelTargets(NamedTuple):
    """The patches (t, h, w) = `grid` of `patch` = (a, b, c) pixels that a network predicts.

    Of every `frame_step` frames only the first is predicted. `per_channel`: whether each channel of a patch is
    normalized by itself. `unit_range`: whether pixels are predicted in units of 0 to 1, rather than as the network
    sees them.
    """

    grid: Grid
    patch: Grid
    frame_step: int = 1
    per_channel: bool = True
    unit_range: bool = True

    def patches(self, video: Tensor, positions: Tensor) -> Tensor:
        """(B, C, T, H, W), positions (B, n) int64 -> (B, n, P, C): these patches."""
        patches = gather_patches(video[:, :, :: self.frame_step], self.patch, positions)
        return rearrange(patches, "B n C a b c -> B n (a b c) C")

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, P, C) -> the mean and the scale that normalize each patch, (B, N, 1, C) or (B, N, 1, 1)."""
        if self.per_channel:  # VideoMAE
            return patches.mean(-2, keepdim=True), patches.std(-2, keepdim=True) + 1e-6
        dims = (-2, -1)  # MAE
        return patches.mean(dims, keepdim=True), (patches.var(dims, keepdim=True) + 1e-6).sqrt()

    def normalize(self, patches: Tensor) -> Tensor:
        """(B, N, P, C) -> (B, N, P, C) of mean 0 and standard deviation 1."""
        mean, scale = self.statistics(patches)
        return (patches - mean) / scale

    def video(self, patches: Tensor) -> Tensor:
        """(B, N, P, C) -> (B, C, T / frame_step, H, W)."""
        (t, h, _), (a, b, _) = self.grid, self.patch
        return rearrange(patches, "B (t h w) (a b c) C -> B C (t a) (h b) (w c)", t=t, h=h, a=a, b=b)
