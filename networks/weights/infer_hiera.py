"""The arguments of a Hiera, inferred from the shapes of its weights."""

from collections.abc import Mapping
from typing import Any

from networks.weights.architecture import Architecture, count_blocks, fit_image_size, num_positions, patch_kernel_shape
from networks.weights.rename_keys import Weights

NUM_HEADS = {96: 1, 112: 2, 144: 2, 256: 4}  # of the first stage of the published networks
PATCH_STRIDE = [2, 4, 4]


def infer_hiera(state: Weights, known_kwargs: Mapping[str, Any]) -> Architecture:
    """Return the network; the patch stride is that of the published ones, and their heads are assumed if not known."""
    embed_dim, _, *kernel = patch_kernel_shape(state)
    default_heads = NUM_HEADS.get(embed_dim, 1)
    num_patches = num_positions(state, "pos_embed_spatial")
    depths = infer_depths(state)
    kwargs = {
        "num_frames": num_positions(state, "pos_embed_temporal") * PATCH_STRIDE[0],
        "image_size": fit_image_size(num_patches, PATCH_STRIDE[1], known_kwargs),
        "patch_kernel": kernel,
        "patch_stride": PATCH_STRIDE,
        "embed_dim": embed_dim,
        "num_heads": known_kwargs.get("num_heads", default_heads),
        "depths": depths,
    }
    assumed = [] if "num_heads" in known_kwargs else [f"num_heads={default_heads}"]
    return Architecture("hiera_b", kwargs, assumed)


def infer_depths(state: Weights) -> list[int]:
    """Return the number of blocks of each stage; the first block of all but the first stage has a projection."""
    num_blocks = count_blocks(state)
    starts = [0, *(number for number in range(num_blocks) if f"blocks.{number}.proj.weight" in state), num_blocks]
    return [end - start for start, end in zip(starts, starts[1:], strict=False)]
