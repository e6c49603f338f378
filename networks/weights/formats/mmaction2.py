"""open-mmlab/mmaction2: TimeSformer, and the image model that it starts from."""

from networks.weights.formats.format import INCEPTION, MMACTION2_TEST, Format
from networks.weights.key_rules import MM_BLOCKS, MM_DIVIDED_BLOCKS, MM_STEM, Rules, with_prefix

STEM: Rules = {**with_prefix("backbone.", MM_STEM), "cls_head.fc_cls.{param}": "head.{param}"}

FORMATS = (
    Format(
        name="mmaction2 TimeSformer, divided",
        architecture="timesformer",
        required_keys=("backbone.transformer_layers.layers.{n}.attentions.1.*",),
        rules=STEM | with_prefix("backbone.transformer_layers.layers.", MM_DIVIDED_BLOCKS),
        normalization=INCEPTION,
        **MMACTION2_TEST,
    ),
    Format(
        name="mmaction2 TimeSformer, joint or space",
        architecture="timesformer",
        required_keys=("backbone.transformer_layers.layers.*",),
        forbidden_keys=("*attentions.1.*",),
        rules=STEM | with_prefix("backbone.transformer_layers.layers.", MM_BLOCKS),
        normalization=INCEPTION,
        **MMACTION2_TEST,
    ),
    Format(
        name="mmaction2 ViT",
        architecture="image",
        required_keys=("transformer_layers.layers.*", "patch_embed.projection.weight"),
        forbidden_keys=("*attentions.1.*", "time_embed"),
        patch_kernel_ndim=4,
        rules={
            **MM_STEM,
            "head.{param}": "head.{param}",
            "cls_head.{word}.{param}": "head.{param}",
            **with_prefix("transformer_layers.layers.", MM_BLOCKS),
        },
        kwargs={"gelu": "exact"},
        normalization=INCEPTION,
    ),
)
