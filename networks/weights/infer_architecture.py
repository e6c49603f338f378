"""The network that weights belong to: inferred from shapes and from config.json; the rest is assumed and reported."""

from collections.abc import Mapping
from typing import Any

import torch

from networks.arguments import ARGUMENTS
from networks.maskfeat import MaskFeat
from networks.weights.architecture import (
    Architecture,
    as_pair,
    count_blocks,
    fit_image_size,
    num_positions,
    patch_kernel_shape,
)
from networks.weights.infer_hiera import infer_hiera
from networks.weights.infer_mvit import infer_mvit
from networks.weights.infer_videoprism import infer_videoprism
from networks.weights.infer_vjepa2 import infer_vjepa2
from networks.weights.rename_keys import RenamedWeights, Weights

# Heads have 64 dimensions in all published transformers that can be read, except for these embed_dims with 16 heads.
HEAD_DIM = 64
EMBED_DIMS_OF_16_HEADS = (1280, 1408)  # ViT-H, ViT-g
EMBED_DIM_OF_8_HEADS = 640  # the decoder of VideoMAE's ViT-H


def infer_architecture(renamed: RenamedWeights, overrides: Mapping[str, Any]) -> Architecture:
    """Infer the network of a foreign checkpoint. `overrides` are arguments that take precedence over the inferred ones.

    Raises ValueError if no network that can be built here has such weights.
    """
    infer_functions = {
        "timesformer": infer_timesformer,
        "vivit": infer_vivit,
        "mvit": infer_mvit,
        "vjepa2": infer_vjepa2,
        "hiera": infer_hiera,
        "videoprism": infer_videoprism,
    }
    infer = infer_functions.get(renamed.format.architecture)
    if infer is None:
        raise ValueError(
            f"a {renamed.format.name} checkpoint is of an image network: it can start a video network "
            "(into=timesformer_b, or model.pretrained in train.py), but is not one itself"
        )
    state, known_kwargs = renamed.state, collect_known_kwargs(renamed, overrides)
    mask_cell = known_kwargs.pop("mask_cell", 2)
    decoder_heads = known_kwargs.pop("decoder_num_heads", None)
    known_kwargs.pop("predictor_num_heads", None)  # of a V-JEPA 2, which is read as its encoder
    kwargs: dict[str, Any] = {
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "in_chans": patch_kernel_shape(state)[1],
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / state["blocks.0.norm2.weight"].shape[0],
    }
    name, inferred, assumed = infer(state, known_kwargs)
    kwargs |= inferred | {key: value for key, value in known_kwargs.items() if key in ARGUMENTS}
    if "decoder_pred.weight" in state:
        return wrap_in_autoencoder(state, Architecture(name, kwargs, assumed), decoder_heads)
    if {"mask_token", "predict.weight", "predict.bias"} & state.keys() and "head.weight" not in state:
        name, kwargs = wrap_in_maskfeat(state, name, kwargs, mask_cell)
    return Architecture(name, kwargs, assumed)


def collect_known_kwargs(renamed: RenamedWeights, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are told by the format, by config.json or by the user."""
    known_kwargs = renamed.kwargs | dict(overrides)
    is_fixed = known_kwargs.get("pos_embed") == "sincos" and "pos_embed" not in renamed.state
    if renamed.format.architecture == "vivit" and not is_fixed:
        known_kwargs["pos_embed"] = "learned"
    return known_kwargs


def wrap_in_maskfeat(
    state: Weights, backbone: str, kwargs: Mapping[str, Any], mask_cell: int
) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of the MaskFeat network around a backbone; the number of frames whose HOG is predicted
    per token follows from the size of its last layer."""
    sizes = {key: kwargs[key] for key in ("num_frames", "image_size")}
    backbone_args = {key: value for key, value in kwargs.items() if key not in {*sizes, "num_classes"}}
    arguments = {"backbone": backbone, **sizes, "backbone_args": backbone_args, "mask_cell": mask_cell}
    with torch.device("meta"):
        target_dim = MaskFeat(**arguments).target_dim  # with one target frame
    num_outputs = len(state["predict.weight"])
    if num_outputs % target_dim:
        raise ValueError(f"predict.weight has {num_outputs} outputs, expected a multiple of {target_dim}")
    return f"maskfeat_{backbone}", arguments | {"target_frames": num_outputs // target_dim}


def wrap_in_autoencoder(state: Weights, encoder: Architecture, num_heads: int | None) -> Architecture:
    """Return the masked autoencoder around an encoder. The heads of its decoder are assumed if they are not known."""
    name, kwargs, assumed = encoder
    is_hiera = name.startswith("hiera")
    embed_dim = state["decoder_pred.weight"].shape[1]
    videomae_heads = 8 if embed_dim == EMBED_DIM_OF_8_HEADS else max(embed_dim // HEAD_DIM, 1)
    default_heads = 16 if is_hiera else videomae_heads
    sizes = {key: kwargs[key] for key in ("num_frames", "image_size")}
    arguments = {
        "backbone": name,
        **sizes,
        "backbone_args": {key: value for key, value in kwargs.items() if key not in {*sizes, "num_classes"}},
        "decoder_embed_dim": embed_dim,
        "decoder_depth": count_blocks(state, "decoder_blocks"),
        "decoder_num_heads": num_heads or default_heads,
        "decoder_mlp_ratio": len(state["decoder_blocks.0.mlp.fc1.weight"]) / embed_dim,
    }
    if num_heads is None:
        assumed = [*assumed, f"decoder_num_heads={default_heads}, as published"]
    return Architecture("mae_hiera_b" if is_hiera else "pretrain_videomae_b", arguments, assumed)


# ---- TimeSformer and ViViT -------------------------------------------------------------------------------------------


def infer_timesformer(state: Weights, known_kwargs: Mapping[str, Any]) -> Architecture:
    embed_dim, _, tubelet_size, patch_size, _ = patch_kernel_shape(state)
    assumed = []
    if "time_embed" in state:
        attention = "divided" if "blocks.0.temporal_attn.qkv.weight" in state else "joint"
        num_frames = num_positions(state, "time_embed") * tubelet_size
    else:
        attention, num_frames = "space", known_kwargs.get("num_frames", 8)
        if "num_frames" not in known_kwargs:
            assumed.append("num_frames=8")
    num_heads, assumed_heads = infer_num_heads(embed_dim, known_kwargs)
    kwargs = {
        "num_frames": num_frames,
        "image_size": fit_image_size(num_positions(state, "pos_embed") - 1, patch_size, known_kwargs),
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "depth": count_blocks(state),
        "attention": attention,
        "embed_dim": embed_dim,
        "num_heads": num_heads,
    }
    return Architecture("timesformer_b", kwargs, assumed + assumed_heads)


def infer_num_heads(embed_dim: int, known_kwargs: Mapping[str, Any]) -> tuple[int, list[str]]:
    if "num_heads" in known_kwargs:
        return known_kwargs["num_heads"], []
    num_heads = 16 if embed_dim in EMBED_DIMS_OF_16_HEADS else max(embed_dim // HEAD_DIM, 1)
    return num_heads, [f"num_heads={num_heads}, as published networks with embed_dim={embed_dim} have"]


def infer_vivit(state: Weights, known_kwargs: Mapping[str, Any]) -> Architecture:
    embed_dim, _, tubelet_size, patch_size, _ = patch_kernel_shape(state)
    cls_token = "cls_token" in state
    num_heads, assumed = infer_num_heads(embed_dim, known_kwargs)
    kwargs: dict[str, Any] = {
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "depth": count_blocks(state),
        "cls_token": cls_token,
        "pooling": "cls" if cls_token else "mean",
        "embed_dim": embed_dim,
        "num_heads": num_heads,
    }
    if "temporal_pos_embed" in state:
        kwargs |= {
            "attention": "factorized_encoder",
            "temporal_depth": count_blocks(state, "temporal_blocks"),
            "num_frames": (num_positions(state, "temporal_pos_embed") - cls_token) * tubelet_size,
            "image_size": fit_image_size(num_positions(state, "pos_embed") - cls_token, patch_size, known_kwargs),
        }
        return Architecture("vivit_fe_b", kwargs, assumed)
    if "blocks.0.temporal_attn.qkv.weight" in state:
        kwargs["attention"] = "factorized_attention"
    if known_kwargs["pos_embed"] == "sincos":
        defaults = {"num_frames": 16, "image_size": 224}
        assumed += [f"{key}={value}" for key, value in defaults.items() if key not in known_kwargs]
        return Architecture(
            "videomae_b", kwargs | {key: known_kwargs.get(key, defaults[key]) for key in defaults}, assumed
        )
    clip_positions = num_positions(state, "pos_embed") - cls_token
    num_frames, image_size, assumed_size = infer_clip_size(clip_positions, tubelet_size, patch_size, known_kwargs)
    return Architecture(
        "vivit_b", kwargs | {"num_frames": num_frames, "image_size": image_size}, assumed + assumed_size
    )


def infer_clip_size(
    clip_positions: int, tubelet_size: int, patch_size: int, known_kwargs: Mapping[str, Any]
) -> tuple[int, Any, list[str]]:
    """Return num_frames and image_size of a clip with so many positions, which the number alone does not determine."""
    if "num_frames" in known_kwargs:
        num_frames = known_kwargs["num_frames"]
        return num_frames, fit_image_size(clip_positions // (num_frames // tubelet_size), patch_size, known_kwargs), []
    image_size = known_kwargs.get("image_size", 224)
    height, width = as_pair(image_size)
    num_patches = (height // patch_size) * (width // patch_size)
    if clip_positions % num_patches:
        raise ValueError(f"{clip_positions} positions per clip do not fit image_size={image_size}; give num_frames=N")
    num_frames = clip_positions // num_patches * tubelet_size
    assumed = [] if "image_size" in known_kwargs else [f"image_size={image_size}, so num_frames={num_frames}"]
    return num_frames, image_size, assumed
