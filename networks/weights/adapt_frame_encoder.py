"""Weights of image encoders of timm, or of a FrameEncoder of this project, adapted to a FrameEncoder.

Strict, as networks.weights.adapt: every key of both sides is mapped, reshaped, created or dropped, or it is an error.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

from networks.frame_encoder import FrameEncoder
from networks.pos_embed import resample_1d, resample_pos_embed
from networks.weights.adapt import family
from networks.weights.architecture import check_num_heads
from networks.weights.report import AS_INITIALIZED, CREATED, DROPPED, MAPPED, RESHAPED, KeyRecord, KeyReport
from networks.weights.source_config import SourceConfig, describe_timm_vit, parse_source_config

ADDED = ("temporal_pos_embed", "temporal_blocks", "temporal_norm", "pooler", "head")  # to an image encoder
DROPPED_KEYS = {
    "backbone.head.*": "head of the image encoder: classes of images or a projection",
    "backbone.mask_token": "mask token of the pre-training",
    "backbone.fc_norm.*": "pooling of the image encoder, which the network does not use",
    "backbone.attn_pool.*": "pooling of the image encoder, which the network does not use",
}


def adapt_frame_encoder(
    state: Mapping[str, Tensor],
    network: FrameEncoder,
    *,
    config: SourceConfig,
    source_grid: Sequence[int] | None = None,
    new_head: bool = False,
) -> tuple[dict[str, Tensor], KeyReport]:
    """Return a complete state dict for `network`, which is left as it is, and what became of every key.

    `config` tells whether the keys are those of a FrameEncoder or of timm, and what shapes do not show; `source_grid`
    is the (h, w) of the source's positions, a square if None. Raises ValueError that lists every key that one side
    lacks and every pair of different shapes.
    """
    is_own = config.network_kwargs is not None
    unused = dict(state) if is_own else {f"backbone.{key}": tensor for key, tensor in state.items()}
    stored_keys = {key: key if is_own else key.removeprefix("backbone.") for key in unused}
    problems = [
        f"{stored_keys[key]}: expected a floating-point tensor, got {tensor.dtype}"
        for key, tensor in unused.items()
        if not tensor.is_floating_point()
    ]
    report, adapted = KeyReport(f"{config.name if is_own else 'timm'} -> FrameEncoder"), {}
    report.notes = compare_encoders(config, network)
    unwanted = find_unwanted_head(unused, network, new_head)
    families = {family(key) for key in unused if key not in unwanted}
    for key, target in network.state_dict().items():
        source = None if key in unwanted else unused.pop(key, None)
        if source is None:
            is_added = key.split(".")[0] in ADDED and family(key) not in families
            if not is_added:
                problems.append(f"{key}: missing in the checkpoint")
            detail = f"{unwanted.get(key, 'the source has none')}; {AS_INITIALIZED}"
            adapted[key] = target
            report.records.append(KeyRecord(status=CREATED, target=key, detail=detail))
            continue
        adapted[key], detail = resize(key, source, target, network, source_grid)
        if adapted[key].shape != target.shape:
            problems.append(f"{key}: {tuple(source.shape)}, the network has {tuple(target.shape)}")
        status = RESHAPED if detail else MAPPED
        report.records.append(KeyRecord(status=status, sources=(stored_keys[key],), target=key, detail=detail))
    for key in unused:
        reasons = (reason for pattern, reason in DROPPED_KEYS.items() if fnmatch(key, pattern))
        reason = unwanted.get(key) or next(reasons, None)
        if reason is None:
            problems.append(f"{stored_keys[key]}: the network has no {key}")
        else:
            report.records.append(KeyRecord(status=DROPPED, sources=(stored_keys[key],), detail=reason))
    if problems:
        lines = problems if len(problems) <= 10 else [*problems[:10], f"and {len(problems) - 10} more"]
        encoder = network.kwargs["encoder"]
        raise ValueError(f"the checkpoint does not fit encoder={encoder}\n  " + "\n  ".join(lines))
    return adapted, report


def find_unwanted_head(state: Mapping[str, Tensor], network: FrameEncoder, new_head: bool) -> dict[str, str]:
    """Return the keys of a head that is not taken over, with the reason."""
    if "head.weight" not in state:
        return {}
    num_classes, source_classes = network.kwargs["num_classes"], len(state["head.weight"])
    if source_classes != num_classes:
        reason = f"head of {source_classes} classes, the network has {num_classes}"
    elif new_head:
        reason = "a new head was asked for"
    else:
        return {}
    return dict.fromkeys(("head.weight", "head.bias"), reason)


def compare_encoders(config: SourceConfig, network: FrameEncoder) -> list[str]:
    """Return a note for each difference that shapes do not show. Raises ValueError if the numbers of heads differ."""
    own = parse_source_config(describe_timm_vit(network.backbone), {})
    check_num_heads("num_heads", config.kwargs, own.kwargs)
    pairs = {
        "encoder": (config.encoder, network.kwargs["encoder"]),
        "encoder_args": (config.encoder_args, network.kwargs["encoder_args"] or {}),
        "activation": (config.problem or config.kwargs.get("gelu"), own.problem or own.kwargs.get("gelu")),
        "norm_eps": (config.kwargs.get("norm_eps"), own.kwargs.get("norm_eps")),
    }
    compared = set(pairs) if config.network_kwargs is not None else set(pairs) - {"encoder_args"}
    return [
        f"{name} is {source} in the checkpoint, {target} in the network: its outputs may differ"
        for name, (source, target) in pairs.items()
        if name in compared and source not in (None, "", target)
    ]


def resize(
    key: str, tensor: Tensor, target: Tensor, network: FrameEncoder, source_grid: Sequence[int] | None
) -> tuple[Tensor, str]:
    """Return the tensor in the size of `target` if it has positions, and how it was resized."""
    if tensor.ndim != target.ndim or tensor.shape[::2] != target.shape[::2]:
        return tensor, ""
    if key == "temporal_pos_embed" and tensor.shape != target.shape:
        length = target.shape[1]
        return resample_1d(tensor, length), f"{tensor.shape[1]} -> {length} frames, linear"
    if key == "backbone.pos_embed":
        return resize_pos_embed(tensor, network, source_grid)
    return tensor, ""


def resize_pos_embed(table: Tensor, network: FrameEncoder, source_grid: Sequence[int] | None) -> tuple[Tensor, str]:
    """Return the positions of the image encoder for the patches of the network, and how they were resized."""
    backbone: Any = network.backbone
    num_prefix = 0 if getattr(backbone, "no_embed_class", False) else backbone.num_prefix_tokens
    num_patches, new = table.shape[1] - num_prefix, list(network.patch_embed.grid[1:])
    side = round(num_patches**0.5)
    old = list(source_grid or ([side, side] if num_patches != new[0] * new[1] else new))
    if old == new or old[0] * old[1] != num_patches:  # if they do not fill the grid, the caller reports the shapes
        return table, ""
    patches = resample_pos_embed(table[:, num_prefix:], (1, *old), (1, *new))
    detail = f"{old[0]}x{old[1]} -> {new[0]}x{new[1]} positions, bicubic"
    return torch.cat([table[:, :num_prefix], patches], dim=1), detail
