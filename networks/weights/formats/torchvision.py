"""torchvision: MViT and MViTv2."""

from networks.weights.formats.format import KINETICS, MVIT_TEST, Format

FORMATS = (
    Format(
        name="torchvision MViT",
        architecture="mvit",
        required_keys=("conv_proj.weight", "pos_encoding.class_token"),
        rules={
            "conv_proj.{param}": "patch_embed.proj.{param}",
            "pos_encoding.class_token": ("cls_token", "D -> 1 1 D"),
            "pos_encoding.class_pos": ("pos_embed_class", "D -> 1 1 D"),
            "pos_encoding.spatial_pos": ("pos_embed_spatial", "n D -> 1 n D"),
            "pos_encoding.temporal_pos": ("pos_embed_temporal", "n D -> 1 n D"),
            "blocks.{n}.norm1.{param}": "blocks.{n}.norm1.{param}",
            "blocks.{n}.attn.qkv.{param}": "blocks.{n}.attn.qkv.{param}",
            "blocks.{n}.attn.project.0.{param}": "blocks.{n}.attn.proj.{param}",
            "blocks.{n}.attn.pool_{qkv:q|k|v}.pool.weight": "blocks.{n}.attn.pool_{qkv}.weight",
            "blocks.{n}.attn.pool_{qkv:q|k|v}.norm_act.0.{param}": "blocks.{n}.attn.norm_{qkv}.{param}",
            "blocks.{n}.attn.rel_pos_{axis}": "blocks.{n}.attn.rel_pos_{axis}",
            "blocks.{n}.norm2.{param}": "blocks.{n}.norm2.{param}",
            "blocks.{n}.mlp.0.{param}": "blocks.{n}.mlp.fc1.{param}",
            "blocks.{n}.mlp.3.{param}": "blocks.{n}.mlp.fc2.{param}",
            "blocks.{n}.project.{param}": "blocks.{n}.proj.{param}",
            "norm.{param}": "norm.{param}",
            "head.1.{param}": "head.{param}",
        },
        normalization=KINETICS,
        **MVIT_TEST,
    ),
)
