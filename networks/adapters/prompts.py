"""Deep visual prompt tuning (Jia et al., 2022, section 3.2): learned tokens beside those of the clip in every block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

from networks.argument_checks import check_positive
from networks.extend import extend
from networks.layers import Attention


class Prompted(nn.Module):
    """Extend a block by prompt tokens, which follow the tokens of a clip or frame and are dropped after the block."""

    prompt_tokens: nn.Parameter  # (1, P, D)

    def forward(self, tokens: Tensor, **options: Any) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        prompted = torch.cat([tokens, self.prompt_tokens.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=1)
        return super().forward(prompted, **options)[:, : tokens.shape[1]]  # type: ignore[misc]


def find_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and modules of the pretrained blocks: not those over time after an image encoder."""
    backbone = getattr(network, "backbone", None)
    for name in ("backbone.blocks",) if backbone is not None else ("blocks", "temporal_blocks"):
        blocks: Any = network.get_submodule(name) if hasattr(backbone or network, name.rpartition(".")[2]) else ()
        yield from ((f"{name}.{index}", block) for index, block in enumerate(blocks))


def add_prompts(network: nn.Module, *, num_tokens: int = 10) -> list[str]:
    """Give each block prompt tokens of its own, and return the names of the new parameters.

    They are drawn as by the paper's authors: from a uniform distribution that depends on the dimensions of the patch
    embedding. Raises ValueError for a network in whose attention tokens have a place in time and space (divided,
    pooled or with rotary positions), and for run-length tokenization.
    """
    check_positive(num_tokens=num_tokens)
    if getattr(network, "rlt_threshold", 0):
        raise ValueError("prompt tokens: expected rlt_threshold=0, as run-length tokenization would not see them")
    (channels, _, height, width), (_, rows, columns) = network.patch_embed.input_shape, network.patch_embed.grid  # type: ignore[union-attr,misc]
    patch = channels * (height // rows) * (width // columns)  # numbers in a patch
    blocks = dict(find_blocks(network))
    for name, block in blocks.items():
        attn = getattr(block, "attn", None)
        is_plain = type(attn) in (Attention, TimmAttention) and not hasattr(block, "temporal_attn")
        if not is_plain:
            kind = f"{type(block).__name__} with {type(attn).__name__}"
            raise ValueError(f"prompt tokens: expected blocks of plain attention over tokens, {name} is a {kind}")
    if not blocks:
        raise ValueError(f"prompt tokens: {type(network).__name__} has no blocks")
    for block in blocks.values():
        norm = block.norm1
        dim = norm.normalized_shape[0]  # type: ignore[index,union-attr]
        bound = math.sqrt(6 / (patch + dim))  # type: ignore[operator]
        tokens = torch.empty(1, num_tokens, dim, device=norm.weight.device)  # type: ignore[arg-type,union-attr]
        block.prompt_tokens = nn.Parameter(tokens.uniform_(-bound, bound))
        extend(block, Prompted)
    return [f"{name}.prompt_tokens" for name in blocks]
