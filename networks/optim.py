"""Parameter groups, the optimiser and the learning rate of each step."""

import math
import re
from typing import Any

import torch
from torch import nn

# Whole words of a parameter's own name: matches temporal_pos_embed and pos_embed_spatial, not pos_embedding.
LEARNED_TOKENS = re.compile(r"(?:^|_)(?:cls_token|mask_token|pos_embed|time_embed|rel_pos)(?:_|$)")


def takes_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """False for biases, norms (all that is 1-D) and learned tokens and positions."""
    own_name = name.rpartition(".")[2]
    return parameter.ndim > 1 and own_name != "bias" and not LEARNED_TOKENS.search(own_name)


def layer_of(name: str, depth: int) -> int:
    """0 for embeddings and tokens, 1 to depth for the blocks, depth + 1 for what follows them."""
    block = re.match(r"(?:backbone\.)?blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if LEARNED_TOKENS.search(name.rpartition(".")[2]) or "patch_embed" in name else depth + 1


def parameter_groups(network: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups with and without weight decay, which together hold every trainable parameter once.

    layer_decay < 1 makes a pair for each layer: `lr_scale` is layer_decay to the power of the number of layers that
    follow (BEiT's rule, as MaskFeat's fine-tuning has it).
    """
    depth = len(network.blocks) if layer_decay < 1.0 else 0  # type: ignore[arg-type]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            layer = layer_of(name, depth) if layer_decay < 1.0 else depth + 1
            decays = takes_weight_decay(name, parameter)
            new = {"params": [], "weight_decay": weight_decay * decays, "lr_scale": layer_decay ** (depth + 1 - layer)}
            groups.setdefault((layer, decays), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def build_optimizer(
    network: nn.Module,
    name: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    fused: bool = False,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """adamw, or sgd with Nesterov momentum 0.9 (which does not read `betas`)."""
    groups = parameter_groups(network, weight_decay, layer_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=fused)
    raise ValueError(f"unknown optimiser {name!r}: expected adamw or sgd")


def cosine_lr(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0) -> float:
    """The learning rate of 0-based `step`: linear from min_lr up to lr, then half a cosine down to min_lr.

    It is lr at step == warmup_steps and min_lr from step == total_steps on; the ends that would be min_lr itself,
    often 0, lie just outside the run, so that no step is wasted on them.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps={warmup_steps}: must be >= 0 and less than total_steps={total_steps}")
    if not 0.0 <= min_lr <= lr:
        raise ValueError(f"min_lr={min_lr}: must lie between 0 and lr={lr}")
    if step < 0:
        raise ValueError(f"step={step}: must be >= 0")
    if step < warmup_steps:
        share = (step + 1) / (warmup_steps + 1)
    else:
        progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return min_lr + share * (lr - min_lr)
