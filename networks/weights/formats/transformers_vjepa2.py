"""huggingface/transformers: V-JEPA 2, as an encoder with its predictor, or as a classifier with an attentive pooler."""

from networks.weights.formats.format import IMAGENET, VJEPA2_TEST, Format
from networks.weights.formats.vjepa2 import PREDICTOR_OF_PRETRAINING, V2_KWARGS
from networks.weights.key_rules import Rules, with_prefix

ENCODER: Rules = {
    "embeddings.patch_embeddings.proj.{param}": "patch_embed.proj.{param}",
    "layer.{n}.{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{param}": "blocks.{n}.{layer}.{param}",
    "layer.{n}.attention.{qkv:query|key|value}.{param}": "blocks.{n}.attn.qkv.{param}#{qkv}",
    "layer.{n}.attention.proj.{param}": "blocks.{n}.attn.proj.{param}",
    "layernorm.{param}": "norm.{param}",
}
PREDICTOR: Rules = {
    "embeddings.predictor_embeddings.{param}": "predictor_embed.{param}",
    "embeddings.mask_tokens": ("mask_tokens", "M 1 1 D -> M 1 D"),
    "layer.{n}.{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{param}": "predictor_blocks.{n}.{layer}.{param}",
    "layer.{n}.attention.{qkv:query|key|value}.{param}": "predictor_blocks.{n}.attn.qkv.{param}#{qkv}",
    "layer.{n}.attention.proj.{param}": "predictor_blocks.{n}.attn.proj.{param}",
    "layernorm.{param}": "predictor_norm.{param}",
    "proj.{param}": "predictor_proj.{param}",
}
POOLER: Rules = {
    "query_tokens": "query_tokens",
    **with_prefix(
        "self_attention_layers.{n}.",
        {
            "layer_norm{i:1|2}.{param}": "norm{i}.{param}",
            "self_attn.{qkv:q|k|v}_proj.{param}": "attn.qkv.{param}#{qkv}",
            "self_attn.out_proj.{param}": "attn.proj.{param}",
            "mlp.fc{i:1|2}.{param}": "mlp.fc{i}.{param}",
        },
        "blocks.{n}.",
    ),
    **with_prefix(
        "cross_attention_layer.",
        {
            "layer_norm{i:1|2}.{param}": "norm{i}.{param}",
            "cross_attn.q_proj.{param}": "xattn.q.{param}",
            "cross_attn.{qkv:k|v}_proj.{param}": "xattn.kv.{param}#{qkv}",
            "mlp.fc{i:1|2}.{param}": "mlp.fc{i}.{param}",
        },
        "cross_attention_block.",
    ),
}
CLASSIFIER: Rules = {
    **with_prefix("vjepa2.encoder.", ENCODER),
    **with_prefix("pooler.", POOLER, "pooler."),
    "classifier.{param}": "head.{param}",
}

FORMATS = (
    Format(
        name="transformers V-JEPA 2",
        architecture="vjepa2",
        required_keys=("encoder.layer.{n}.attention.query.weight", "encoder.embeddings.patch_embeddings.proj.weight"),
        rules=with_prefix("encoder.", ENCODER) | with_prefix("predictor.", PREDICTOR),
        kwargs=V2_KWARGS,
        normalization=IMAGENET,
        **VJEPA2_TEST,
        missing_parts=("pooler",),
    ),
    Format(
        name="transformers V-JEPA 2 classifier",
        architecture="vjepa2",
        required_keys=("vjepa2.encoder.layer.{n}.attention.query.weight", "pooler.query_tokens"),
        rules=CLASSIFIER,
        dropped_keys={"vjepa2.predictor.*": PREDICTOR_OF_PRETRAINING},
        kwargs=V2_KWARGS,
        normalization=IMAGENET,
        **VJEPA2_TEST,
    ),
)
