"""An inferred architecture, and what the shapes of weights tell about it."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, NamedTuple

import torch

from networks.weights.rename_keys import PATCH_KERNEL, Weights


class Architecture(NamedTuple):
    """A name for networks.build, the arguments, and the assumptions that the weights do not prove."""

    name: str
    kwargs: dict[str, Any]
    assumed: list[str]


def patch_kernel_shape(state: Weights) -> torch.Size:
    """Return (D, C, t, p, p)."""
    shape = state[PATCH_KERNEL].shape
    if len(shape) != 5:
        raise ValueError(f"{PATCH_KERNEL} has shape {tuple(shape)}, expected five dimensions")
    return shape


def count_blocks(state: Weights, root: str = "blocks") -> int:
    return len({key.removeprefix(f"{root}.").split(".")[0] for key in state if key.startswith(f"{root}.")})


def num_positions(state: Weights, key: str) -> int:
    """Return n of position embeddings (1, n, D)."""
    shape = tuple(state[key].shape)
    if len(shape) != 3 or not shape[1]:
        raise ValueError(f"{key} has shape {shape}, expected (1, n, D)")
    return shape[1]


def fit_image_size(num_patches: int, patch_size: int, known_kwargs: Mapping[str, Any]) -> Any:
    """Return the known image size, otherwise that of a square. Raises ValueError if its number of patches differs."""
    image_size = known_kwargs.get("image_size", isqrt(num_patches) * patch_size)
    height, width = as_pair(image_size)
    if (height // patch_size) * (width // patch_size) != num_patches:
        raise ValueError(
            f"{num_patches} positions per frame do not fit image_size={image_size}; give image_size=[height, width]"
        )
    return image_size


def as_pair(image_size: Any) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def check_num_heads(key: str, source_kwargs: Mapping[str, Any], target_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError if both a checkpoint and the network have a number of heads, and these differ."""
    source_heads = source_kwargs.get(key)
    target_heads = target_kwargs.get(key, source_heads)
    if source_heads is not None and source_heads != target_heads:
        raise ValueError(
            f"the checkpoint has {key}={source_heads}, the network {key}={target_heads}: the shapes are equal, "
            "but the outputs are not"
        )


def misfit_hints(problems: Sequence[str], source: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    """Return lines that help with keys that do not fit: arguments that differ between checkpoint and network."""
    hints = []
    if any("decoder_" in problem or "predictor_" in problem for problem in problems):
        hints.append("model.pretrained_args.head=new starts with a new decoder or predictor")
    differing = [
        f"{key}={source[key]} in the checkpoint, {target[key]} in the network"
        for key in sorted(source.keys() & target.keys() - {"num_classes", "backbone_args"})
        if source[key] != target[key]
    ]
    return hints + ([f"arguments that differ (model.args): {'; '.join(differing)}"] if differing else [])
