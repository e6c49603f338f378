"""facebookresearch/SlowFast: MViT, MViTv2 and MaskFeat."""

from networks.weights.formats.format import IMAGENET, KINETICS, MVIT_TEST, Format
from networks.weights.key_rules import MVIT_BLOCKS, Rules

MVIT: Rules = {
    "patch_embed.proj.{param}": "patch_embed.proj.{param}",
    "cls_token": "cls_token",
    "pos_embed_{part:spatial|temporal|class}": "pos_embed_{part}",
    **MVIT_BLOCKS,
}
CLASSIFIER: Rules = {**MVIT, "norm.{param}": "norm.{param}", "head.projection.{param}": "head.{param}"}
LAST_BLOCK_OF_L = "blocks.47.attn.pool_k.weight"  # the others have at most 24 blocks

FORMATS = (
    Format(
        name="SlowFast MaskFeat",
        architecture="mvit",
        required_keys=("pred_head.*", "blocks.{n}.attn.pool_k.weight"),
        rules={
            **MVIT,
            "mask_token": "mask_token",
            "pred_head.transforms.0.0.{param}": "norm.{param}",
            "pred_head.projections.0.{param}": "predict.{param}",
        },
        dropped_keys={"hogs.*": "constants of the HOG targets"},
        kwargs={"mask_cell": 2},
        normalization=KINETICS,
        **MVIT_TEST,
        pretraining=True,
    ),
    Format(
        name="SlowFast MViT",
        architecture="mvit",
        required_keys=("blocks.{n}.attn.pool_k.weight", "patch_embed.proj.weight"),
        forbidden_keys=("pred_head*", LAST_BLOCK_OF_L),
        rules=CLASSIFIER,
        normalization=KINETICS,
        **MVIT_TEST,
    ),
    Format(
        name="SlowFast MViTv2-L",
        architecture="mvit",
        required_keys=("patch_embed.proj.weight", LAST_BLOCK_OF_L),
        forbidden_keys=("pred_head*",),
        rules=CLASSIFIER,
        normalization=IMAGENET,
        frame_strides={40: 3},
        preset="videomae",  # 5 clips x 3 crops
    ),
)
