"""The arguments of MViT, inferred from the shapes of its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from networks.argument_checks import to_3tuple
from networks.weights.architecture import (
    Architecture,
    count_blocks,
    fit_image_size,
    num_positions,
    patch_kernel_shape,
)
from networks.weights.rename_keys import Weights


def infer_mvit(state: Weights, known_kwargs: Mapping[str, Any]) -> Architecture:
    stages = infer_stages(state)
    embed_dims = [attention_dim(state, stage.start) for stage in stages]
    head_dim = state["blocks.0.attn.pool_k.weight"].shape[0]
    has_rel_pos = "blocks.0.attn.rel_pos_h" in state
    patch_stride = to_3tuple("patch_stride", known_kwargs.get("patch_stride", [2, 4, 4]))
    q_strides, assumed = infer_q_strides(state, stages, known_kwargs)
    clip_size, assumed_size = infer_mvit_clip_size(state, patch_stride, known_kwargs)
    options, assumed_options = infer_mvit_options(state, known_kwargs)
    kwargs = {
        **clip_size,
        "patch_stride": list(patch_stride),
        "patch_kernel": list(patch_kernel_shape(state)[2:]),
        "depths": [len(stage) for stage in stages],
        "embed_dims": embed_dims,
        "num_heads": [embed_dim // head_dim for embed_dim in embed_dims],
        "q_strides": q_strides,
        "pos_embed": "relative" if has_rel_pos else "separable",
        "residual_pooling": has_rel_pos,
        **options,
    }
    return Architecture("mvit_v2_s" if has_rel_pos else "mvit_v1_b", kwargs, assumed + assumed_size + assumed_options)


def attention_dim(state: Weights, block: int) -> int:
    return state[f"blocks.{block}.attn.proj.weight"].shape[0]


def infer_stages(state: Weights) -> list[range]:
    """Return the blocks of each stage. A stage starts where the attention becomes wider."""
    depth = count_blocks(state)
    dims = [attention_dim(state, block) for block in range(depth)]
    starts = [block for block in range(depth) if block == 0 or dims[block] != dims[block - 1]]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], depth], strict=True)]


def has_pool(state: Weights, letter: str) -> list[bool]:
    """Return for each block whether its queries (letter q) or keys (k) pass a pooling convolution."""
    return [f"blocks.{block}.attn.pool_{letter}.weight" in state for block in range(count_blocks(state))]


def infer_q_strides(
    state: Weights, stages: Sequence[range], known_kwargs: Mapping[str, Any]
) -> tuple[list[list[int]], list[str]]:
    """Return the stride of the queries in each stage.

    In v2 they follow from the tables of relative positions. Such a table spans the larger of two grids, which is the
    queries' in all blocks but the one that pools them, so a stage of one block does not tell its stride.
    """
    if "blocks.0.attn.rel_pos_h" not in state:
        pools_queries = has_pool(state, "q")
        is_strided = [all(pools_queries) or pools_queries[stage.start] for stage in stages[1:]]
        return [[1, 1, 1], *([1, 2, 2] if strided else [1, 1, 1] for strided in is_strided)], []
    t_sizes, h_sizes = rel_pos_sizes(state, "t"), rel_pos_sizes(state, "h")
    t, h = t_sizes[0], h_sizes[0]
    strides, assumed = [[1, 1, 1]], []
    for number, stage in enumerate(stages[1:], 2):
        if len(stage) > 1:
            t_stride, h_stride = round(t / t_sizes[stage[-1]]), round(h / h_sizes[stage[-1]])
        else:
            t_stride, h_stride = 1, 2
            if "q_strides" not in known_kwargs:
                assumed.append(f"q_strides=[1, 2, 2] in stage {number}, whose only block does not tell")
        strides.append([t_stride, h_stride, h_stride])
        t, h = -(-t // t_stride), -(-h // h_stride)
    return strides, assumed


def rel_pos_sizes(state: Weights, axis: str) -> list[int]:
    """Return for each block the number of tokens along an axis: a table of relative positions has 2 n - 1 rows."""
    return [(len(state[f"blocks.{block}.attn.rel_pos_{axis}"]) + 1) // 2 for block in range(count_blocks(state))]


def infer_mvit_clip_size(
    state: Weights, patch_stride: Sequence[int], known_kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    t_stride, h_stride, _ = patch_stride
    if "blocks.0.attn.rel_pos_h" not in state:
        num_frames = num_positions(state, "pos_embed_temporal") * t_stride
        image_size = fit_image_size(num_positions(state, "pos_embed_spatial"), h_stride, known_kwargs)
        return {"num_frames": num_frames, "image_size": image_size}, []
    assumed = [] if "residual_pooling" in known_kwargs else ["residual_pooling=True"]
    image_size = known_kwargs.get("image_size", rel_pos_sizes(state, "h")[0] * h_stride)
    if "image_size" not in known_kwargs:
        assumed.append(f"image_size={image_size}")
    return {"num_frames": rel_pos_sizes(state, "t")[0] * t_stride, "image_size": image_size}, assumed


def infer_mvit_options(state: Weights, known_kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments that say where MViT pools, normalizes and widens."""
    assumed = [] if "kv_stride" in known_kwargs else ["kv_stride=[1, 8, 8]"]
    blocks = range(count_blocks(state))
    expand_attn = any(len(state[f"blocks.{block}.norm1.weight"]) != attention_dim(state, block) for block in blocks)
    pool_kernels = [list(tensor.shape[2:]) for key, tensor in state.items() if ".pool_" in key]
    options: dict[str, Any] = {
        "pool_kernel": pool_kernels[0] if all(kernel == pool_kernels[0] for kernel in pool_kernels) else None,
        "expand_attn": expand_attn,
        "pool_queries": "always" if all(has_pool(state, "q")) else "strided",
        "pool_keys": "always" if all(has_pool(state, "k")) else "strided",
        "pooling": "cls",
    }
    if (
        options["pool_keys"] == "strided"
    ):  # only in SlowFast's code of 2021, which has this eps in the norms after pooling
        options["pool_norm_eps"] = 1e-5
        assumed.append("pool_norm_eps=1e-05, as in SlowFast's code of the time when it pooled no keys at stride 1")
    if "blocks.0.attn.rel_pos_h" in state and not expand_attn and "head.weight" in state:
        options["pooling"] = "fc_norm"
        assumed.append("pooling=fc_norm, as in the fine-tuning of MaskFeat")
    return options, assumed
