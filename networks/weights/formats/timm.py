"""timm: vision transformers of images, and what is fine-tuned from MAE under the same names."""

from networks.weights.formats.format import INCEPTION, Format
from networks.weights.key_rules import VIT

FORMATS = (
    Format(
        name="timm ViT",
        architecture="image",
        required_keys=("blocks.{n}.attn.qkv.weight", "patch_embed.proj.weight", "cls_token"),
        forbidden_keys=("decoder_*", "time_embed", "*pool_{qkv:q|k|v}*", "blocks.{n}.attn.q_bias"),
        patch_kernel_ndim=4,
        # fc_norm is a norm after pooling, instead of the one before.
        rules=VIT | {"fc_norm.{param}": "norm.{param}"},
        kwargs={"gelu": "exact"},
        normalization=INCEPTION,
    ),
)
