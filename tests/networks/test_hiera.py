"""The order of Hiera's tokens: pooling the first part of them is max pooling over the grid."""

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

import networks
from networks.hiera_attention import max_pool
from tests.helpers.networks import random_video, randomize

small = st.integers(1, 3)


@given(t=small, h=small, w=small, q_stride=st.sampled_from([(1, 2, 2), (2, 2, 2), (2, 1, 3)]), stages=st.integers(2, 4))
def test_pooling_unrolled_tokens_equals_max_pooling_of_the_grid(t, h, w, q_stride, stages):
    unit = [stride ** (stages - 1) for stride in q_stride]
    grid = [units * size for units, size in zip((t, h, w), unit, strict=True)]
    with torch.device("meta"):
        network = networks.build(
            "hiera_tiny",
            num_classes=2,
            num_frames=2 * grid[0],
            image_size=(4 * grid[1], 4 * grid[2]),
            q_stride=q_stride,
            depths=[1] * (stages - 1) + [2],
            mask_unit_attn=[False] * stages,
        )
    patches = random_video(1, grid[0], grid[1] * grid[2], 3)
    tokens = network.unroll(patches)
    image = rearrange(patches, "B t (h w) D -> B D t h w", h=grid[1])
    for _ in range(stages - 1):
        tokens = max_pool(tokens, q_stride[0] * q_stride[1] * q_stride[2])
        image = F.max_pool3d(image, q_stride, q_stride)
    assert torch.equal(tokens, rearrange(image, "B D t h w -> B (t h w) D"))


def test_mask_units_do_not_see_each_other_in_the_first_stages():
    """A change of one mask unit changes no other token before the first stage that attends to all."""
    options = dict(num_classes=2, num_frames=4, image_size=32, embed_dim=8, depths=(2, 2), mask_unit_attn=(True, False))
    network = randomize(networks.build("hiera_tiny", **options, patch_kernel=(1, 3, 3)), seed=1)
    tokens = random_video(1, 2 * 8 * 8, 8)
    changed = tokens.clone().unflatten(1, (4, -1))  # the place within the stride, then the mask unit
    changed[:, :, 0] += 1
    with torch.no_grad():
        before, after = (network.blocks[1](network.blocks[0](value)) for value in (tokens, changed.flatten(1, 2)))
    differs = (before != after).any(-1).unflatten(1, (4, -1))[0]
    assert differs[:, 0].all() and not differs[:, 1:].any()
