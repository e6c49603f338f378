"""V-JEPA 2 (Assran et al., "V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning",
2025) and V-JEPA 2.1 (Mur-Labadia et al., 2026): a ViT over tubelets with rotary positions and no class token, and the
attentive pooler with which it is evaluated. Parameter names are those of the published encoders.

Shapes: B batch, C channels, T frames, H W pixels; t = T / tubelet_size frames of tubelets, n patches per frame,
N = t n tokens, D embedding dimension.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.argument_checks import Grid, check_bool, check_choice, check_positive, jsonable_kwargs
from networks.attentive_pooler import AttentivePooler
from networks.layers import (
    NORM_EPS,
    AttentionLayout,
    Block,
    TubeletEmbed,
    drop_path_rates,
    init_linear,
    make_head,
    run_blocks,
    scale_head,
)
from networks.rotary import RotaryAttention, RotaryBlock, RotaryEmbedding
from networks.run_length import Packing, changed_patches, check_rlt_threshold, run_packed_blocks


def rescale_blocks(blocks: nn.ModuleList) -> None:
    """Divide the weights of the output layers of block n, counted from 1, by the square root of 2 n."""
    for number, block in enumerate(blocks, 1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_(math.sqrt(2 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2 * number))


class VJEPA2(nn.Module):
    """The encoder of V-JEPA 2 or 2.1 with a classifier.

    pooling="attentive" classifies the feature of an attentive pooler of `pooler_depth` blocks, "mean" the mean of the
    normed tokens. rope_layout="tiled" and ref_grid_size=0 are those of V-JEPA 2, "interleaved" and 16 those of 2.1,
    which also adds a learned embedding to all tokens of a video (`modality_embed`). Stochastic depth drops clips.
    `dropout` applies before the head. `checkpoint_blocks` of `blocks` are recomputed in the backward pass. With a
    `rlt_threshold` patches that change by less, in units of the normalized input, are left out: run-length
    tokenization.
    """

    has_cls_token = False

    # So many arguments because they are the network's configuration, kept as keywords in recipes and config.json.
    def __init__(  # noqa: PLR0913
        self,
        num_classes: int,
        *,
        num_frames: int = 16,
        image_size: int | Sequence[int] = 256,
        patch_size: int = 16,
        tubelet_size: int = 2,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        rope_layout: str = "tiled",
        ref_grid_size: int = 0,
        modality_embed: bool = False,
        pooling: str = "attentive",
        pooler_depth: int = 4,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        gelu: str = "exact",
        norm_eps: float = NORM_EPS,
        in_chans: int = 3,
        checkpoint_blocks: int = 0,
        rlt_threshold: float = 0.0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        check_rlt_threshold(rlt_threshold)
        check_positive(depth=depth, num_heads=num_heads, embed_dim=embed_dim)
        check_choice("pooling", pooling, ["attentive", "mean"])
        check_bool("modality_embed", modality_embed)
        if embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide embed_dim={embed_dim}")
        self.pooling, self.checkpoint_blocks, self.rlt_threshold = pooling, checkpoint_blocks, rlt_threshold

        tubelet = (tubelet_size, patch_size, patch_size)
        self.patch_embed = TubeletEmbed(num_frames, image_size, tubelet, embed_dim, in_chans)
        if modality_embed:
            self.video_mod_embed = nn.Parameter(torch.empty(1, 1, embed_dim))
            nn.init.normal_(self.video_mod_embed, std=1e-6)
        rope = RotaryEmbedding(self.patch_embed.grid, embed_dim // num_heads, rope_layout, ref_grid_size)
        self.blocks = nn.ModuleList(
            RotaryBlock(RotaryAttention(embed_dim, num_heads, rope), mlp_ratio, rate, gelu, norm_eps=norm_eps)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        if pooling == "attentive":
            self.pooler = AttentivePooler(embed_dim, num_heads, pooler_depth, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.head = make_head(embed_dim, num_classes)
        self._init_weights()
        scale_head(self.head, head_scale)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Initialize as V-JEPA does: deeper blocks start with smaller residuals."""
        self.apply(init_linear)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=0.02)
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]  # the layer has a bias
        rescale_blocks(self.blocks)
        if self.pooling == "attentive":
            rescale_blocks(self.pooler.blocks)
            depth = max(len(self.pooler.blocks), 1)
            self.pooler.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2 * depth))

    @property
    def token_grid(self) -> Grid:
        """Return (t, h, w) of the tokens after the last block."""
        return self.patch_embed.grid

    @property
    def attention_layout(self) -> AttentionLayout:
        """Return which tokens attend to each other."""
        return AttentionLayout("joint", self.patch_embed.grid, num_prefix_tokens=0)

    def embed(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D)."""
        tokens = rearrange(self.patch_embed(video), "B t n D -> B (t n) D")
        return tokens + self.video_mod_embed if self.kwargs["modality_embed"] else tokens

    def forward_tokens(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of `token_grid`, normed."""
        return self.norm(run_blocks(self.blocks, self.embed(video), self.checkpoint_blocks))

    def forward_visible(self, video: Tensor, visible: Tensor) -> Tensor:
        """(B, C, T, H, W), positions (B, n) int64 -> (B, n, D): normed, from these patches alone."""
        tokens = self.patch_embed.embed_at(video, visible)
        tokens = tokens + self.video_mod_embed if self.kwargs["modality_embed"] else tokens
        return self.norm(run_blocks(self.blocks, tokens, self.checkpoint_blocks, visible))

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        return self.pooler(tokens) if self.pooling == "attentive" else reduce(tokens, "B N D -> B D", "mean")

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        if self.rlt_threshold:
            packing = Packing.of(changed_patches(video, self.patch_embed.stride, self.rlt_threshold))
            if not packing.is_complete:
                return self.encode_changed(video, packing)
        return self.pool(self.forward_tokens(video))

    def encode_changed(self, video: Tensor, packing: Packing) -> Tensor:
        """(B, C, T, H, W) -> (B, D), from the tokens that are kept."""
        packed = run_packed_blocks(self.blocks, packing.pack(self.embed(video)), packing, self.checkpoint_blocks)
        return torch.cat([self.pool(clip[None]) for clip in packing.split(self.norm(packed))])

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), or the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


# ---- variants: `overrides` are arguments of VJEPA2 -------------------------------------------------------------------

TINY: dict[str, Any] = dict(num_frames=8, image_size=64, patch_size=8, embed_dim=96, depth=4, num_heads=4)
VIT_B: dict[str, Any] = dict(embed_dim=768, depth=12, num_heads=12)
VIT_L: dict[str, Any] = dict(embed_dim=1024, depth=24, num_heads=16)
VIT_H: dict[str, Any] = dict(embed_dim=1280, depth=32, num_heads=16)
VIT_GIANT: dict[str, Any] = dict(embed_dim=1408, depth=40, num_heads=22, mlp_ratio=48 / 11)
V2_1: dict[str, Any] = dict(rope_layout="interleaved", ref_grid_size=16, modality_embed=True, image_size=384)


def vjepa2_tiny(num_classes: int, **overrides: Any) -> VJEPA2:
    """Build a V-JEPA 2 for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    return VJEPA2(num_classes, **TINY | dict(pooler_depth=2) | overrides)


def vjepa2_l(num_classes: int, **overrides: Any) -> VJEPA2:
    """Build V-JEPA 2 ViT-L/16 for 16 frames of 256x256, as it is probed on Kinetics."""
    return VJEPA2(num_classes, **VIT_L | overrides)


def vjepa2_h(num_classes: int, **overrides: Any) -> VJEPA2:
    """Build V-JEPA 2 ViT-H/16 for 16 frames of 256x256."""
    return VJEPA2(num_classes, **VIT_H | overrides)


def vjepa2_g(num_classes: int, **overrides: Any) -> VJEPA2:
    """Build V-JEPA 2 ViT-g/16 for 16 frames of 256x256; the one for 384x384 has image_size=384."""
    return VJEPA2(num_classes, **VIT_GIANT | overrides)


def vjepa2_1_tiny(num_classes: int, **overrides: Any) -> VJEPA2:
    """Build vjepa2_tiny as V-JEPA 2.1."""
    return vjepa2_tiny(num_classes, **V2_1 | dict(image_size=64) | overrides)


def vjepa2_1_b(num_classes: int, **overrides: Any) -> VJEPA2:
    """Build V-JEPA 2.1 ViT-B/16, distilled, for 16 frames of 384x384."""
    return VJEPA2(num_classes, **VIT_B | V2_1 | overrides)


def vjepa2_1_l(num_classes: int, **overrides: Any) -> VJEPA2:
    """Build V-JEPA 2.1 ViT-L/16, distilled, for 16 frames of 384x384."""
    return VJEPA2(num_classes, **VIT_L | V2_1 | overrides)


def vjepa2_1_g(num_classes: int, **overrides: Any) -> VJEPA2:
    """Build V-JEPA 2.1 ViT-g/16 for 16 frames of 384x384."""
    return VJEPA2(num_classes, **VIT_GIANT | V2_1 | overrides)
