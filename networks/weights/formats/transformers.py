"""huggingface/transformers: TimeSformer, ViViT and VideoMAE.

The names are those of the files on the hub, which every version reads and writes, and for ViViT also those that live
modules have since version 5.
"""

from networks.weights.formats.format import (
    IMAGENET,
    INCEPTION,
    KINETICS,
    TIMESFORMER_TEST,
    VIDEOMAE_TEST,
    VIVIT_TEST,
    Format,
)
from networks.weights.formats.videomae import DECODER, ENCODER_ONLY, VIDEOMAE
from networks.weights.key_rules import Rules, with_prefix

HEAD: Rules = {"fc_norm.{param}": "norm.{param}", "classifier.{param}": "head.{param}"}
EMBEDDINGS: Rules = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.{param}": "patch_embed.proj.{param}",
    "layernorm.{param}": "norm.{param}",
}
LAYER: Rules = {
    "layernorm_before.{param}": "norm1.{param}",
    "attention.output.dense.{param}": "attn.proj.{param}",
    "layernorm_after.{param}": "norm2.{param}",
    "intermediate.dense.{param}": "mlp.fc1.{param}",
    "output.dense.{param}": "mlp.fc2.{param}",
}
SEPARATE_QKV: Rules = {"attention.attention.{qkv:query|key|value}.{param}": "attn.qkv.{param}#{qkv}"}
LAYERS = with_prefix("encoder.layer.{n}.", LAYER, "blocks.{n}.")

TIMESFORMER: Rules = {
    **EMBEDDINGS,
    "embeddings.time_embeddings": "time_embed",
    **LAYERS,
    "encoder.layer.{n}.attention.attention.qkv.{param}": "blocks.{n}.attn.qkv.{param}",
    "encoder.layer.{n}.temporal_layernorm.{param}": "blocks.{n}.temporal_norm1.{param}",
    "encoder.layer.{n}.temporal_attention.attention.qkv.{param}": "blocks.{n}.temporal_attn.qkv.{param}",
    "encoder.layer.{n}.temporal_attention.output.dense.{param}": "blocks.{n}.temporal_attn.proj.{param}",
    "encoder.layer.{n}.temporal_dense.{param}": "blocks.{n}.temporal_fc.{param}",
}
VIVIT_5: Rules = {
    **EMBEDDINGS,
    "layers.{n}.layernorm_before.{param}": "blocks.{n}.norm1.{param}",
    "layers.{n}.attention.{qkv:q|k|v}_proj.{param}": "blocks.{n}.attn.qkv.{param}#{qkv}",
    "layers.{n}.attention.o_proj.{param}": "blocks.{n}.attn.proj.{param}",
    "layers.{n}.layernorm_after.{param}": "blocks.{n}.norm2.{param}",
    "layers.{n}.mlp.fc1.{param}": "blocks.{n}.mlp.fc1.{param}",
    "layers.{n}.mlp.fc2.{param}": "blocks.{n}.mlp.fc2.{param}",
}
VIVIT: Rules = {**EMBEDDINGS, **LAYERS, **with_prefix("encoder.layer.{n}.", SEPARATE_QKV, "blocks.{n}.")}
VIDEOMAE_LAYER: Rules = {**LAYER, **SEPARATE_QKV, "attention.attention.{qkv:q|v}_bias": "attn.qkv.bias#{qkv}"}
VIDEOMAE_RULES: Rules = {**EMBEDDINGS, **with_prefix("encoder.layer.{n}.", VIDEOMAE_LAYER, "blocks.{n}.")}
VIDEOMAE_DECODER: Rules = {
    **DECODER,
    **with_prefix("decoder.decoder_layers.{n}.", VIDEOMAE_LAYER, "decoder_blocks.{n}."),
}
# Hiera, which transformers has for images only, so that it is written but not read. {s} is the number of a stage.
HIERA: Rules = {
    "hiera.embeddings.patch_embeddings.projection.{param}": "patch_embed.proj.{param}",
    "hiera.embeddings.position_embeddings": "pos_embed_spatial",
    **with_prefix(
        "hiera.encoder.stages.{s}.layers.{n}.",
        {
            "layernorm_before.{param}": "norm1.{param}",
            "layernorm_after.{param}": "norm2.{param}",
            "{layer:attn.qkv|attn.proj|mlp.fc1|mlp.fc2|proj}.{param}": "{layer}.{param}",
        },
        "blocks.{s}.{n}.",
    ),
}
HIERA_DECODER: Rules = {
    "encoder_norm.{param}": "backbone.norm.{param}",
    "multiscale_fusion.multi_scale_fusion_heads.{n}.{param}": "multi_scale_fusion_heads.{n}.{param}",
    "decoder.decoder_embeddings.{param}": "decoder_embed.{param}",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_position_embeddings": "decoder_pos_embed",
    "decoder.decoder_{layer:norm|pred}.{param}": "decoder_{layer}.{param}",
    **with_prefix(
        "decoder.decoder_block.layers.{n}.",
        {
            "layernorm_before.{param}": "norm1.{param}",
            "layernorm_after.{param}": "norm2.{param}",
            "{layer:attn.qkv|attn.proj|mlp.fc1|mlp.fc2}.{param}": "{layer}.{param}",
        },
        "decoder_blocks.{n}.",
    ),
}

FORMATS = (
    Format(
        name="transformers TimeSformer",
        architecture="timesformer",
        required_keys=("timesformer.encoder.layer.*",),
        rules=HEAD | with_prefix("timesformer.", TIMESFORMER),
        normalization=KINETICS,
        **TIMESFORMER_TEST,
    ),
    Format(
        name="transformers ViViT",
        architecture="vivit",
        required_keys=("vivit.encoder.layer.*",),
        rules=HEAD | with_prefix("vivit.", VIVIT),
        kwargs={"gelu": "tanh"},
        normalization=INCEPTION,
        **VIVIT_TEST,
    ),
    Format(
        name="transformers ViViT, version 5",
        architecture="vivit",
        required_keys=("vivit.layers.*",),
        rules=HEAD | with_prefix("vivit.", VIVIT_5),
        kwargs={"gelu": "tanh"},
        normalization=INCEPTION,
        **VIVIT_TEST,
    ),
    Format(
        name="transformers VideoMAE",
        architecture="vivit",
        required_keys=("videomae.encoder.layer.*",),
        forbidden_keys=("decoder.*", "videomae.layernorm.*"),
        rules=HEAD | with_prefix("videomae.", VIDEOMAE_RULES),
        kwargs=VIDEOMAE,
        normalization=IMAGENET,
        **VIDEOMAE_TEST,
        no_key_bias=True,
    ),
    Format(
        name="transformers VideoMAE pre-training",
        architecture="vivit",
        required_keys=("videomae.encoder.layer.*", "decoder.*"),
        rules=HEAD | with_prefix("videomae.", VIDEOMAE_RULES) | VIDEOMAE_DECODER,
        kwargs=ENCODER_ONLY,
        normalization=IMAGENET,
        **VIDEOMAE_TEST,
        no_key_bias=True,
        pretraining=True,
        missing_parts=("norm",),
    ),
)
