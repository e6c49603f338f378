"""The arguments of a V-JEPA 2 or 2.1, inferred from the shapes of its weights."""

from collections.abc import Mapping
from typing import Any

from networks.weights.architecture import Architecture, count_blocks, patch_kernel_shape
from networks.weights.rename_keys import Weights

NUM_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}  # of the published encoders


def infer_vjepa2(state: Weights, known_kwargs: Mapping[str, Any]) -> Architecture:
    """Return the network. Rotary positions tell nothing of the clip: its frames and size are assumed if not known."""
    embed_dim, _, tubelet_size, patch_size, _ = patch_kernel_shape(state)
    is_2_1 = "video_mod_embed" in state
    defaults = {
        "num_frames": 16,
        "image_size": 384 if is_2_1 else 256,
        "num_heads": NUM_HEADS.get(embed_dim, max(embed_dim // 64, 1)),
    }
    assumed = [f"{key}={value}" for key, value in defaults.items() if key not in known_kwargs]
    has_pooler = "pooler.query_tokens" in state
    kwargs = {
        **{key: known_kwargs.get(key, value) for key, value in defaults.items()},
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "embed_dim": embed_dim,
        "depth": count_blocks(state),
        "pooling": "attentive" if has_pooler else "mean",
        "pooler_depth": 1 + count_blocks(state, "pooler.blocks"),
    }
    return Architecture("vjepa2_1_l" if is_2_1 else "vjepa2_l", kwargs, assumed)
