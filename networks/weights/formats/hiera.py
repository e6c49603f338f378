"""facebookresearch/hiera: its video networks, fine-tuned or with the decoder of their masked autoencoder."""

from networks.weights.formats.format import KINETICS, VIDEOMAE_TEST, Format
from networks.weights.key_rules import Rules, same_names

ENCODER = same_names(
    "pos_embed_spatial",
    "pos_embed_temporal",
    "patch_embed.proj.{param}",
    "blocks.{n}.{layer:norm1|norm2|attn.qkv|attn.proj|mlp.fc1|mlp.fc2|proj}.{param}",
)
FINE_TUNED: Rules = {**ENCODER, "norm.{param}": "norm.{param}", "head.projection.{param}": "head.{param}"}
DECODER: Rules = {
    "encoder_norm.{param}": "norm.{param}",
    **same_names(
        "multi_scale_fusion_heads.{n}.{param}",
        "mask_token",
        "decoder_pos_embed",
        "decoder_{layer:embed|norm|pred}.{param}",
        "decoder_blocks.{n}.{layer:norm1|norm2|attn.qkv|attn.proj|mlp.fc1|mlp.fc2}.{param}",
    ),
}

FORMATS = (
    Format(
        name="Hiera",
        architecture="hiera",
        required_keys=("blocks.{n}.attn.qkv.weight", "pos_embed_spatial", "norm.weight"),
        forbidden_keys=("*cls_token", "*pool_{qkv:q|k|v}*", "decoder_*"),
        patch_kernel_ndim=5,
        rules=FINE_TUNED,
        kwargs={"gelu": "exact", "pooling": "fc_norm"},
        normalization=KINETICS,
        **VIDEOMAE_TEST,
    ),
    Format(
        name="Hiera pre-training",
        architecture="hiera",
        required_keys=("blocks.{n}.attn.qkv.weight", "pos_embed_spatial", "decoder_pos_embed", "encoder_norm.weight"),
        patch_kernel_ndim=5,
        rules={**ENCODER, **DECODER},
        kwargs={"gelu": "exact"},
        normalization=KINETICS,
        **VIDEOMAE_TEST,
        pretraining=True,
    ),
)
