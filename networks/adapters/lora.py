"""LoRA (Hu et al., 2021, section 4.1): a matrix of low rank is learned beside the fixed weight of a linear layer.

Shapes: D_in and D_out the dimensions of the layer, r the rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from networks.argument_checks import check_positive
from networks.extend import extend, remove_extension


class LoRA(nn.Linear):
    """Extend a linear layer by lora_b @ lora_a, which is 0 at first, times `lora_scale`."""

    lora_a: nn.Parameter  # (r, D_in)
    lora_b: nn.Parameter  # (D_out, r)
    lora_dropout: nn.Module
    lora_scale: float

    def forward(self, features: Tensor) -> Tensor:
        """(..., D_in) -> (..., D_out)."""
        low_rank = F.linear(F.linear(self.lora_dropout(features), self.lora_a), self.lora_b)
        return super().forward(features) + low_rank * self.lora_scale


def add_lora(
    network: nn.Module,
    skip: Sequence[str] = (),
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Sequence[str] = ("qkv", "proj"),
) -> list[str]:
    """Extend the linear layers whose names match a pattern, and return the names of the new parameters.

    `target_modules` are compared with a name or its last parts: qkv and attn.* fit blocks.0.attn.qkv. Modules below
    the prefixes to `skip` stay as they are. `alpha` / rank scales what is learned; `dropout` applies to its input. The
    first matrix is drawn from a normal distribution as in the paper, with the variance that its authors' code has; the
    second is 0. Raises ValueError for a pattern that fits no linear layer, and for attention that never calls one.
    """
    check_positive(rank=rank)
    if not alpha > 0:
        raise ValueError(f"alpha={alpha}: expected a number above 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: expected 0 to below 1")
    linears = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and not f"{name}.".startswith(tuple(skip))
    }
    for name, module in network.named_modules():
        if isinstance(module, EvaAttention) and module.q_bias is not None:
            raise ValueError(f"{name} has biases of its own and takes the weights of its layers: lora would do nothing")
    chosen = {name: any(matches(name, pattern) for pattern in target_modules) for name in linears}
    for pattern in target_modules:
        if not any(matches(name, pattern) for name in linears):
            ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears))
            raise ValueError(f"target_modules: no linear layer fits {pattern}; their names end in {ends}")
    added = []
    for name in (name for name in linears if chosen[name]):
        extend_linear(linears[name], rank, alpha, dropout)
        added += [f"{name}.lora_a", f"{name}.lora_b"]
    return added


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern with * and ? fits a dotted name or the last parts of it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def extend_linear(linear: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
    """Turn a linear layer into one with LoRA, in place."""
    weight = linear.weight
    linear.lora_a = nn.Parameter(weight.new_empty(rank, linear.in_features))
    linear.lora_b = nn.Parameter(weight.new_zeros(linear.out_features, rank))
    nn.init.normal_(linear.lora_a, std=1 / math.sqrt(3 * linear.in_features))
    linear.lora_dropout = nn.Dropout(dropout) if dropout else nn.Identity()
    linear.lora_scale = alpha / rank  # type: ignore[assignment]
    extend(linear, LoRA)


@torch.no_grad()
def merge_lora(network: nn.Module) -> None:
    """Add what was learned to the weights, in place; the layers are plain ones again."""
    for module in network.modules():
        if isinstance(module, LoRA):
            module.weight += module.lora_scale * (module.lora_b @ module.lora_a)
            remove_extension(module, LoRA)
            for name in ("lora_a", "lora_b", "lora_dropout", "lora_scale"):
                delattr(module, name)
