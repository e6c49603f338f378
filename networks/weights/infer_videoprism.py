"""The arguments of a VideoPrism, inferred from the shapes of its weights."""

from collections.abc import Mapping
from typing import Any

from networks.weights.architecture import Architecture, count_blocks, fit_image_size, num_positions, patch_kernel_shape
from networks.weights.rename_keys import Weights


def infer_videoprism(state: Weights, known_kwargs: Mapping[str, Any]) -> Architecture:
    """Return the network; heads of 64 dimensions are assumed if their number is not known."""
    embed_dim, _, tubelet_size, patch_size, _ = patch_kernel_shape(state)
    num_heads = known_kwargs.get("num_heads", max(embed_dim // 64, 1))
    kwargs = {
        "num_frames": num_positions(state, "temporal_pos_embed") * tubelet_size,
        "image_size": fit_image_size(num_positions(state, "pos_embed"), patch_size, known_kwargs),
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "embed_dim": embed_dim,
        "depth": count_blocks(state),
        "temporal_depth": count_blocks(state, "temporal_blocks"),
        "num_heads": num_heads,
        "pooling": "attentive" if "pooler.query_tokens" in state else "mean",
        "pooler_depth": 1 + count_blocks(state, "pooler.blocks"),
    }
    assumed = [] if "num_heads" in known_kwargs else [f"num_heads={num_heads}"]
    return Architecture("videoprism_b", kwargs, assumed)
