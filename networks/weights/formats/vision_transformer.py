"""google-research/vision_transformer: the .npz files of the first vision transformers."""

from networks.weights.formats.format import INCEPTION, Format
from networks.weights.key_rules import Rules, flax_block, flax_dense, flax_norm, with_prefix

PREFIX = "[params/|opt/target/]"

RULES: Rules = {
    "embedding/kernel": ("patch_embed.proj.weight", "p q C D -> D C p q"),
    "embedding/bias": "patch_embed.proj.bias",
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "pos_embedding": "pos_embed",
    **flax_block(
        "Transformer/encoderblock_{n}",
        "blocks.{n}",
        norm1="LayerNorm_0",
        attention="MultiHeadDotProductAttention_{a:0|1}",
        norm2="LayerNorm_{b:1|2}",
        mlp="MlpBlock_{c:0|3}",
    ),
    **flax_norm("Transformer/encoder_norm", "norm"),
    **flax_dense("head", "head"),
}

FORMATS = (
    Format(
        name="ViT .npz",
        architecture="image",
        required_keys=(f"{PREFIX}Transformer/encoderblock_{{n}}/*", f"{PREFIX}embedding/kernel"),
        forbidden_keys=("output_projection/*",),
        patch_kernel_ndim=4,
        rules=with_prefix(PREFIX, RULES),
        dropped_keys={f"{PREFIX}pre_logits/*": "layer of the image model before its head"},
        normalization=INCEPTION,
    ),
)
