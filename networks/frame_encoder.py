"""Image encoders on frames: any vision transformer of timm (DINOv2, DINOv3, SigLIP 2, CLIP ...) encodes each frame, and
the frames are averaged, encoded further over time, or pooled by attention over the patches of all frames.

Shapes: B batch, C channels, T frames, H W pixels; n patches per frame, N tokens per frame with class and register
tokens, D embedding dimension.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.argument_checks import (
    Grid,
    check_choice,
    check_count,
    check_input_shape,
    check_positive,
    height_width,
    jsonable_kwargs,
)
from networks.attentive_pooler import AttentivePooler
from networks.extend import Recomputed, extend
from networks.layers import (
    NORM_EPS,
    Attention,
    AttentionLayout,
    Block,
    drop_path_rates,
    init_linear,
    make_head,
    run_blocks,
    scale_head,
)
from networks.pos_embed import add_pos_embed


class FrameShape(NamedTuple):
    """The shape of the clips that a network takes, and the grid of their patches (as of a TubeletEmbed)."""

    input_shape: tuple[int, int, int, int]
    grid: Grid


class FrameEncoder(nn.Module):
    """A vision transformer of timm applied to each frame, with a classifier.

    `encoder` is its name in timm, `encoder_args` further arguments of its constructor. It is built untrained; weights
    come from `model.pretrained`, for instance timm:NAME.

    pooling="mean" classifies the mean over the frames of the feature that the encoder makes of each (its class token,
    mean or attention pooling); with a temporal_depth of 2 to 4, blocks over time encode these features first, with
    positions, as in model 2 of ViViT. "attentive" classifies what an attentive pooler of `pooler_depth` blocks makes of
    the patches of all frames, after learned positions of the frames are added. Stochastic depth drops frames, in the
    temporal blocks clips. `checkpoint_blocks` blocks of the encoder are recomputed in the backward pass.
    """

    temporal_pos_embed: Tensor

    # So many arguments because they are the network's configuration, kept as keywords in recipes and config.json.
    def __init__(  # noqa: PLR0913
        self,
        num_classes: int,
        *,
        num_frames: int = 8,
        image_size: int | Sequence[int] = 224,
        encoder: str = "vit_base_patch14_dinov2",
        encoder_args: Mapping[str, Any] | None = None,
        temporal_depth: int = 0,
        pooling: str = "mean",
        pooler_depth: int = 1,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        in_chans: int = 3,
        checkpoint_blocks: int = 0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        check_choice("pooling", pooling, ["mean", "attentive"])
        check_positive(num_frames=num_frames)
        check_count(temporal_depth=temporal_depth, checkpoint_blocks=checkpoint_blocks)
        drop_path_rates(drop_path, 1)  # refuses a rate that is none
        if pooling == "attentive" and temporal_depth:
            raise ValueError("temporal_depth: expected 0 with pooling='attentive', which has blocks of its own")
        height, width = height_width(image_size)
        options = {"drop_path_rate": drop_path, "in_chans": in_chans} | dict(encoder_args or {})
        self.backbone = build_timm_vit(encoder, (height, width), pooled=pooling == "mean", **options)
        self.num_prefix_tokens: int = self.backbone.num_prefix_tokens
        rows, columns = self.backbone.patch_embed.grid_size
        patch_height, patch_width = self.backbone.patch_embed.patch_size
        if (rows * patch_height, columns * patch_width) != (height, width):
            raise ValueError(
                f"image_size={height}x{width}: expected multiples of {patch_height}x{patch_width}, "
                f"the patch size of encoder={encoder}"
            )
        self.patch_embed = FrameShape((in_chans, num_frames, height, width), (num_frames, rows, columns))
        for block in self.backbone.blocks[:checkpoint_blocks]:
            extend(block, Recomputed)

        embed_dim, num_heads = self.backbone.num_features, self.backbone.blocks[0].attn.num_heads
        added: list[nn.Module] = []
        if pooling == "attentive" or temporal_depth:
            add_pos_embed(self, "temporal_pos_embed", "learned", num_frames, embed_dim)
        if temporal_depth:
            rates = drop_path_rates(drop_path, temporal_depth)
            blocks = [Block(Attention(embed_dim, num_heads), drop_path=rate) for rate in rates]
            self.temporal_blocks = nn.ModuleList(blocks)
            self.temporal_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
            added.append(self.temporal_blocks)
        if pooling == "attentive":
            self.pooler = AttentivePooler(embed_dim, num_heads, pooler_depth)
            added.append(self.pooler)
        self.dropout = nn.Dropout(dropout)
        self.head = make_head(embed_dim, num_classes)
        for module in (*added, self.head):
            module.apply(init_linear)
        scale_head(self.head, head_scale)

    @property
    def blocks(self) -> nn.ModuleList:
        """Return the blocks of the image encoder."""
        return self.backbone.blocks

    @property
    def pooling(self) -> str:
        """Return what a clip (attentive) or a frame (cls, mean) is classified by."""
        if self.kwargs["pooling"] == "attentive":
            return "attentive"
        return "cls" if self.backbone.global_pool == "token" else "mean"

    @property
    def has_cls_token(self) -> bool:
        """Return whether the tokens of a frame begin with a class token."""
        return getattr(self.backbone, "cls_token", None) is not None

    @property
    def token_grid(self) -> Grid:
        """Return (t, h, w) of the tokens after the last block."""
        return self.patch_embed.grid

    @property
    def attention_layout(self) -> AttentionLayout:
        """Return which tokens attend to each other."""
        kind = "factorized_encoder" if self.kwargs["temporal_depth"] else "per_frame"
        return AttentionLayout(
            kind,
            self.patch_embed.grid,
            num_prefix_tokens=self.num_prefix_tokens,
            has_temporal_cls_token=False,
            prefix="backbone.",
        )

    def encode_frames(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B T, N, D), normed as the encoder does."""
        check_input_shape(video, self.patch_embed.input_shape)
        return self.backbone.forward_features(rearrange(video, "B C T H W -> (B T) C H W"))

    def forward_tokens(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t h w, D) of `token_grid`, normed as the encoder does."""
        tokens = self.encode_frames(video)[:, self.num_prefix_tokens :]
        return rearrange(tokens, "(B T) n D -> B (T n) D", T=self.patch_embed.grid[0])

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        num_frames, num_patches = self.patch_embed.grid[0], self.patch_embed.grid[1] * self.patch_embed.grid[2]
        if self.kwargs["pooling"] == "attentive":
            tokens = rearrange(self.forward_tokens(video), "B (T n) D -> B T n D", n=num_patches)
            tokens = tokens + rearrange(self.temporal_pos_embed, "one T D -> one T 1 D")
            return self.pooler(rearrange(tokens, "B T n D -> B (T n) D"))
        frames = self.backbone.forward_head(self.encode_frames(video), pre_logits=True)
        frames = rearrange(frames, "(B T) D -> B T D", T=num_frames)
        if self.kwargs["temporal_depth"]:
            frames = self.temporal_norm(run_blocks(self.temporal_blocks, frames + self.temporal_pos_embed))
        return reduce(frames, "B T D -> B D", "mean")

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), or the features themselves if num_classes is 0."""
        return self.head(self.dropout(features))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(video))


def build_timm_vit(name: str, image_size: tuple[int, int], *, pooled: bool, **options: Any) -> Any:
    """Build an untrained vision transformer of timm without a classifier; not `pooled`, without pooling layers too.

    Raises ValueError for an unknown name, arguments that it does not take, and networks of another kind.
    """
    network: Any
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"encoder={name}: timm cannot build it: {error or type(error).__name__}") from error
    if not is_plain_vit(network):
        raise ValueError(f"encoder={name}: expected a plain vision transformer, which {type(network).__name__} is not")
    if not pooled:  # The norm stays where the encoder was trained with it: on the tokens, or on the pooled feature.
        network.fc_norm = nn.Identity()
        network.attn_pool = None
    return network


def is_plain_vit(network: Any) -> bool:
    """Return whether all tokens of a grid go through blocks of one attention whose weights can be shown."""
    blocks, patch_embed = getattr(network, "blocks", None), getattr(network, "patch_embed", None)
    attention = getattr(blocks[0], "attn", None) if blocks else None
    return (
        hasattr(network, "forward_head")
        and hasattr(network, "num_prefix_tokens")
        and hasattr(patch_embed, "grid_size")
        and hasattr(attention, "num_heads")
        and hasattr(attention, "fused_attn")  # CaiT's and ConViT's attention, which has none, is of another kind
    )


# ---- variants: `overrides` are arguments of FrameEncoder -------------------------------------------------------------

TINY: dict[str, Any] = dict(
    encoder="vit_tiny_patch16_224",
    encoder_args=dict(patch_size=8, embed_dim=96, depth=4, num_heads=4),
    image_size=64,
)
DINOV2: dict[str, Any] = dict(encoder="vit_base_patch14_dinov2")
DINOV3: dict[str, Any] = dict(encoder="vit_base_patch16_dinov3", image_size=256)
SIGLIP2: dict[str, Any] = dict(encoder="vit_base_patch16_siglip_224")
CLIP: dict[str, Any] = dict(encoder="vit_base_patch16_clip_224")


def frame_encoder_tiny(num_classes: int, **overrides: Any) -> FrameEncoder:
    """Build a ViT for 8 frames of 64x64, small enough to train on a CPU: for tests and the demo."""
    return FrameEncoder(num_classes, **TINY | overrides)


def dinov2_b(num_classes: int, **overrides: Any) -> FrameEncoder:
    """Build DINOv2's ViT-B/14 for 8 frames of 224x224."""
    return FrameEncoder(num_classes, **DINOV2 | overrides)


def dinov3_b(num_classes: int, **overrides: Any) -> FrameEncoder:
    """Build DINOv3's ViT-B/16 for 8 frames of 256x256."""
    return FrameEncoder(num_classes, **DINOV3 | overrides)


def siglip2_b(num_classes: int, **overrides: Any) -> FrameEncoder:
    """Build the image encoder of SigLIP 2 ViT-B/16 for 8 frames of 224x224."""
    return FrameEncoder(num_classes, **SIGLIP2 | overrides)


def clip_b(num_classes: int, **overrides: Any) -> FrameEncoder:
    """Build the image encoder of CLIP ViT-B/16 for 8 frames of 224x224."""
    return FrameEncoder(num_classes, **CLIP | overrides)
