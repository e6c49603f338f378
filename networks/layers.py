"""The parts that all networks are made of: tubelet embedding, attention, MLP, block, pooling.

Shapes: B batch, C channels, T frames, H W pixels; t frames of tubelets, n patches per frame, N tokens,
D embedding dimension, h heads, d dimension of one head.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks.argument_checks import Grid, check_choice, check_input_shape, check_positive, height_width

# Pretrained vision transformers use 1e-6 everywhere; PyTorch's default of 1e-5 moves the logits by about 1e-3.
NORM_EPS = 1e-6

GELU_APPROXIMATION = {"exact": "none", "tanh": "tanh"}

# Up to this many keys, plain matrix products are faster on a CPU than its fused kernel, which works in blocks of
# hundreds of keys and is slow in bfloat16 (plain products then round the scores). GPUs always use the fused kernel.
MATH_ATTENTION_MAX_KEYS = {torch.float32: 16, torch.bfloat16: 512}


class AttentionLayout(NamedTuple):
    """The tokens of a clip that attend to each other in a network's `blocks`, as attention_maps needs to know.

    kind="joint": all tokens of the clip. "pooled": all of them, with keys pooled to `grid` (MViT). "divided": in every
    block over time (`temporal_attn`), then over space (`attn`). "unrolled": all tokens, in an order that is not that of
    frames and rows (Hiera with q_pool). "per_frame": those of one frame. "factorized_encoder":
    those of one frame; `temporal_blocks` then attend over the frames. "space_then_time": those of one frame;
    `temporal_blocks` then attend over the frames at each patch position.

    `grid` is that of the last block's keys, `token_order` the einops pattern of the patches in joint attention,
    `num_prefix_tokens` the number of class tokens before them (timm's name), `pooler_layer` the layer in which the
    query of an attentive pooler attends. `has_temporal_cls_token`: whether a factorized encoder has a class token over
    time, if it has one over space. `prefix` comes before the names of `blocks`.
    """

    kind: str
    grid: Grid
    token_order: str = "(t h w)"
    num_prefix_tokens: int = 1
    pooler_layer: str = "pooler.cross_attention_block.xattn"
    has_temporal_cls_token: bool = True
    prefix: str = ""


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return the stochastic depth rate of each block: linear from 0 in the first to `rate` in the last."""
    if not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path={rate!r}: must lie in [0, 1)")
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


def make_head(embed_dim: int, num_classes: int) -> nn.Module:
    """Return a linear classifier, or the identity if num_classes is 0."""
    if not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f"num_classes={num_classes!r}: must be a whole number >= 0")
    return nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()


def scale_head(head: nn.Module, scale: float) -> None:
    """Multiply a head's initial weights by `scale`; a small one (0.001 in MaskFeat) starts from logits near zero."""
    check_positive(head_scale=scale)
    if isinstance(head, nn.Linear):
        with torch.no_grad():
            head.weight.mul_(scale)


def init_linear(module: nn.Module) -> None:
    """Initialize a Linear (truncated normal of std 0.02, zero bias) and nothing else; for `network.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_xavier(module: nn.Module) -> None:
    """Initialize a Linear as masked autoencoders do (Xavier's uniform weights, zero bias); for `network.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TubeletEmbed(nn.Module):
    """Cut a clip into tubelets of `stride` = (frames, rows, columns) in pixels and project each to a token.

    A `kernel` larger than the stride makes neighboring tubelets overlap equally on all sides (MViT's stem). The shape
    of the clip is fixed: `forward` raises ValueError for another one, which would otherwise fail in a later layer.
    """

    def __init__(
        self,
        num_frames: int,
        image_size: int | Sequence[int],
        stride: Grid,
        embed_dim: int,
        in_chans: int = 3,
        kernel: Grid | None = None,
    ):
        super().__init__()
        image_height, image_width = height_width(image_size)
        tubelet_size, patch_height, patch_width = stride
        check_positive(
            num_frames=num_frames,
            patch_size=min(patch_height, patch_width),
            tubelet_size=tubelet_size,
            embed_dim=embed_dim,
        )
        check_positive(image_height=image_height, image_width=image_width, in_chans=in_chans)
        if image_height % patch_height or image_width % patch_width:
            patch = patch_height if patch_height == patch_width else f"{patch_height}x{patch_width}"
            raise ValueError(f"patch_size={patch} does not divide image_size={image_height}x{image_width}")
        if num_frames % tubelet_size:
            raise ValueError(f"tubelet_size={tubelet_size} does not divide num_frames={num_frames}")
        self.stride = stride
        self.input_shape = (in_chans, num_frames, image_height, image_width)
        self.grid = (num_frames // tubelet_size, image_height // patch_height, image_width // patch_width)
        kernel = kernel or stride
        padding = [k // 2 if k > s else 0 for k, s in zip(kernel, stride, strict=True)]
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel, stride, (padding[0], padding[1], padding[2]))

    @property
    def num_frames(self) -> int:
        """Return t, the number of frames of tubelets."""
        return self.grid[0]

    @property
    def num_patches(self) -> int:
        """Return n, the number of patches per frame."""
        return self.grid[1] * self.grid[2]

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t, n, D), patches row by row."""
        check_input_shape(video, self.input_shape)
        return rearrange(self.proj(video), "B D t h w -> B t (h w) D")

    def embed_at(self, video: Tensor, positions: Tensor) -> Tensor:
        """(B, C, T, H, W), positions (B, n) int64 -> (B, n, D): these tubelets only, which must not overlap."""
        check_input_shape(video, self.input_shape)
        tubelets = gather_patches(video, self.stride, positions).flatten(2)
        return F.linear(tubelets, self.proj.weight.flatten(1), self.proj.bias)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(B, h, N, d), (B, h, N'', d), (B, h, N'', e) -> (B, h, N, e), e <= d; by the fastest method of the device."""
    if query.device.type == "cpu" and key.shape[-2] <= MATH_ATTENTION_MAX_KEYS.get(query.dtype, 0):
        return (query * scale @ key.transpose(-2, -1)).softmax(-1) @ value
    extra = query.shape[-1] - value.shape[-1]
    padded = F.pad(value, (0, extra)) if extra else value  # fused kernels need the same d for queries, keys and values
    return F.scaled_dot_product_attention(query, key, padded, scale=scale)[..., : value.shape[-1]]


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of each item of the batch, from `embed_dim` to `out_dim`."""

    def __init__(self, embed_dim: int, num_heads: int, out_dim: int | None = None):
        super().__init__()
        out_dim = out_dim or embed_dim
        check_positive(embed_dim=embed_dim, num_heads=num_heads)
        if out_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide embed_dim={out_dim}")
        self.embed_dim, self.out_dim = embed_dim, out_dim
        self.num_heads, self.head_dim = num_heads, out_dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(embed_dim, 3 * out_dim)
        self.proj = nn.Linear(out_dim, out_dim)

    def query_key_value(self, tokens: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> query, key, value (B, h, N, d) each; the scores are query times key times `scale`.

        `positions`, (N,) or (B, N), number the tokens among those of a clip, if some of them are left out (only rotary
        positions need to know).
        """
        query, key, value = rearrange(self.qkv(tokens), "B N (three h d) -> three B h N d", three=3, h=self.num_heads)
        return query, key, value

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = self.query_key_value(tokens)
        return self.proj(self.merge_heads(attend(query, key, value, self.scale)))

    def attention_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, h, N, d), (B, h, N'', d) -> (B, h, N, N''), which the fused kernel never makes; rows sum to 1."""
        return (query @ key.transpose(-2, -1) * self.scale).softmax(-1)

    def merge_heads(self, mixed: Tensor) -> Tensor:
        """(B, h, N, d) -> (B, N, D)."""
        return rearrange(mixed, "B h N d -> B N (h d)")


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, from `embed_dim` through `hidden_dim` to `out_dim`."""

    def __init__(self, embed_dim: int, hidden_dim: int, gelu: str = "exact", out_dim: int | None = None):
        super().__init__()
        check_choice("gelu", gelu, list(GELU_APPROXIMATION))
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU(approximate=GELU_APPROXIMATION[gelu])
        self.fc2 = nn.Linear(hidden_dim, out_dim or embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block around any Attention; stochastic depth drops the residuals of an item of the batch.

    The MLP goes from the attention's `out_dim` to its own `out_dim`. A subclass whose blocks change the dimension
    projects the residual in its own `forward`.
    """

    def __init__(
        self,
        attn: Attention,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        gelu: str = "exact",
        out_dim: int | None = None,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        check_positive(mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        self.norm1 = nn.LayerNorm(attn.embed_dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(attn.out_dim, eps=norm_eps)
        self.mlp = Mlp(attn.out_dim, int(attn.out_dim * mlp_ratio), gelu, out_dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def run_blocks(blocks: Iterable[nn.Module], tokens: Tensor, checkpoint_blocks: int = 0, *inputs: Tensor) -> Tensor:
    """Run the blocks one after the other; the first `checkpoint_blocks` are recomputed in the backward pass.

    Each block is given the tokens and the other `inputs`.
    """
    for index, block in enumerate(blocks):
        if index < checkpoint_blocks and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, *inputs, use_reentrant=False)
        else:
            tokens = block(tokens, *inputs)
    return tokens


def prepend_token(token: Tensor, tokens: Tensor) -> Tensor:
    """(1, 1, D) learned token, (B, N, D) -> (B, 1 + N, D)."""
    return torch.cat([token.expand(tokens.shape[0], -1, -1), tokens], dim=1)


def gather_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """(B, N, D) or (1, N, D), positions (B, n) int64 -> (B, n, D)."""
    tokens = tokens.expand(len(positions), -1, -1)
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def gather_patches(video: Tensor, patch: Grid, positions: Tensor) -> Tensor:
    """(B, C, T, H, W), positions (B, n) int64 -> (B, n, C, a, b, c): these patches of (a, b, c) pixels, row by row.

    Only they are copied, not the whole clip.
    """
    a, b, c = patch
    boxes = rearrange(video, "B C (t a) (h b) (w c) -> B t h w C a b c", a=a, b=b, c=c)
    _, h, w = boxes.shape[1:4]
    clip = torch.arange(len(video), device=video.device)[:, None]
    return boxes[clip, positions // (h * w), positions // w % h, positions % w]


def apply_mask_token(patches: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """Replace the patches (B, t, n, D) where mask (B, t, n) is True by the token (1, 1, D); without a mask, none."""
    if mask is None or mask_token is None:
        return patches
    return torch.where(mask[..., None], mask_token.to(patches.dtype), patches)


def pool_tokens(tokens: Tensor, norm: nn.Module, pooling: str, cls_token: bool = True) -> Tensor:
    """(B, N, D) -> (B, D): the class token, or the mean of the other tokens after the norm or before it (fc_norm)."""
    if pooling == "cls":
        return norm(tokens[:, 0])
    patches = tokens[:, 1:] if cls_token else tokens
    if pooling == "mean":
        return reduce(norm(patches), "B N D -> B D", "mean")
    return norm(reduce(patches, "B N D -> B D", "mean"))
