"""google-research/scenic: ViViT."""

from networks.weights.formats.format import INCEPTION, VIVIT_TEST, Format
from networks.weights.key_rules import Rules, flax_attention, flax_block, flax_dense, flax_norm

ENDS: Rules = {
    "embedding/kernel": ("patch_embed.proj.weight", "t p q C D -> D C t p q"),
    "embedding/bias": "patch_embed.proj.bias",
    **flax_dense("output_projection", "head"),
}
LAYER_NAMES = {
    "norm1": "LayerNorm_0",
    "attention": "MultiHeadDotProductAttention_0",
    "norm2": "LayerNorm_1",
    "mlp": "MlpBlock_0",
}
JOINT: Rules = {
    **ENDS,
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    **flax_block("Transformer/encoderblock_{n}", "blocks.{n}", **LAYER_NAMES),
    **flax_norm("Transformer/encoder_norm", "norm"),
}
FACTORIZED_ENCODER: Rules = {
    **ENDS,
    "cls_SpatialTransformer": "cls_token",
    "SpatialTransformer/posembed_input/pos_embedding": "pos_embed",
    **flax_block("SpatialTransformer/encoderblock_{n}", "blocks.{n}", **LAYER_NAMES),
    **flax_norm("SpatialTransformer/encoder_norm", "norm"),
    "cls_TemporalTransformer": "temporal_cls_token",
    "TemporalTransformer/posembed_input/pos_embedding": "temporal_pos_embed",
    **flax_block("TemporalTransformer/encoderblock_{n}", "temporal_blocks.{n}", **LAYER_NAMES),
    **flax_norm("TemporalTransformer/encoder_norm", "temporal_norm"),
}
FACTORIZED_ATTENTION: Rules = {
    **ENDS,
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    **flax_norm("Transformer/encoderblock_{n}/LayerNorm_time", "blocks.{n}.temporal_norm1"),
    **flax_attention("Transformer/encoderblock_{n}/MultiHeadDotProductAttention_time", "blocks.{n}.temporal_attn"),
    **flax_block(
        "Transformer/encoderblock_{n}",
        "blocks.{n}",
        norm1="LayerNorm_space",
        attention="MultiHeadDotProductAttention_space",
        norm2="LayerNorm_mlp",
        mlp="MlpBlock",
    ),
    **flax_norm("Transformer/encoder_norm", "norm"),
}

FORMATS = (
    Format(
        name="scenic ViViT, joint",
        architecture="vivit",
        required_keys=("Transformer/encoderblock_{n}/LayerNorm_0/scale", "output_projection/kernel", "cls"),
        patch_kernel_ndim=5,
        rules=JOINT,
        kwargs={"gelu": "tanh"},
        normalization=INCEPTION,
        **VIVIT_TEST,
    ),
    Format(
        name="scenic ViViT, joint, mean-pooled",
        architecture="vivit",
        required_keys=("Transformer/encoderblock_{n}/LayerNorm_0/scale", "output_projection/kernel"),
        forbidden_keys=("cls",),
        patch_kernel_ndim=5,
        rules=JOINT,
        kwargs={"gelu": "tanh"},
        normalization=INCEPTION,
        **VIVIT_TEST,
        notes=(
            "read as model 1 of ViViT: model 4 has the same keys; if it is that, say attention=factorized_dot_product",
        ),
    ),
    Format(
        name="scenic ViViT, factorized encoder",
        architecture="vivit",
        required_keys=("SpatialTransformer/*", "TemporalTransformer/*"),
        rules=FACTORIZED_ENCODER,
        kwargs={"gelu": "tanh"},
        normalization=INCEPTION,
        **VIVIT_TEST,
    ),
    Format(
        name="scenic ViViT, factorized self-attention",
        architecture="vivit",
        required_keys=("Transformer/encoderblock_{n}/LayerNorm_time/scale",),
        rules=FACTORIZED_ATTENTION,
        kwargs={"gelu": "tanh"},
        normalization=INCEPTION,
        **VIVIT_TEST,
        notes=("read as attention over time before attention over space, the default of its code",),
    ),
)
