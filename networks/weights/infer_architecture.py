"""The network that a set of weights is of: what the shapes say, what the file's config.json says, what is assumed."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch

from networks.arguments import ARGUMENTS
from networks.layers import triple
from networks.maskfeat import MaskFeat
from networks.weights.rename_keys import PATCH_KERNEL, Translated, Weights

# Heads are 64 wide in every published transformer that we read, but for those of these widths, which have 16 of them.
HEAD_WIDTH = 64
SIXTEEN_HEADS = (1280, 1408)  # ViT-H, ViT-g


def architecture(translated: Translated, given: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """-> a name for networks.build, its arguments, and what had to be assumed.

    `given` is what the user says, which wins. Raises ValueError if the weights are of no network that is built here.
    """
    state, settings = translated.state, translated.settings
    describe = {"timesformer": timesformer, "vivit": vivit, "mvit": mvit}.get(translated.format.network)
    if describe is None:
        raise ValueError(
            f"a {translated.format.name} checkpoint is of an image network: it can start a video network "
            "(into=timesformer_b, or model.init in train.py), but is none by itself"
        )
    if "num_classes" in settings:  # a folder of ours says everything
        return "", settings | dict(given), []
    width, in_chans, *kernel = state[PATCH_KERNEL].shape
    kwargs: dict[str, Any] = {
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "in_chans": in_chans,
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / state["blocks.0.norm2.weight"].shape[0],
    }
    assumed: list[str] = []
    known = settings | dict(given)
    mask_cell = known.pop("mask_cell", 2)
    name, own = describe(state, width, kernel, known, assumed)
    own |= {key: value for key, value in known.items() if key in ARGUMENTS}
    if {"mask_token", "predict.weight", "predict.bias"} & state.keys() and "head.weight" not in state:
        with torch.device("meta"):
            return *pretraining(state, name, kwargs | own, mask_cell), assumed
    return name, kwargs | own, assumed


def pretraining(state: Weights, backbone: str, kwargs: dict[str, Any], mask_cell: int) -> tuple[str, dict[str, Any]]:
    """The MaskFeat network around a backbone, of whose tokens each has the HOG of some frames predicted."""
    sizes = {key: kwargs.pop(key) for key in ("num_frames", "image_size")}
    del kwargs["num_classes"]
    one = MaskFeat(backbone, **sizes, backbone_args=kwargs, mask_cell=mask_cell)
    frames = len(state["predict.weight"]) / one.target_width
    if not frames.is_integer():
        raise ValueError(
            f"predict.weight: {len(state['predict.weight'])} numbers are no multiple of {one.target_width}"
        )
    settings = {"backbone": backbone, **sizes, "backbone_args": kwargs, "mask_cell": mask_cell}
    return f"maskfeat_{backbone}", settings | {"target_frames": int(frames)}


def count_blocks(state: Weights, root: str = "blocks") -> int:
    return len({key.split(".")[1] for key in state if key.startswith(root + ".")})


def plain_transformer(width: int, known: Mapping[str, Any], assumed: list[str]) -> dict[str, Any]:
    heads = 16 if width in SIXTEEN_HEADS else max(width // HEAD_WIDTH, 1)
    if "heads" not in known:
        assumed.append(f"heads={heads}, as published networks of width {width} have")
    return {"width": width, "heads": known.get("heads", heads)}


def rows(state: Weights, key: str) -> int:
    """How many positions a table (1, n, D) holds."""
    table = state[key]
    if table.ndim != 3 or not table.shape[1]:
        raise ValueError(f"{key} of shape {tuple(table.shape)}: expected (1, n, D)")
    return table.shape[1]


def square(patches: int, patch: int, known: Mapping[str, Any]) -> Any:
    """The image size of a frame of so many patches: the known one, or a square. Raises ValueError if neither fits."""
    size = known.get("image_size", isqrt(patches) * patch)
    height, width = (size, size) if isinstance(size, int) else size
    if (height // patch) * (width // patch) != patches:
        raise ValueError(f"{patches} positions a frame do not fit image_size={size}; give image_size=[height, width]")
    return size


def timesformer(
    state: Weights, width: int, kernel: list[int], known: dict[str, Any], assumed: list[str]
) -> tuple[str, dict[str, Any]]:
    attention = "divided" if "blocks.0.temporal_attn.qkv.weight" in state else "joint"
    if "time_embed" in state:
        frames = rows(state, "time_embed") * kernel[0]
    else:
        attention, frames = "space", known.get("num_frames", 8)
        if "num_frames" not in known:
            assumed.append("num_frames=8")
    return "timesformer_b", {
        "num_frames": frames, "image_size": square(rows(state, "pos_embed") - 1, kernel[1], known),
        "patch_size": kernel[1], "tubelet": kernel[0], "depth": count_blocks(state), "attention": attention,
        **plain_transformer(width, known, assumed),
    }  # fmt: skip


def vivit(
    state: Weights, width: int, kernel: list[int], known: dict[str, Any], assumed: list[str]
) -> tuple[str, dict[str, Any]]:
    cls_token = "cls_token" in state
    kwargs: dict[str, Any] = {
        "patch_size": kernel[1], "tubelet": kernel[0], "depth": count_blocks(state), "cls_token": cls_token,
        "pooling": "cls" if cls_token else "mean", **plain_transformer(width, known, assumed),
    }  # fmt: skip
    fixed = known.get("positions") == "sincos" and "pos_embed" not in state
    if not fixed:
        known["positions"] = "learned"
        places = rows(state, "pos_embed") - cls_token
    elif not {"num_frames", "image_size"} <= known.keys():
        assumed += [f"{key}={value}" for key, value in (("num_frames", 16), ("image_size", 224)) if key not in known]
    if "temporal_pos_embed" in state:
        kwargs |= {"attention": "factorised_encoder", "temporal_depth": count_blocks(state, "temporal_blocks")}
        kwargs["num_frames"] = (rows(state, "temporal_pos_embed") - cls_token) * kernel[0]
        kwargs["image_size"] = square(places, kernel[1], known)
        return "vivit_fe_b", kwargs
    if "blocks.0.temporal_attn.qkv.weight" in state:
        kwargs["attention"] = "factorised_attention"
    if fixed:
        kwargs |= {"num_frames": known.get("num_frames", 16), "image_size": known.get("image_size", 224)}
        return "videomae_b", kwargs
    size, frames = split_clip(places, kernel, known, assumed)
    return "vivit_b", kwargs | {"num_frames": frames, "image_size": size}


def split_clip(places: int, kernel: list[int], known: Mapping[str, Any], assumed: list[str]) -> tuple[Any, int]:
    """How many frames and what image size a table over a whole clip is of: its length alone does not tell."""
    if "num_frames" in known:
        return square(places // (known["num_frames"] // kernel[0]), kernel[1], known), known["num_frames"]
    size = known.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    patches = (height // kernel[1]) * (width // kernel[1])
    if places % patches:
        raise ValueError(f"{places} positions a clip do not fit image_size={size}; give num_frames=N")
    if "image_size" not in known:
        assumed.append(f"image_size={size}, so num_frames={places // patches * kernel[0]}")
    return size, places // patches * kernel[0]


def mvit(
    state: Weights, width: int, kernel: list[int], known: dict[str, Any], assumed: list[str]
) -> tuple[str, dict[str, Any]]:
    """A stage starts where the attention grows wider. Query strides of v2 follow from the tables of distances."""
    depth = count_blocks(state)
    widths = [state[f"blocks.{i}.attn.proj.weight"].shape[0] for i in range(depth)]
    starts = [i for i in range(depth) if i == 0 or widths[i] != widths[i - 1]]
    pools = {letter: [f"blocks.{i}.attn.pool_{letter}.weight" in state for i in range(depth)] for letter in "qk"}
    head_width = state["blocks.0.attn.pool_k.weight"].shape[0]
    relative = "blocks.0.attn.rel_pos_h" in state
    in_attention = any(len(state[f"blocks.{i}.norm1.weight"]) != widths[i] for i in range(depth))
    kernels = [list(tensor.shape[2:]) for key, tensor in state.items() if ".pool_" in key]
    pooled = [pools["q"][start] for start in starts] if not all(pools["q"]) else [True] * len(starts)
    strides = [[1, 1, 1]] + [[1, 2, 2] if strided else [1, 1, 1] for strided in pooled[1:]]
    stem = triple("patch_stride", known.get("patch_stride", [2, 4, 4]))
    if relative:
        # a table spans the larger of two grids, which is the queries' unless they are pooled in this very block
        sizes = [(len(state[f"blocks.{i}.attn.rel_pos_h"]) + 1) // 2 for i in range(depth)]
        times = [(len(state[f"blocks.{i}.attn.rel_pos_t"]) + 1) // 2 for i in range(depth)]
        side, time = sizes[0], times[0]
        for stage, (start, end) in enumerate(zip(starts[1:], [*starts[2:], depth], strict=True), 1):
            if end - start == 1 and "query_strides" not in known:
                assumed.append(f"query_strides=[1, 2, 2] in stage {stage + 1}, whose one block does not tell")
            steps = [round(time / times[end - 1]), round(side / sizes[end - 1])] if end - start > 1 else [1, 2]
            strides[stage] = [steps[0], steps[1], steps[1]]
            time, side = -(-time // steps[0]), -(-side // steps[1])
        frames, size = times[0] * stem[0], known.get("image_size", sizes[0] * stem[1])
        for key, value in (("residual_pooling", True), ("image_size", size)):
            assumed += [f"{key}={value}"] if key not in known else []
    else:
        frames = rows(state, "pos_embed_temporal") * stem[0]
        size = square(rows(state, "pos_embed_spatial"), stem[1], known)
    if "key_stride" not in known:
        assumed.append("key_stride=[1, 8, 8]")
    strided_keys = not all(pools["k"])
    if strided_keys:  # only SlowFast's code of 2021 leaves them out, and it had this eps in the norms after pooling
        assumed.append("pool_norm_eps=1e-05, as SlowFast's code had when it pooled no keys at stride 1")
        known.setdefault("pool_norm_eps", 1e-5)
    pooling = "fc_norm" if relative and not in_attention and "head.weight" in state else "cls"
    if pooling == "fc_norm":
        assumed.append("pooling=fc_norm, as MaskFeat's fine-tuning has")
    return "mvit_v2_s" if relative else "mvit_v1_b", {
        "num_frames": frames, "image_size": size, "patch_stride": list(stem), "patch_kernel": kernel,
        "depths": [b - a for a, b in zip(starts, [*starts[1:], depth], strict=True)],
        "widths": [widths[start] for start in starts], "heads": [widths[start] // head_width for start in starts],
        "query_strides": strides, "pool_kernel": kernels[0] if all(k == kernels[0] for k in kernels) else None,
        "positions": "relative" if relative else "separable", "residual_pooling": relative, "pooling": pooling,
        "width_change": "attention" if in_attention else "mlp",
        "pool_queries": "always" if all(pools["q"]) else "strided",
        "pool_keys": "strided" if strided_keys else "always",
    }  # fmt: skip
