"""mx-mark/VideoTransformer-pytorch: TimeSformer, ViViT and MViT with MaskFeat."""

from networks.weights.formats.format import KINETICS, Format
from networks.weights.key_rules import (
    FRAME_CELL_COLOR_BIN,
    MM_BLOCKS,
    MM_DIVIDED_BLOCKS,
    MM_STEM,
    PYTORCHVIDEO,
    Rules,
    with_prefix,
)

STEM: Rules = {**with_prefix("model.", MM_STEM), "cls_head.cls_head.{param}": "head.{param}"}

FORMATS = (
    Format(
        name="VideoTransformer-pytorch TimeSformer, divided",
        architecture="timesformer",
        required_keys=("model.transformer_layers.layers.{n}.attentions.1.*",),
        rules=STEM | with_prefix("model.transformer_layers.layers.", MM_DIVIDED_BLOCKS),
        kwargs={"norm_eps": 1e-5},
        normalization=KINETICS,
    ),
    Format(
        name="VideoTransformer-pytorch TimeSformer, joint or space",
        architecture="timesformer",
        required_keys=("model.transformer_layers.layers.*",),
        forbidden_keys=("*attentions.1.*",),
        patch_kernel_ndim=4,
        rules=STEM | with_prefix("model.transformer_layers.layers.", MM_BLOCKS),
        kwargs={"norm_eps": 1e-5},
        normalization=KINETICS,
    ),
    Format(
        name="VideoTransformer-pytorch ViViT, joint",
        architecture="vivit",
        required_keys=("model.transformer_layers.layers.*",),
        forbidden_keys=("*attentions.1.*",),
        patch_kernel_ndim=5,
        rules=STEM | with_prefix("model.transformer_layers.layers.", MM_BLOCKS),
        kwargs={"norm_eps": 1e-5, "gelu": "exact"},
        normalization=KINETICS,
    ),
    Format(
        name="VideoTransformer-pytorch ViViT, factorized encoder",
        architecture="vivit",
        required_keys=("model.transformer_layers.0.layers.*", "model.transformer_layers.1.layers.*"),
        rules={
            **STEM,
            "model.time_embed": "temporal_pos_embed",
            "model.norm.{param}": "temporal_norm.{param}",
            **with_prefix("model.transformer_layers.0.layers.", MM_BLOCKS),
            **with_prefix("model.transformer_layers.1.layers.", MM_BLOCKS, "temporal_"),
        },
        kwargs={"norm_eps": 1e-5, "gelu": "exact"},
        normalization=KINETICS,
        missing_parts=("norm", "temporal_cls_token"),
        notes=(
            "a starting point, not the same function: in VideoTransformer-pytorch the clips of a batch share their "
            "class tokens, the feature of a frame is the mean of its patches, and no norm lies between the encoders",
        ),
    ),
    Format(
        name="VideoTransformer-pytorch MViT",
        architecture="mvit",
        required_keys=("model.mvit.blocks.*",),
        rules={
            **PYTORCHVIDEO,
            "model.mask_token": "mask_token",
            "model.decoder_pred.{param}": ("predict.{param}", FRAME_CELL_COLOR_BIN),
        },
        kwargs={"pool_norm_eps": 1e-5, "mask_cell": 1},
        normalization=KINETICS,
    ),
)
