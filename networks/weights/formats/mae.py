"""Masked autoencoders of images: facebookresearch/mae, and pengzhiliang/MAE-pytorch."""

from networks.weights.formats.format import IMAGENET, Format
from networks.weights.key_rules import BEIT, BEIT_DECODER, PRETRAINING_DECODER, VIT

FORMATS = (
    Format(
        name="MAE-pytorch",
        architecture="image",
        required_keys=("[encoder.]blocks.{n}.attn.q_bias",),
        patch_kernel_ndim=4,
        rules=BEIT,
        dropped_keys=BEIT_DECODER,
        kwargs={"pos_embed": "sincos", "gelu": "exact"},
        normalization=IMAGENET,
        no_key_bias=True,
        pretraining=True,
    ),
    Format(
        name="MAE",
        architecture="image",
        required_keys=("decoder_embed.weight", "blocks.{n}.attn.qkv.weight"),
        forbidden_keys=("pos_embed_spatial",),
        rules=VIT,
        dropped_keys={"decoder_*": PRETRAINING_DECODER, "mask_token": PRETRAINING_DECODER},
        kwargs={"gelu": "exact"},
        normalization=IMAGENET,
        pretraining=True,
    ),
)
