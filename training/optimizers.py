"""Parameter groups, optimizers and gradient clipping."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch
from timm.optim import Lamb, Lion
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from configs.schema import Optim
from networks.adapters import HEADS

OPTIMIZERS = get_args(Optim.model_fields["name"].annotation)

# Whole words of a parameter's own name: matches temporal_pos_embed and pos_embed_spatial, not pos_embedding.
LEARNED_TOKENS = re.compile(
    r"(?:^|_)(?:cls_token|reg_token|mask_tokens?|query_tokens|latent|prompt_tokens|pos_embed|time_embed|mod_embed|rel_pos)(?:_|$)"
)


def takes_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """Return False for biases, norms (everything 1-D), and learned tokens and position embeddings."""
    own_name = name.rpartition(".")[2]
    return parameter.ndim > 1 and own_name != "bias" and not LEARNED_TOKENS.search(own_name)


def layer_of(name: str, depths: Sequence[int]) -> int:
    """Return the layer of a parameter: 0 for embeddings and tokens, 1 and up for the blocks, then what follows them.

    `depths` are the numbers of blocks of the encoder and, if it is factorized, of the temporal encoder after it; the
    norm of the first and the token and positions of the second lie between them. An attentive pooler is a part of what
    follows.
    """
    block = re.match(r"(?:backbone\.)?(temporal_)?blocks\.(\d+)\.", name)
    own_name = name.rpartition(".")[2]
    if block:
        return int(block[2]) + 1 + (depths[0] if block[1] else 0)
    is_between = len(depths) > 1 and name.startswith(("norm.", "backbone.norm."))
    if is_between or own_name in ("temporal_cls_token", "temporal_pos_embed"):
        return depths[0]
    is_embedding = LEARNED_TOKENS.search(own_name) or "patch_embed" in name
    return 0 if is_embedding and "pool" not in name else sum(depths) + 1


def parameter_groups(
    network: nn.Module, weight_decay: float, layer_decay: float = 1.0, backbone_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Group the trainable parameters with and without weight decay; each parameter is in one group.

    `backbone_lr_scale` multiplies the lr of all but the head and an attentive pooler before it.

    With layer_decay < 1 there are two groups per layer: `lr_scale` is layer_decay to the power of the number of layers
    that follow (the rule of BEiT, used by MaskFeat's fine-tuning). timm's param_groups_layer_decay needs a
    group_matcher on each network for the same."""
    depths = [len(getattr(network, name)) for name in ("blocks", "temporal_blocks") if hasattr(network, name)]
    layers = sum(depths) + 1
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            layer = layer_of(name, depths) if layer_decay < 1.0 else layers
            decays, is_head = takes_weight_decay(name, parameter), name.startswith(HEADS) or backbone_lr_scale == 1
            new = {
                "params": [],
                "weight_decay": weight_decay * decays,
                "decays": decays,
                "lr_scale": layer_decay ** (layers - layer) * (1.0 if is_head else backbone_lr_scale),
            }
            groups.setdefault((layer, decays, is_head), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def build_optimizer(  # noqa: PLR0913  # the keys of the configuration
    network: nn.Module,
    name: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    fused: bool = False,
    layer_decay: float = 1.0,
    backbone_lr_scale: float = 1.0,
) -> torch.optim.Optimizer:
    """Build adamw, sgd (Nesterov momentum of 0.9, no `betas`), or timm's lamb or lion, which are never fused."""
    groups = parameter_groups(network, weight_decay, layer_decay, backbone_lr_scale)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if name == "sgd":
        sgd = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=fused)
        for group in sgd.param_groups:  # otherwise a first step that is skipped leaves them uninitialized
            sgd.state.update((p, {"momentum_buffer": torch.zeros_like(p)}) for p in group["params"])
        return sgd
    if name == "lamb":  # without its own clipping, as clip_gradients() serves all optimizers
        return Lamb(groups, lr=lr, betas=betas, max_grad_norm=None, decoupled_decay=True)
    if name == "lion":
        return Lion(groups, lr=lr, betas=betas)
    raise ValueError(f"unknown optimizer {name!r}: expected one of {', '.join(OPTIMIZERS)}")


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, per_param: bool = False) -> Tensor:
    """Scale gradients whose norm is above `max_norm` (0: no clipping); return the norm () of all of them before.

    The norm that is compared is that of all gradients together or, with `per_param`, of each parameter's gradient, as
    DINO clips.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    if not per_param or not max_norm:
        return clip_grad_norm_(with_grad, max_norm or float("inf"))
    grads = [p.grad for p in with_grad if p.grad is not None]
    norms = torch._foreach_norm(grads)
    torch._foreach_mul_(grads, [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.linalg.vector_norm(torch.stack(list(norms)))
