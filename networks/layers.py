"""The parts that every network here is made of.

Shapes: B batch, C channels, T frames, H W pixels; t frames after tubelets, n patches of one frame, N tokens,
D width, h heads, d width of one head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

# Pretrained vision transformers use 1e-6 everywhere; PyTorch's default of 1e-5 moves the logits by about 1e-3.
NORM_EPS = 1e-6

GELU_APPROXIMATION = {"exact": "none", "tanh": "tanh"}


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r}: expected one of {', '.join(choices)}")


def check_positive(**numbers: float) -> None:
    for key, value in numbers.items():
        if value <= 0:
            raise ValueError(f"{key}={value}: must be > 0")


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """224 -> (224, 224); (224, 320), a list from JSON too -> (224, 320)."""
    if isinstance(image_size, int):
        return image_size, image_size
    if len(image_size) != 2:
        raise ValueError(f"image_size={image_size!r}: expected one number or (height, width)")
    height, width = image_size
    return int(height), int(width)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth grows linearly from 0 in the first block to `rate` in the last."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path={rate}: must lie in [0, 1)")
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


def init_linear(module: nn.Module) -> None:
    """For `network.apply`: truncated normal of std .02 and zero biases in every Linear, nothing else."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TubeletEmbed(nn.Module):
    """Cuts a clip into tubelets of (tubelet, patch, patch) pixels and projects each; tubelet=1 embeds single frames.

    Knows the clip's shape, so that a wrong one is refused here instead of failing at some addition further on.
    """

    def __init__(
        self,
        num_frames: int,
        image_size: int | Sequence[int],
        patch_size: int,
        tubelet: int,
        width: int,
        in_chans: int = 3,
    ):
        super().__init__()
        image_height, image_width = height_width(image_size)
        check_positive(num_frames=num_frames, patch_size=patch_size, tubelet=tubelet, width=width, in_chans=in_chans)
        check_positive(image_height=image_height, image_width=image_width)
        if image_height % patch_size or image_width % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide image_size={image_height}x{image_width}")
        if num_frames % tubelet:
            raise ValueError(f"tubelet={tubelet} does not divide num_frames={num_frames}")
        self.input_shape = (in_chans, num_frames, image_height, image_width)
        self.num_frames = num_frames // tubelet
        self.num_patches = (image_height // patch_size) * (image_width // patch_size)
        size = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, width, kernel_size=size, stride=size)

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t, n, D), patches row by row."""
        if tuple(video.shape[1:]) != self.input_shape:
            expected = ", ".join(str(size) for size in self.input_shape)
            raise ValueError(f"video of shape {tuple(video.shape)}: this network takes (B, {expected})")
        return rearrange(self.proj(video), "B D t h w -> B t (h w) D")


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of each row of the batch."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_positive(width=width, heads=heads)
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = rearrange(self.qkv(tokens), "B N (three h d) -> three B h N d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(mixed, "B h N d -> B N (h d)"))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: str = "exact"):
        super().__init__()
        check_choice("gelu", gelu, list(GELU_APPROXIMATION))
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate=GELU_APPROXIMATION[gelu])
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block. Stochastic depth drops a residual for a whole row of the batch."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, gelu: str = "exact"):
        super().__init__()
        check_positive(mlp_ratio=mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio), gelu)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def prepend(token: Tensor, tokens: Tensor) -> Tensor:
    """(1, 1, D) learned token, (B, N, D) -> (B, 1 + N, D)."""
    return torch.cat([token.expand(len(tokens), -1, -1), tokens], dim=1)
