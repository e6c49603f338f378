"""facebookresearch/TimeSformer."""

from networks.weights.formats.format import KINETICS, TIMESFORMER_TEST, Format
from networks.weights.key_rules import VIT, same_names, with_prefix

RULES = VIT | same_names(
    "time_embed",
    "blocks.{n}.temporal_norm1.{param}",
    "blocks.{n}.temporal_attn.qkv.{param}",
    "blocks.{n}.temporal_attn.proj.{param}",
    "blocks.{n}.temporal_fc.{param}",
)

FORMATS = (
    Format(
        name="TimeSformer",
        architecture="timesformer",
        required_keys=("model.blocks.{n}.attn.qkv.weight", "model.patch_embed.proj.weight"),
        forbidden_keys=("*pool_{qkv:q|k|v}*", "*fc_norm*"),
        patch_kernel_ndim=4,
        rules=with_prefix("model.", RULES),
        normalization=KINETICS,
        **TIMESFORMER_TEST,
    ),
    Format(
        name="TimeSformer, unprefixed",
        architecture="timesformer",
        required_keys=("time_embed", "blocks.{n}.attn.qkv.weight"),
        rules=RULES,
        normalization=KINETICS,
        **TIMESFORMER_TEST,
    ),
)
