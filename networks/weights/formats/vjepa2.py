"""facebookresearch/vjepa2: the encoders of V-JEPA 2 and 2.1, under ema_encoder, target_encoder or encoder of a file.

read_checkpoint() puts the predictor of V-JEPA 2 beside its encoder.
"""

from networks.weights.formats.format import IMAGENET, VJEPA2_TEST, Format
from networks.weights.key_rules import Rules, same_names, with_prefix

PREFIX = "[backbone.]"

VIT = same_names(
    "patch_embed.proj.{param}",
    "blocks.{n}.{layer:norm1|norm2|attn.qkv|attn.proj|mlp.fc1|mlp.fc2}.{param}",
)
V2: Rules = {**VIT, "norm.{param}": "norm.{param}"}
V2_1: Rules = {**VIT, "norms_block.3.{param}": "norm.{param}", "video_mod_embed": "video_mod_embed"}

PREDICTOR: Rules = {
    **same_names("mask_tokens", "predictor_{layer:embed|norm|proj}.{param}"),
    "predictor_blocks.{n}.{layer:norm1|norm2|attn.qkv|attn.proj|mlp.fc1|mlp.fc2}.{param}": (
        "predictor_blocks.{n}.{layer}.{param}"
    ),
}
PREDICTOR_OF_PRETRAINING = "predictor of the pre-training"
UNUSED_POSITIONS = "a table that is not used: positions are rotary"

V2_KWARGS = {"gelu": "exact", "rope_layout": "tiled", "ref_grid_size": 0, "modality_embed": False}
V2_1_KWARGS = {"gelu": "exact", "rope_layout": "interleaved", "ref_grid_size": 16, "modality_embed": True}

FORMATS = (
    Format(
        name="V-JEPA 2",
        architecture="vjepa2",
        required_keys=(f"{PREFIX}blocks.{{n}}.attn.qkv.weight", f"{PREFIX}norm.weight"),
        forbidden_keys=("*cls_token*", "*pool_{qkv:q|k|v}*", "*pos_embed_*", "*time_embed", "*attn.q_bias", "decoder*"),
        patch_kernel_ndim=5,
        rules=with_prefix(PREFIX, V2) | with_prefix("predictor.", PREDICTOR),
        dropped_keys={
            f"{PREFIX}pos_embed": UNUSED_POSITIONS,
            "predictor.predictor_pos_embed": UNUSED_POSITIONS,
        },
        kwargs=V2_KWARGS,
        normalization=IMAGENET,
        **VJEPA2_TEST,
        missing_parts=("pooler",),
        notes=("read as V-JEPA 2: the first V-JEPA has the same keys, but no rotary positions, and would be misread",),
    ),
    Format(
        name="V-JEPA 2.1",
        architecture="vjepa2",
        required_keys=(f"{PREFIX}blocks.{{n}}.attn.qkv.weight", f"{PREFIX}norms_block.3.weight"),
        patch_kernel_ndim=5,
        rules=with_prefix(PREFIX, V2_1),
        dropped_keys={
            f"{PREFIX}norms_block.{{i:0|1|2}}.{{param}}": "norm of an intermediate layer, for the pre-training",
            f"{PREFIX}img_mod_embed": "for single images",
            f"{PREFIX}patch_embed_img.*": "for single images",
            "predictor.*": PREDICTOR_OF_PRETRAINING,
            f"{PREFIX}pos_embed": UNUSED_POSITIONS,
        },
        kwargs=V2_1_KWARGS,
        normalization=IMAGENET,
        **VJEPA2_TEST,
        missing_parts=("pooler",),
    ),
)
