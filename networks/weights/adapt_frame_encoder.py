"""Weights of image encoders of timm, or of a FrameEncoder of this project, adapted to a FrameEncoder.

Strict, as networks.weights.adapt: every key of both sides is mapped, reshaped, created or dropped, or it is an error.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from networks.frame_encoder import FrameEncoder
from networks.pos_embed import resample_1d
from networks.weights.adapt import family
from networks.weights.report import AS_INITIALIZED, CREATED, DROPPED, MAPPED, RESHAPED, KeyRecord, KeyReport

ADDED = ("temporal_pos_embed", "temporal_blocks", "temporal_norm", "pooler", "head")  # to an image encoder
DROPPED_KEYS = {
    "backbone.head.*": "classes of images",
    "backbone.mask_token": "mask token of the pre-training",
    "backbone.fc_norm.*": "pooling of the image encoder, which the network does not use",
    "backbone.attn_pool.*": "pooling of the image encoder, which the network does not use",
}


def adapt_frame_encoder(
    state: Mapping[str, Tensor], network: FrameEncoder, *, title: str, is_own: bool, new_head: bool = False
) -> tuple[dict[str, Tensor], KeyReport]:
    """Return a complete state dict for `network`, which is left as it is, and what became of every key.

    `is_own`: the keys are those of a FrameEncoder; otherwise those of timm. Raises ValueError that lists every key that
    one side lacks and every pair of different shapes.
    """
    unused = dict(state) if is_own else {f"backbone.{key}": tensor for key, tensor in state.items()}
    stored_keys = {key: key if is_own else key.removeprefix("backbone.") for key in unused}
    problems = [
        f"{stored_keys[key]}: expected a floating-point tensor, got {tensor.dtype}"
        for key, tensor in unused.items()
        if not tensor.is_floating_point()
    ]
    report, adapted = KeyReport(f"{title} -> FrameEncoder"), {}
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
        adapted[key], detail = resize(key, source, target, network)
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


def resize(key: str, tensor: Tensor, target: Tensor, network: FrameEncoder) -> tuple[Tensor, str]:
    """Return the tensor in the size of `target` if it has positions, and how it was resized."""
    if tensor.shape == target.shape or tensor.ndim != target.ndim:
        return tensor, ""
    if key == "temporal_pos_embed":
        length = target.shape[1]
        return resample_1d(tensor, length), f"{tensor.shape[1]} -> {length} frames, linear"
    if key == "backbone.pos_embed":
        backbone: Any = network.backbone
        grid = list(network.patch_embed.grid[1:])
        num_prefix = 0 if getattr(backbone, "no_embed_class", False) else backbone.num_prefix_tokens
        resized = resample_abs_pos_embed(tensor, grid, num_prefix_tokens=num_prefix)
        return resized, f"{tensor.shape[1]} -> {resized.shape[1]} positions, bicubic"
    return tensor, ""
