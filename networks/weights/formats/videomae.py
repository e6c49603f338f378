"""MCG-NJU/VideoMAE and OpenGVLab/VideoMAEv2, whose folders on the hub have a prefix before every key."""

from networks.weights.formats.format import IMAGENET, VIDEOMAE_TEST, Format
from networks.weights.key_rules import BEIT, BEIT_BLOCK, Rules, with_prefix

VIDEOMAE = {"gelu": "exact", "cls_token": False, "pos_embed": "sincos", "pooling": "fc_norm"}
ENCODER_ONLY = VIDEOMAE | {"pooling": "mean"}  # the norm of the pre-training comes before the mean
# What the decoder has beside its blocks.
DECODER: Rules = {
    "encoder_to_decoder.weight": "decoder_embed.weight",
    "mask_token": "mask_token",
    "decoder.norm.{param}": "decoder_norm.{param}",
    "decoder.head.{param}": "decoder_pred.{param}",
}

FORMATS = (
    Format(
        name="VideoMAE",
        architecture="vivit",
        required_keys=("[model.]blocks.{n}.attn.q_bias", "[model.]fc_norm.weight"),
        patch_kernel_ndim=5,
        rules=with_prefix("[model.]", BEIT),
        kwargs=VIDEOMAE,
        normalization=IMAGENET,
        **VIDEOMAE_TEST,
        no_key_bias=True,
    ),
    Format(
        name="VideoMAE pre-training",
        architecture="vivit",
        required_keys=("encoder.blocks.{n}.attn.q_bias",),
        patch_kernel_ndim=5,
        rules={**BEIT, **DECODER, **with_prefix("decoder.blocks.{n}.", BEIT_BLOCK, "decoder_blocks.{n}.")},
        kwargs=ENCODER_ONLY,
        normalization=IMAGENET,
        **VIDEOMAE_TEST,
        no_key_bias=True,
        pretraining=True,
    ),
)
