"""V-JEPA's pre-training (Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video",
2024, section 3; Assran et al., "V-JEPA 2", 2025, section 2): an encoder sees a part of a clip, and a predictor says
what a teacher, the EMA of the encoder that sees all of it, makes of the rest.

Parameter names of the predictor are those of the published one, except for the mask tokens. Shapes: B batch, C
channels, T frames, H W pixels; N patches of a clip, n of them visible, m predicted; D embedding dimension.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks.argument_checks import check_positive, jsonable_kwargs
from networks.attentive_pooler import standardize
from networks.layers import gather_tokens, init_linear, run_blocks
from networks.masking import MULTI_BLOCKS
from networks.pretraining import PretrainingNetwork, build_backbone
from networks.rotary import RotaryAttention, RotaryBlock, RotaryEmbedding
from networks.vjepa2 import VJEPA2, rescale_blocks, vjepa2_g, vjepa2_h, vjepa2_l, vjepa2_tiny

ENCODERS = {variant.__name__: variant for variant in (vjepa2_tiny, vjepa2_l, vjepa2_h, vjepa2_g)}


class JEPA(PretrainingNetwork):
    """An encoder, its teacher, and a predictor of `predictor_depth` blocks between them.

    `backbone` is the name of an encoder, `backbone_args` its arguments. The teacher has no gradients: after each step
    `update_teacher` moves it towards the encoder, by 1 - `teacher_decay` of the distance. The predictor has a mask
    token for each of the masks of a clip.
    """

    backbone: VJEPA2
    teacher: VJEPA2

    def __init__(  # noqa: PLR0913  # the network's configuration, kept as keywords in recipes and config.json
        self,
        backbone: str = "vjepa2_l",
        num_frames: int = 16,
        image_size: Any = 256,
        backbone_args: dict[str, Any] | None = None,
        predictor_embed_dim: int = 384,
        predictor_depth: int = 12,
        predictor_num_heads: int = 12,
        teacher_decay: float = 0.99925,
    ):
        super().__init__()
        self.kwargs = jsonable_kwargs(locals())
        if not 0 <= teacher_decay < 1:
            raise ValueError(f"teacher_decay={teacher_decay}: expected a number from 0 to below 1")
        check_positive(predictor_depth=predictor_depth, predictor_num_heads=predictor_num_heads)
        if predictor_embed_dim % predictor_num_heads:
            raise ValueError(f"predictor_num_heads={predictor_num_heads} does not divide {predictor_embed_dim}")
        sizes: dict[str, Any] = dict(num_frames=num_frames, image_size=image_size, pooling="mean")
        self.backbone = build_backbone(backbone, ENCODERS, sizes | (backbone_args or {}))
        if self.backbone.pooling != "mean" or self.backbone.rlt_threshold:
            raise ValueError("backbone_args: expected pooling=mean and no rlt_threshold")
        self.mask_grid, self.teacher_decay = self.backbone.patch_embed.grid, teacher_decay
        self.teacher = copy.deepcopy(self.backbone).requires_grad_(False)

        embed_dim, args = self.backbone.kwargs["embed_dim"], self.backbone.kwargs
        self.predictor_embed = nn.Linear(embed_dim, predictor_embed_dim)
        self.mask_tokens = nn.Parameter(torch.zeros(len(MULTI_BLOCKS), 1, predictor_embed_dim))
        head_dim = predictor_embed_dim // predictor_num_heads
        rope = RotaryEmbedding(self.mask_grid, head_dim, args["rope_layout"], args["ref_grid_size"])
        self.predictor_blocks = nn.ModuleList(
            RotaryBlock(RotaryAttention(predictor_embed_dim, predictor_num_heads, rope), norm_eps=args["norm_eps"])
            for _ in range(predictor_depth)
        )
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=args["norm_eps"])
        self.predictor_proj = nn.Linear(predictor_embed_dim, embed_dim)
        for layer in (self.predictor_embed, self.predictor_blocks, self.predictor_proj):
            layer.apply(init_linear)
        with torch.no_grad():
            rescale_blocks(self.predictor_blocks)

    def train(self, mode: bool = True) -> "JEPA":
        """Set the mode of all but the teacher, which never drops anything."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, video: Tensor, masks: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """(B, C, T, H, W), for each mask positions (B, n) and (B, m) int64 of visible and predicted patches -> for each
        mask the prediction and the target, (B, m, D) both, the target without gradients."""
        with torch.no_grad():
            targets = standardize(self.teacher.forward_tokens(video).float())
        pairs = []
        for number, (visible, predicted) in enumerate(masks):
            tokens = self.backbone.forward_visible(video, visible)
            prediction = self.predict(tokens, number, visible, predicted)
            pairs.append((prediction, gather_tokens(targets, predicted)))
        return pairs

    def predict(self, tokens: Tensor, number: int, visible: Tensor, predicted: Tensor) -> Tensor:
        """Return the prediction (B, m, D) from the visible tokens (B, n, D) that a mask of this number leaves."""
        tokens = self.predictor_embed(tokens)
        hidden = self.mask_tokens[number].to(tokens.dtype).expand(*predicted.shape, -1)
        positions = torch.cat([visible, predicted], dim=1)
        tokens = run_blocks(self.predictor_blocks, torch.cat([tokens, hidden], dim=1), 0, positions)
        return self.predictor_proj(self.predictor_norm(tokens[:, visible.shape[1] :]))

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher towards the encoder; the training state calls it after each optimizer step."""
        teacher, encoder = ([*module.parameters()] for module in (self.teacher, self.backbone))
        torch._foreach_lerp_(teacher, encoder, 1 - self.teacher_decay)  # type: ignore[arg-type]


# ---- variants: `overrides` are arguments of JEPA ---------------------------------------------------------------------


def pretrain_vjepa2_tiny(**overrides: Any) -> JEPA:
    """Build V-JEPA's pre-training for 8 frames of 64x64, small enough to train on a CPU: for tests."""
    predictor: dict[str, Any] = dict(predictor_embed_dim=48, predictor_depth=2, predictor_num_heads=4)
    sizes: dict[str, Any] = dict(num_frames=8, image_size=64, teacher_decay=0.99)
    return JEPA(**dict(backbone="vjepa2_tiny") | sizes | predictor | overrides)


def pretrain_vjepa2_l(**overrides: Any) -> JEPA:
    """Build the pre-training of V-JEPA 2 ViT-L/16 for 16 frames of 256x256."""
    return JEPA(**overrides)


def pretrain_vjepa2_h(**overrides: Any) -> JEPA:
    """Build the pre-training of V-JEPA 2 ViT-H/16 for 16 frames of 256x256."""
    return JEPA(**dict(backbone="vjepa2_h") | overrides)


def pretrain_vjepa2_g(**overrides: Any) -> JEPA:
    """Build the pre-training of V-JEPA 2 ViT-g/16 for 16 frames of 256x256."""
    return JEPA(**dict(backbone="vjepa2_g") | overrides)
