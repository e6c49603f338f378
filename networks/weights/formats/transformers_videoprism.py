"""huggingface/transformers: VideoPrism, as an encoder, as a classifier, or with its text encoder.

The project stores the weights of norms minus one.
"""

from networks.weights.formats.format import Format
from networks.weights.key_rules import Rules, with_prefix

ZERO_TO_ONE = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}  # pixels are only divided by 255


def norm(hf_name: str, name: str) -> Rules:
    return {f"{hf_name}.weight": f"{name}.weight#plus_one", f"{hf_name}.bias": f"{name}.bias"}


LAYER: Rules = {
    "attention.{qkv:q|k|v}_proj.{param}": "attn.qkv.{param}#{qkv}",
    "attention.o_proj.{param}": "attn.proj.{param}",
    **norm("layernorm_before", "norm1"),
    **norm("layernorm_after", "norm2"),
    "mlp.fc{i:1|2}.{param}": "mlp.fc{i}.{param}",
}
ENCODER: Rules = {
    "spatial_embeddings.patch_embeddings.projection.{param}": "patch_embed.proj.{param}",
    "spatial_embeddings.position_embeddings": "pos_embed",
    **with_prefix("spatial_layers.{n}.", LAYER, "blocks.{n}."),
    **norm("layernorm1", "norm"),
    "temporal_embeddings.position_embeddings": "temporal_pos_embed",
    **with_prefix("temporal_layers.{n}.", LAYER, "temporal_blocks.{n}."),
    **norm("layernorm2", "temporal_norm"),
}
POOLER: Rules = {
    **with_prefix("auxiliary_layers.{n}.", LAYER, "pooler.blocks.{n}."),
    "head.pooling_attention_query": "pooler.query_tokens",
    "head.per_dim_scale": "pooler.xattn.per_dim_scale",
    "head.q_proj.{param}": "pooler.xattn.q.{param}",
    "head.{qkv:k|v}_proj.{param}": "pooler.xattn.kv.{param}#{qkv}",
    "head.o_proj.{param}": "pooler.xattn.proj.{param}",
    **norm("head_layernorm", "pooler.norm"),
}
KWARGS = {"gelu": "exact", "attn_softcap": 50.0}

FORMATS = (
    Format(
        name="transformers VideoPrism",
        architecture="videoprism",
        required_keys=("[vision_model.]spatial_layers.{n}.attention.q_proj.weight",),
        forbidden_keys=("head.*", "auxiliary_layers.*"),
        rules=with_prefix("[vision_model.]", ENCODER),
        kwargs=KWARGS,
        normalization=ZERO_TO_ONE,
        missing_parts=("pooler",),
    ),
    Format(
        name="transformers VideoPrism classifier",
        architecture="videoprism",
        required_keys=("vision_model.spatial_layers.{n}.attention.q_proj.weight", "head.per_dim_scale"),
        rules={**with_prefix("vision_model.", ENCODER), **POOLER, "classifier.{param}": "head.{param}"},
        kwargs=KWARGS,
        normalization=ZERO_TO_ONE,
    ),
    Format(
        name="transformers VideoPrism with text",
        architecture="videoprism",
        required_keys=("video_model.vision_model.spatial_layers.{n}.attention.q_proj.weight",),
        rules=with_prefix("video_model.", {**with_prefix("vision_model.", ENCODER), **POOLER}),
        dropped_keys={"text_model.*": "encoder of text"},
        kwargs=KWARGS,
        normalization=ZERO_TO_ONE,
    ),
)
