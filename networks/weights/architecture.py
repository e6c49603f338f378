"""The network that a set of weights is of: what the shapes say, what the file's config.json says, what is assumed."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from networks.weights.translate import PATCH_KERNEL, Translated

# Every published network that we read has heads of this width; the shapes of a plain transformer do not tell.
HEAD_WIDTH = 64


def architecture(
    translated: Translated, config: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[str, dict[str, Any], list[str]]:
    """-> a name for networks.build, its arguments, and what had to be assumed.

    `config` is the checkpoint's own config.json, `given` what the user says, which wins. Raises ValueError if the
    weights are of no network that is built here.
    """
    state = translated.state
    if PATCH_KERNEL not in state:
        raise ValueError(f"no patch embedding among the keys of this {translated.format.name} checkpoint")
    describe = {"timesformer": timesformer, "vivit": vivit, "mvit": mvit}.get(translated.format.network)
    if describe is None:
        raise ValueError(
            f"a {translated.format.name} checkpoint is of an image network: it can start a video network "
            "(into=timesformer_b, or model.init in train.py), but is none by itself"
        )
    width, in_chans, *kernel = state[PATCH_KERNEL].shape
    kwargs: dict[str, Any] = {
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "in_chans": in_chans,
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / state["blocks.0.norm2.weight"].shape[0],
    }
    assumed: list[str] = []
    name, own = describe(
        state, width, kernel, dict(translated.format.settings), from_config(config) | dict(given), assumed
    )
    return name, kwargs | own | dict(given), assumed


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' config.json says, under our names."""
    names = {"num_attention_heads": "heads", "image_size": "image_size", "num_frames": "num_frames"}
    known = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    known |= {"gelu": "tanh"} if config.get("hidden_act") in ("gelu_fast", "gelu_new", "gelu_pytorch_tanh") else {}
    known |= {"gelu": "exact"} if config.get("hidden_act") == "gelu" else {}
    return known


def count_blocks(state: Mapping[str, Tensor], root: str = "blocks") -> int:
    return len({key.split(".")[1] for key in state if key.startswith(root + ".")})


def plain_transformer(width: int, known: Mapping[str, Any], assumed: list[str]) -> dict[str, Any]:
    if "heads" not in known:
        assumed.append(f"heads={max(width // HEAD_WIDTH, 1)} (heads of width {HEAD_WIDTH})")
    return {"width": width, "heads": known.get("heads", max(width // HEAD_WIDTH, 1))}


def square(patches: int, patch: int, known: Mapping[str, Any]) -> Any:
    """The image size of a frame of so many patches: the known one, or a square. Raises ValueError if neither fits."""
    size = known.get("image_size", isqrt(patches) * patch)
    height, width = (size, size) if isinstance(size, int) else size
    if (height // patch) * (width // patch) != patches:
        raise ValueError(f"{patches} positions a frame do not fit image_size={size}; give image_size=[height, width]")
    return size


def timesformer(
    state: Mapping[str, Tensor], width: int, kernel: list[int], settings: dict, known: dict, assumed: list[str]
) -> tuple[str, dict[str, Any]]:
    attention = "divided" if "blocks.0.temporal_attn.qkv.weight" in state else "joint"
    if "time_embed" in state:
        frames = state["time_embed"].shape[1] * kernel[0]
    else:
        attention, frames = "space", known.get("num_frames", 8)
        if "num_frames" not in known:
            assumed.append("num_frames=8")
    return "timesformer_b", {
        "num_frames": frames, "image_size": square(state["pos_embed"].shape[1] - 1, kernel[1], known),
        "patch_size": kernel[1], "tubelet": kernel[0], "depth": count_blocks(state), "attention": attention,
        **plain_transformer(width, known, assumed), **settings,
    }  # fmt: skip


def vivit(
    state: Mapping[str, Tensor], width: int, kernel: list[int], settings: dict, known: dict, assumed: list[str]
) -> tuple[str, dict[str, Any]]:
    cls_token = "cls_token" in state
    kwargs: dict[str, Any] = {
        "patch_size": kernel[1], "tubelet": kernel[0], "depth": count_blocks(state), "cls_token": cls_token,
        "pooling": "cls" if cls_token else "mean", **plain_transformer(width, known, assumed),
    }  # fmt: skip
    if "gelu" in known:
        settings["gelu"] = known["gelu"]
    if "pos_embed" in state:
        settings["positions"] = "learned"
        rows = state["pos_embed"].shape[1] - cls_token
    elif not {"num_frames", "image_size"} <= known.keys():
        assumed += [f"{key}={value}" for key, value in (("num_frames", 16), ("image_size", 224)) if key not in known]
    if "temporal_pos_embed" in state:
        kwargs |= {"attention": "factorised_encoder", "temporal_depth": count_blocks(state, "temporal_blocks")}
        kwargs["num_frames"] = (state["temporal_pos_embed"].shape[1] - cls_token) * kernel[0]
        kwargs["image_size"] = square(rows, kernel[1], known)
        return "vivit_fe_b", kwargs | settings
    if "blocks.0.temporal_attn.qkv.weight" in state:
        kwargs["attention"] = "factorised_attention"
    if "pos_embed" not in state:
        kwargs |= {"num_frames": known.get("num_frames", 16), "image_size": known.get("image_size", 224)}
        return "videomae_b", kwargs | settings
    size, frames = split_clip(rows, kernel, known, assumed)
    return "vivit_b", kwargs | {"num_frames": frames, "image_size": size} | settings


def split_clip(rows: int, kernel: list[int], known: Mapping[str, Any], assumed: list[str]) -> tuple[Any, int]:
    """How many frames and what image size a table over a whole clip is of: its length alone does not tell."""
    if "num_frames" in known:
        return square(rows // (known["num_frames"] // kernel[0]), kernel[1], known), known["num_frames"]
    size = known.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    patches = (height // kernel[1]) * (width // kernel[1])
    if rows % patches:
        raise ValueError(f"{rows} positions a clip do not fit image_size={size}; give num_frames=N")
    if "image_size" not in known:
        assumed.append(f"image_size={size}, so num_frames={rows // patches * kernel[0]}")
    return size, rows // patches * kernel[0]


def mvit(
    state: Mapping[str, Tensor], width: int, kernel: list[int], settings: dict, known: dict, assumed: list[str]
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
    strides = [[1, 1, 1]] + [[1, 2, 2]] * (len(starts) - 1)
    stem = known.get("patch_stride", [2, 4, 4])
    if relative:
        # a table spans the larger of two grids, which is the queries' unless they are pooled in this very block
        sizes = [(len(state[f"blocks.{i}.attn.rel_pos_h"]) + 1) // 2 for i in range(depth)]
        side = sizes[0]
        for stage, (start, end) in enumerate(zip(starts[1:], [*starts[2:], depth], strict=True), 1):
            step = round(side / sizes[end - 1]) if end - start > 1 else 2
            strides[stage], side = [1, step, step], -(-side // step)
        frames = (len(state["blocks.0.attn.rel_pos_t"]) + 1) // 2 * stem[0]
        size = known.get("image_size", sizes[0] * stem[1])
    else:
        frames = state["pos_embed_temporal"].shape[1] * stem[0]
        size = square(state["pos_embed_spatial"].shape[1], stem[1], known)
    if "key_stride" not in known:
        assumed.append("key_stride=[1, 8, 8]")
    strided_keys = not all(pools["k"])
    if strided_keys:  # only SlowFast's code of 2021 leaves them out, and it had this eps in the norms after pooling
        settings.setdefault("pool_norm_eps", 1e-5)
        assumed.append("pool_norm_eps=1e-05, as SlowFast's code had when it pooled no keys at stride 1")
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
        "pool_keys": "strided" if strided_keys else "always", **settings,
    }  # fmt: skip
