"""Parameter groups, optimisers, how gradients are clipped, and the learning rate and weight decay of each step."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.optim import Lamb, Lion
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

OPTIMIZERS = ("adamw", "sgd", "lamb", "lion")

# Whole words of a parameter's own name: matches temporal_pos_embed and pos_embed_spatial, not pos_embedding.
LEARNED_TOKENS = re.compile(r"(?:^|_)(?:cls_token|mask_token|pos_embed|time_embed|rel_pos)(?:_|$)")


def takes_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """False for biases, norms (all that is 1-D) and learned tokens and positions."""
    own_name = name.rpartition(".")[2]
    return parameter.ndim > 1 and own_name != "bias" and not LEARNED_TOKENS.search(own_name)


def layer_of(name: str, depths: Sequence[int]) -> int:
    """0 for embeddings and tokens, from 1 on for the blocks, then what follows them.

    `depths` are the numbers of blocks of the encoder and, in a factorised one, of the temporal encoder behind it; the
    first one's norm, the second one's token and positions lie between them.
    """
    block = re.match(r"(?:backbone\.)?(temporal_)?blocks\.(\d+)\.", name)
    own_name = name.rpartition(".")[2]
    if block:
        return int(block[2]) + 1 + (depths[0] if block[1] else 0)
    if len(depths) > 1 and (own_name in ("temporal_cls_token", "temporal_pos_embed") or name.startswith("norm.")):
        return depths[0]
    return 0 if LEARNED_TOKENS.search(own_name) or "patch_embed" in name else sum(depths) + 1


def parameter_groups(network: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups with and without weight decay, which together hold every trainable parameter once.

    layer_decay < 1 makes a pair for each layer: `lr_scale` is layer_decay to the power of the number of layers that
    follow (BEiT's rule, as MaskFeat's fine-tuning has it).
    """
    depths = [len(getattr(network, name)) for name in ("blocks", "temporal_blocks") if hasattr(network, name)]
    layers = sum(depths) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            layer = layer_of(name, depths) if layer_decay < 1.0 else layers
            decays = takes_weight_decay(name, parameter)
            new = {"params": [], "weight_decay": weight_decay * decays, "decays": decays,
                   "lr_scale": layer_decay ** (layers - layer)}  # fmt: skip
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
    """adamw, sgd (Nesterov, 0.9 instead of `betas`), or timm's lamb and lion, which are never fused."""
    groups = parameter_groups(network, weight_decay, layer_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if name == "sgd":
        sgd = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=fused)
        for group in sgd.param_groups:  # a first step that is skipped would leave them as memory was found
            sgd.state.update((p, {"momentum_buffer": torch.zeros_like(p)}) for p in group["params"])
        return sgd
    if name == "lamb":  # without its own clipping: clip_gradients() is there for all
        return Lamb(groups, lr=lr, betas=betas, max_grad_norm=None, decoupled_decay=True)
    if name == "lion":
        return Lion(groups, lr=lr, betas=betas)
    raise ValueError(f"unknown optimiser {name!r}: expected one of {', '.join(OPTIMIZERS)}")


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float, each: bool = False) -> Tensor:
    """Scale gradients whose norm is above `largest` (0: none are) and return the norm () of them all before.

    The norm is that of all gradients together or, with `each`, of every parameter's by itself (as DINO clips).
    """
    held = [p for p in parameters if p.grad is not None]
    if not each or not largest:
        return clip_grad_norm_(held, largest or float("inf"))
    grads = [p.grad for p in held if p.grad is not None]
    norms = torch._foreach_norm(grads)
    torch._foreach_mul_(grads, [(largest / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.linalg.vector_norm(torch.stack(list(norms)))
