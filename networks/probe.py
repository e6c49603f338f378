"""Probes: classifiers on the tokens of a frozen encoder, which is how encoders are compared.

An attentive probe pools the tokens by a learned query (Bardes et al., "V-JEPA", 2024, section 4.3), after blocks of
self-attention in V-JEPA 2 (Assran et al., 2025, section 5). A linear probe classifies the mean of the tokens, behind a
batch norm as in MAE (He et al., 2022, appendix A.1) or without. Many linear probes, or attentive ones of one block, on
the same tokens cost little more than one.

Shapes: B videos, L clips per video, C channels, T frames, H W pixels; N tokens of all clips, D their dimension, P
probes, K classes.
"""

import re

import torch
from einops import reduce
from torch import Tensor, nn

from networks.attentive_pooler import AttentivePooler, standardize
from networks.layers import init_linear

KINDS = "attentive, attentive_N (N blocks), linear or linear_bn (with batch norm)"


class BatchStandardize(nn.Module):
    """Batch norm without weight and bias of features that need no gradient, over the batches of all processes."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, embed_dim: int, momentum: float = 0.1, eps: float = 1e-6):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(embed_dim))
        self.register_buffer("running_var", torch.ones(embed_dim))

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        features = features.float()
        if not self.training:
            return (features - self.running_mean) / (self.running_var + self.eps).sqrt()
        count = len(features) * _num_processes()
        mean = _sum_over_processes(features.sum(0)) / count
        var = _sum_over_processes((features - mean).square().sum(0)) / count
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / max(count - 1, 1), self.momentum)
        return (features - mean) / (var + self.eps).sqrt()


def _num_processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _sum_over_processes(tensor: Tensor) -> Tensor:
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


class LinearProbe(nn.Module):
    """A linear classifier of the mean of the tokens."""

    takes = "mean"

    def __init__(self, embed_dim: int, num_classes: int, batch_norm: bool):
        super().__init__()
        self.norm = BatchStandardize(embed_dim) if batch_norm else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes)
        self.apply(init_linear)

    def pool(self, mean: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return self.norm(mean)


class AttentiveProbe(nn.Module):
    """A linear classifier of what an attentive pooler of `depth` blocks makes of the tokens."""

    def __init__(self, embed_dim: int, num_classes: int, num_heads: int, depth: int):
        super().__init__()
        self.pooler = AttentivePooler(embed_dim, num_heads, depth)
        self.head = nn.Linear(embed_dim, num_classes)
        self.apply(init_linear)
        self.takes = "tokens" if depth > 1 else "standardized"

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, N, D), standardized if the pooler has one block -> (B, D)."""
        return self.pooler(tokens) if self.takes == "tokens" else self.pooler.pool_standardized(tokens)


def make_probe(kind: str, embed_dim: int, num_classes: int, num_heads: int) -> LinearProbe | AttentiveProbe:
    """Build a probe of one of KINDS. Raises ValueError for another one."""
    if not re.fullmatch(r"attentive(_[1-9]\d*)?|linear(_bn)?", kind):
        raise ValueError(f"probe {kind!r}: expected {KINDS}")
    if kind.startswith("linear"):
        return LinearProbe(embed_dim, num_classes, batch_norm=kind == "linear_bn")
    return AttentiveProbe(embed_dim, num_classes, num_heads, depth=int(kind.partition("_")[2] or 1))


def probe_inputs(tokens: Tensor, takes: set[str]) -> dict[str, Tensor]:
    """Return what the probes take, each computed once: the tokens (B, N, D), standardized, or their mean (B, D)."""
    inputs = {"tokens": tokens}
    if "mean" in takes:
        inputs["mean"] = reduce(tokens, "B N D -> B D", "mean")
    if "standardized" in takes:
        inputs["standardized"] = standardize(tokens)
        if torch.is_autocast_enabled(tokens.device.type):  # once, not for each probe
            inputs["standardized"] = inputs["standardized"].to(torch.get_autocast_dtype(tokens.device.type))
    return inputs
