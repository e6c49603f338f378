"""Adapters that let an image encoder see motion: ST-Adapter (Pan et al., 2022) and AIM (Yang et al., 2023).

Both begin as the image encoder that they extend: the last layer of each adapter is 0 at first.

Shapes: B clips, T frames, N tokens of a frame with its class and register tokens, h w patches, D embedding dimension, d
that of an adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from networks.argument_checks import Grid, check_choice, check_count
from networks.extend import extend
from networks.frame_encoder import FrameEncoder

TIME_EMBED = "backbone.norm_pre.time_embed"
LAST_NORMS = ("backbone.norm.", "backbone.fc_norm.")


class STAdapter(nn.Module):
    """A bottleneck with a depthwise convolution over time, added to the patches; the class token passes by."""

    def __init__(self, embed_dim: int, dim: int, grid: Grid, num_prefix_tokens: int):
        super().__init__()
        self.grid, self.num_prefix_tokens = grid, num_prefix_tokens
        self.down = nn.Linear(embed_dim, dim)
        self.conv = nn.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0), groups=dim)
        self.up = nn.Linear(dim, embed_dim)
        for bias in (self.down.bias, self.conv.bias, self.up.bias):
            nn.init.zeros_(bias)  # type: ignore[arg-type]  # all three layers have one
        nn.init.zeros_(self.conv.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B T, N, D) -> (B T, N, D)."""
        (t, h, w), first_patch = self.grid, self.num_prefix_tokens
        patches = self.down(tokens[:, first_patch:])
        patches = self.conv(rearrange(patches, "(B t) (h w) d -> B d t h w", t=t, h=h, w=w))
        patches = self.up(rearrange(patches, "B d t h w -> (B t) (h w) d"))
        return torch.cat([tokens[:, :first_patch], tokens[:, first_patch:] + patches], dim=1)


class STAdapted(nn.Module):
    """Extend a block of an image encoder by an ST-Adapter before its attention, before its MLP, or before each."""

    before_attn: nn.Module
    before_mlp: nn.Module

    def forward(self, tokens: Tensor, **options: Any) -> Tensor:
        """(B T, N, D) -> (B T, N, D)."""
        block: Any = self
        tokens = self.before_attn(tokens)
        tokens = tokens + block.drop_path1(_scale(block, 1, block.attn(block.norm1(tokens), **options)))
        tokens = self.before_mlp(tokens)
        return tokens + block.drop_path2(_scale(block, 2, block.mlp(block.norm2(tokens))))


def _scale(block: Any, branch: int, tokens: Tensor) -> Tensor:
    """Apply the LayerScale of a block's first or second branch, which timm's classes of blocks keep in two ways."""
    if isinstance(block, EvaBlock):
        gamma = getattr(block, f"gamma_{branch}")
        return tokens if gamma is None else gamma * tokens
    return getattr(block, f"ls{branch}")(tokens)


class Bottleneck(nn.Module):
    """Two linear layers with a GELU between them, the second 0 at first."""

    def __init__(self, embed_dim: int, dim: int):
        super().__init__()
        self.down = nn.Linear(embed_dim, dim)
        self.up = nn.Linear(dim, embed_dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.up(nn.functional.gelu(self.down(tokens)))


class AIM(Block):
    """Extend a block of an image encoder as AIM does.

    Its own attention is used twice: over time, with an adapter after it, then over space, with another one. A third
    adapter lies beside the MLP. Stochastic depth drops the first and the third, as in the authors' code.
    """

    t_adapter: Bottleneck
    s_adapter: Bottleneck
    mlp_adapter: Bottleneck
    num_frames: int
    adapter_scale: float

    def forward(self, tokens: Tensor, **options: Any) -> Tensor:  # type: ignore[override]  # timm calls tokens x
        """(B T, N, D) -> (B T, N, D)."""
        in_time = rearrange(tokens, "(B T) N D -> (B N) T D", T=self.num_frames)
        over_time = self.t_adapter(self.ls1(self.attn(self.norm1(in_time))))
        over_time = rearrange(over_time, "(B N) T D -> (B T) N D", N=tokens.shape[1])
        tokens = tokens + self.drop_path1(over_time)
        attended = self.ls1(self.attn(self.norm1(tokens), **options))
        tokens = tokens + attended + self.s_adapter(attended)
        normed = self.norm2(tokens)
        return tokens + self.ls2(self.mlp(normed)) + self.drop_path2(self.adapter_scale * self.mlp_adapter(normed))


class TimeEmbedded(nn.Module):
    """Extend what an image encoder does before its first block, a norm or nothing, by positions in time."""

    time_embed: nn.Parameter  # (1, T, 1, D)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B T, N, D) -> (B T, N, D)."""
        clips = rearrange(tokens, "(B T) N D -> B T N D", T=self.time_embed.shape[1]) + self.time_embed
        return super().forward(rearrange(clips, "B T N D -> (B T) N D"))  # type: ignore[misc]


def add_st_adapter(network: nn.Module, *, dim: int = 0, position: str = "mlp") -> list[str]:
    """Put ST-Adapters of dimension `dim` (0: half of the encoder's) into each block; return the new parameters.

    `position` is attn, mlp (the authors' choice for Kinetics) or both (for Something-Something): before which part of a
    block they lie. Raises ValueError for a network that is no image encoder on frames.
    """
    check_choice("position", position, ["attn", "mlp", "both"])
    encoder = _frame_encoder(network, "st_adapter", (Block, EvaBlock))
    embed_dim = encoder.backbone.num_features
    shape = _width(dim, embed_dim, 2), encoder.patch_embed.grid, encoder.num_prefix_tokens
    for block in encoder.blocks:
        for part in ("attn", "mlp"):
            adapter = STAdapter(embed_dim, *shape) if position in (part, "both") else nn.Identity()
            setattr(block, f"before_{part}", adapter)
        extend(block, STAdapted)
    return _names(encoder, ("before_attn.", "before_mlp."))


def add_aim(network: nn.Module, *, dim: int = 0, scale: float = 0.5) -> list[str]:
    """Turn each block into one of AIM with adapters of dimension `dim` (0: a quarter of the encoder's).

    `scale` is that of the adapter beside the MLP (1 for Something-Something). Returns the names of the new parameters
    and of the encoder's last norm, which AIM trains, too. Raises ValueError for a network that is no image encoder on
    frames, and if its attention needs to know where a token is (DINOv3's rotary positions), which time has not.
    """
    encoder = _frame_encoder(network, "aim", (Block,))
    embed_dim, num_frames = encoder.backbone.num_features, encoder.patch_embed.grid[0]
    before_blocks: nn.Module = encoder.backbone.norm_pre
    before_blocks.time_embed = nn.Parameter(torch.zeros(1, num_frames, 1, embed_dim))
    extend(before_blocks, TimeEmbedded)
    for block in encoder.blocks:
        for name in ("t_adapter", "s_adapter", "mlp_adapter"):
            setattr(block, name, Bottleneck(embed_dim, _width(dim, embed_dim, 4)))
        block.num_frames, block.adapter_scale = num_frames, scale  # type: ignore[assignment]
        extend(block, AIM)
    others = [name for name, _ in encoder.named_parameters() if name.startswith((TIME_EMBED, *LAST_NORMS))]
    return _names(encoder, ("t_adapter.", "s_adapter.", "mlp_adapter.")) + others


def _frame_encoder(network: nn.Module, name: str, block_types: tuple[type, ...]) -> FrameEncoder:
    if not isinstance(network, FrameEncoder):
        raise ValueError(
            f"expected an image encoder on frames (dinov2_b, clip_b ...); {name} is for them, lora for all"
        )
    other = next((type(block).__name__ for block in network.blocks if not isinstance(block, block_types)), "")
    if other:
        raise ValueError(f"expected the blocks of a plain vision transformer without rotary positions, not {other}")
    return network


def _width(dim: int, embed_dim: int, divisor: int) -> int:
    check_count(dim=dim)
    return dim or embed_dim // divisor


def _names(encoder: FrameEncoder, parts: tuple[str, ...]) -> list[str]:
    """Return the parameters of the blocks whose names, after the number of the block, begin with one of the parts."""
    return [
        name
        for name, _ in encoder.named_parameters()
        if name.partition("blocks.")[2].partition(".")[2].startswith(parts)
    ]
