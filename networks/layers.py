"""The parts that every network here is made of.

Shapes: B batch, C channels, T frames, H W pixels; t frames after tubelets, n patches of one frame, N tokens,
D width, h heads, d width of one head.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Pretrained vision transformers use 1e-6 everywhere; PyTorch's default of 1e-5 moves the logits by about 1e-3.
NORM_EPS = 1e-6

GELU_APPROXIMATION = {"exact": "none", "tanh": "tanh"}

FRACTIONS = ("mlp_ratio", "norm_eps", "head_scale")

POOLING = ("cls", "mean", "fc_norm")

# Keys up to which plain products are faster on a CPU than its fused kernel, which works in blocks of hundreds and is
# slow in bfloat16 (in which plain products round their scores). A GPU has the fused one always.
FEW_KEYS = {torch.float32: 16, torch.bfloat16: 512}

Triple = tuple[int, int, int]  # of frames, rows, columns


def plain_kwargs(arguments: dict[str, Any]) -> dict[str, Any]:
    """The constructor's locals() -> its keyword arguments as JSON keeps them: lists for tuples, no self."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: plain(value) for key, value in arguments.items() if key not in ("self", "__class__")}


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r}: expected one of {', '.join(choices)}")


def check_positive(**numbers: float) -> None:
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key}={value!r}: expected a number")
        if value <= 0:
            raise ValueError(f"{key}={value}: must be > 0")
        if key not in FRACTIONS and not isinstance(value, int):
            raise ValueError(f"{key}={value}: expected a whole number")


def check_pooling(pooling: str, cls_token: bool) -> None:
    check_choice("pooling", pooling, POOLING)
    if not isinstance(cls_token, bool):
        raise ValueError(f"cls_token={cls_token!r}: expected true or false")
    if pooling == "cls" and not cls_token:
        raise ValueError("pooling='cls' needs cls_token=True")


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """224 -> (224, 224); (224, 320), a list from JSON too -> (224, 320)."""
    if isinstance(image_size, int):
        return image_size, image_size
    if not isinstance(image_size, list | tuple) or len(image_size) != 2:
        raise ValueError(f"image_size={image_size!r}: expected one number or (height, width)")
    height, width = image_size
    return int(height), int(width)


def triple(key: str, numbers: Sequence[int]) -> Triple:
    """(t, h, w) from a tuple, or a list as JSON has them."""
    is_list = isinstance(numbers, list | tuple) and len(numbers) == 3
    if not is_list or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f"{key}={numbers!r}: expected three whole numbers of 1 or more, for frames, rows and columns")
    t, h, w = numbers
    return t, h, w


def odd(key: str, kernel: Triple) -> Triple:
    """Kernels whose middle lies on a token: an even one would shift and shorten the grid."""
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"{key}={list(kernel)}: expected odd numbers")
    return kernel


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth grows linearly from 0 in the first block to `rate` in the last."""
    if not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path={rate!r}: must lie in [0, 1)")
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


def make_head(width: int, num_classes: int) -> nn.Module:
    """Linear; num_classes=0 leaves the features as they are."""
    if not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f"num_classes={num_classes!r}: must be a whole number >= 0")
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


def scale_head(head: nn.Module, scale: float) -> None:
    """A head that starts `scale` times as large: fine-tuning begins at the pre-trained features (.001 in MaskFeat)."""
    check_positive(head_scale=scale)
    if isinstance(head, nn.Linear):
        with torch.no_grad():
            head.weight.mul_(scale)


def init_linear(module: nn.Module) -> None:
    """For `network.apply`: truncated normal of std .02 and zero biases in every Linear, nothing else."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TubeletEmbed(nn.Module):
    """Cuts a clip into tubelets of `stride` = (frames, pixels, pixels) and projects each; (1, p, p): single frames.

    A `kernel` larger than the stride lets neighbouring tubelets overlap by the same margin on all sides (MViT's stem).
    Knows the clip's shape, so that a wrong one is refused here instead of failing at some addition further on.
    """

    def __init__(
        self,
        num_frames: int,
        image_size: int | Sequence[int],
        stride: Triple,
        width: int,
        in_chans: int = 3,
        kernel: Triple | None = None,
    ):
        super().__init__()
        image_height, image_width = height_width(image_size)
        tubelet, patch_height, patch_width = stride
        check_positive(num_frames=num_frames, patch_size=min(patch_height, patch_width), tubelet=tubelet, width=width)
        check_positive(image_height=image_height, image_width=image_width, in_chans=in_chans)
        if image_height % patch_height or image_width % patch_width:
            patch = patch_height if patch_height == patch_width else f"{patch_height}x{patch_width}"
            raise ValueError(f"patch_size={patch} does not divide image_size={image_height}x{image_width}")
        if num_frames % tubelet:
            raise ValueError(f"tubelet={tubelet} does not divide num_frames={num_frames}")
        self.input_shape = (in_chans, num_frames, image_height, image_width)
        self.grid = (num_frames // tubelet, image_height // patch_height, image_width // patch_width)
        margin = [k // 2 if k > s else 0 for k, s in zip(kernel or stride, stride, strict=True)]
        padding = (margin[0], margin[1], margin[2])
        self.proj = nn.Conv3d(in_chans, width, kernel_size=kernel or stride, stride=stride, padding=padding)

    @property
    def num_frames(self) -> int:
        return self.grid[0]

    @property
    def num_patches(self) -> int:
        """Of one frame."""
        return self.grid[1] * self.grid[2]

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t, n, D), patches row by row."""
        if tuple(video.shape[1:]) != self.input_shape:
            expected = ", ".join(str(size) for size in self.input_shape)
            raise ValueError(f"video of shape {tuple(video.shape)}: this network takes (B, {expected})")
        return rearrange(self.proj(video), "B D t h w -> B t (h w) D")


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(B, h, N, d), (B, h, N'', d), (B, h, N'', e) -> (B, h, N, e) for e up to d, by what is fastest on the device."""
    if query.device.type == "cpu" and key.shape[-2] <= FEW_KEYS.get(query.dtype, 0):
        return (query * scale @ key.transpose(-2, -1)).softmax(-1) @ value
    extra = query.shape[-1] - value.shape[-1]  # fused kernels want values as wide as queries and keys
    mixed = F.scaled_dot_product_attention(query, key, F.pad(value, (0, extra)) if extra else value, scale=scale)
    return mixed[..., : value.shape[-1]]


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of each row of the batch, from `width` to `out_width`."""

    def __init__(self, width: int, heads: int, out_width: int | None = None):
        super().__init__()
        out_width = out_width or width
        check_positive(width=width, heads=heads)
        if out_width % heads:
            raise ValueError(f"heads={heads} does not divide width={out_width}")
        self.heads, self.width, self.out_width = heads, width, out_width
        self.head_width = out_width // heads
        self.scale = self.head_width**-0.5
        self.qkv = nn.Linear(width, 3 * out_width)
        self.proj = nn.Linear(out_width, out_width)

    def query_key_value(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> three of (B, h, N, d); the scores are query times key times `scale`."""
        query, key, value = rearrange(self.qkv(tokens), "B N (three h d) -> three B h N d", three=3, h=self.heads)
        return query, key, value

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = self.query_key_value(tokens)
        mixed = attend(query, key, value, self.scale)
        return self.proj(rearrange(mixed, "B h N d -> B N (h d)"))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: str = "exact", out_width: int | None = None):
        super().__init__()
        check_choice("gelu", gelu, list(GELU_APPROXIMATION))
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate=GELU_APPROXIMATION[gelu])
        self.fc2 = nn.Linear(hidden, out_width or width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block around any Attention. Stochastic depth drops a residual for a whole row of the batch.

    The MLP starts at the attention's output width and ends at `out_width`; blocks that change width bring the residual
    along in a forward of their own.
    """

    def __init__(
        self,
        attn: Attention,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        gelu: str = "exact",
        out_width: int | None = None,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        check_positive(mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        self.norm1 = nn.LayerNorm(attn.width, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(attn.out_width, eps=norm_eps)
        self.mlp = Mlp(attn.out_width, int(attn.out_width * mlp_ratio), gelu, out_width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def run_blocks(blocks: Iterable[nn.Module], tokens: Tensor, checkpoint_blocks: int = 0) -> Tensor:
    """The blocks in turn; the first `checkpoint_blocks` keep no activations and are run again on the way back."""
    for index, block in enumerate(blocks):
        if index < checkpoint_blocks and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, use_reentrant=False)
        else:
            tokens = block(tokens)
    return tokens


def prepend(token: Tensor, tokens: Tensor) -> Tensor:
    """(1, 1, D) learned token, (B, N, D) -> (B, 1 + N, D)."""
    return torch.cat([token.expand(tokens.shape[0], -1, -1), tokens], dim=1)


def hide(patches: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """(B, t, n, D) with the learned (1, 1, D) token wherever mask (B, t, n) is True; unchanged without a mask."""
    if mask is None or mask_token is None:
        return patches
    return torch.where(mask[..., None], mask_token.to(patches.dtype), patches)


def pool_tokens(tokens: Tensor, norm: nn.Module, pooling: str, cls_token: bool = True) -> Tensor:
    """(B, N, D) -> (B, D): the class token, the mean of the other tokens after the norm, or before it (fc_norm)."""
    if pooling == "cls":
        return norm(tokens[:, 0])
    patches = tokens[:, 1:] if cls_token else tokens
    if pooling == "mean":
        return reduce(norm(patches), "B N D -> B D", "mean")
    return norm(reduce(patches, "B N D -> B D", "mean"))
