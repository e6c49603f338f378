"""Small networks, random weights and random clips for tests."""

import torch
from torch import Tensor, nn

SMALL = dict(num_classes=5, num_frames=4, image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)
SMALL_MVIT = dict(num_classes=5, num_frames=4, image_size=32, embed_dims=(8, 16, 32), depths=(1, 1, 2))
SMALL_VIT = dict(patch_size=8, embed_dim=32, depth=2, num_heads=4)
SMALL_FRAMES = dict(num_classes=5, num_frames=4, image_size=32, encoder_args=SMALL_VIT)
DINOV3 = "vit_small_patch16_dinov3"
SMALL_HIERA = dict(num_classes=5, num_frames=4, image_size=32, embed_dim=8, depths=(1, 1, 2))
TINY_MASKFEAT = dict(
    backbone="mvit_v2_tiny",
    num_frames=4,
    image_size=32,
    backbone_args=dict(
        embed_dims=SMALL_MVIT["embed_dims"],
        depths=SMALL_MVIT["depths"],
        q_strides=[[1, 1, 1], [1, 2, 2], [1, 1, 1]],
        expand_attn=False,
    ),
)
EVERY = {  # every architecture and every kind of attention, small enough for a CPU
    "timesformer divided": ("timesformer_tiny", SMALL),
    "timesformer joint": ("timesformer_tiny", SMALL | {"attention": "joint"}),
    "timesformer space": ("timesformer_tiny", SMALL | {"attention": "space"}),
    "timesformer mean": ("timesformer_tiny", SMALL | {"pooling": "mean", "pos_embed": "sincos"}),
    "vivit joint": ("vivit_tiny", SMALL),
    "vivit factorized encoder": ("vivit_fe_tiny", SMALL),
    "vivit factorized encoder, mean": ("vivit_fe_tiny", SMALL | {"pooling": "mean"}),
    "vivit factorized attention": ("vivit_fsa_tiny", SMALL),
    "vivit factorized dot product": ("vivit_fdp_tiny", SMALL),
    "videomae": ("videomae_tiny", SMALL),
    "vjepa2": ("vjepa2_tiny", SMALL),
    "vjepa2.1, mean": ("vjepa2_1_tiny", SMALL | {"pooling": "mean"}),
    "frames": ("frame_encoder_tiny", SMALL_FRAMES),
    "frames over time": ("frame_encoder_tiny", SMALL_FRAMES | {"temporal_depth": 2}),
    "frames dinov3, attentive": ("dinov3_b", SMALL_FRAMES | {"encoder": DINOV3, "pooling": "attentive"}),
    "videoprism": ("videoprism_tiny", SMALL | {"pooler_depth": 2}),
    "videoprism mean": ("videoprism_tiny", SMALL | {"pooling": "mean", "temporal_depth": 1}),
    "hiera": ("hiera_tiny", SMALL_HIERA),
    "mvit v1": ("mvit_v1_tiny", SMALL_MVIT),
    "mvit v2": ("mvit_v2_tiny", SMALL_MVIT),
    "mvit of maskfeat": ("mvit_v2_tiny", SMALL_MVIT | {"expand_attn": False, "pooling": "fc_norm"}),
}


def randomize(module: nn.Module, seed: int, std: float = 0.2) -> nn.Module:
    """Draw all parameters, also those that are initialized to 0 or 1: a comparison of zeros proves nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_norm_weight = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + float(is_norm_weight))
    return module.eval()


def random_video(*shape: int, seed: int = 0) -> Tensor:
    """Draw normally distributed pixels of any shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
