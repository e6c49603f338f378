"""facebookresearch/pytorchvideo: MViT."""

from networks.weights.formats.format import KINETICS, MVIT_TEST, Format
from networks.weights.key_rules import PYTORCHVIDEO

FORMATS = (
    Format(
        name="pytorchvideo MViT",
        architecture="mvit",
        required_keys=("cls_positional_encoding.*", "blocks.{n}.attn.pool_k.weight"),
        rules=PYTORCHVIDEO,
        kwargs={"pool_norm_eps": 1e-5},
        normalization=KINETICS,
        **MVIT_TEST,
    ),
)
