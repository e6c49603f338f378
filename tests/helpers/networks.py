"""Shared by the tests of networks: small networks, random weights, random clips."""

import torch
from torch import Tensor, nn

# every architecture and every way of attention, small enough for a CPU
SMALL = dict(num_classes=5, num_frames=4, image_size=32, patch_size=8, width=32, depth=2, heads=4)
SMALL_MVIT = dict(num_classes=5, num_frames=4, image_size=32, widths=(8, 16, 32), depths=(1, 1, 2))
EVERY = {
    "timesformer divided": ("timesformer_tiny", SMALL),
    "timesformer joint": ("timesformer_tiny", SMALL | {"attention": "joint"}),
    "timesformer space": ("timesformer_tiny", SMALL | {"attention": "space"}),
    "timesformer mean": ("timesformer_tiny", SMALL | {"pooling": "mean", "positions": "sincos"}),
    "vivit joint": ("vivit_tiny", SMALL),
    "vivit factorised encoder": ("vivit_fe_tiny", SMALL),
    "vivit factorised encoder, mean": ("vivit_fe_tiny", SMALL | {"pooling": "mean"}),
    "vivit factorised attention": ("vivit_fsa_tiny", SMALL),
    "videomae": ("videomae_tiny", SMALL),
    "mvit v1": ("mvit_v1_tiny", SMALL_MVIT),
    "mvit v2": ("mvit_v2_tiny", SMALL_MVIT),
    "mvit of maskfeat": ("mvit_v2_tiny", SMALL_MVIT | {"width_change": "mlp", "pooling": "fc_norm"}),
}


def randomise(module: nn.Module, seed: int, std: float = 0.2) -> nn.Module:
    """Every parameter random, zeros and ones of the initialisation too: what is still zero cannot be compared."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_norm_weight = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + float(is_norm_weight))
    return module.eval()


def random_video(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
