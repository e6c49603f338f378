"""Small networks, random weights and random clips for tests."""

from types import SimpleNamespace
from typing import Any

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


def seeded_clips(batch_size: int, *shape: int) -> SimpleNamespace:
    """Return the part of a batch that pre-training reads: random clips of a shape (C, T, H, W), and their seeds."""
    seeds = tuple((0, 0, sample) for sample in range(batch_size))
    return SimpleNamespace(video=random_video(batch_size, *shape), seeds=seeds)


def train_on_one_batch(network: nn.Module, task: Any, batch: Any, *, steps: int, lr: float) -> dict[str, Tensor]:
    """Train a network on the same batch and return the outputs of the last step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        out = task(network, batch)
        out["loss"].backward()
        optimizer.step()
    return out


def random_video(*shape: int, seed: int = 0) -> Tensor:
    """Draw normally distributed pixels of any shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def transformers_videomae(**options: Any) -> nn.Module:
    """Return transformers' VideoMAEForPreTraining for 4 frames of 32x32, with random weights."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    sizes = dict(image_size=32, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    decoder = dict(decoder_hidden_size=16, decoder_num_hidden_layers=2, decoder_num_attention_heads=2)
    widths = dict(intermediate_size=128, decoder_intermediate_size=64)
    defaults: dict[str, Any] = dict(layer_norm_eps=1e-6, use_mean_pooling=False)
    config = VideoMAEConfig(**sizes | decoder | widths | defaults | options)
    network = randomize(VideoMAEForPreTraining(config), seed=3)
    network.decoder.norm.eps = 1e-6  # as in the authors' code; transformers leaves PyTorch's default there
    return network
