"""Parameters and FLOPs of the variants:

    python -m networks.flops                                        all of them
    python -m networks.flops timesformer_b image_size=448           one, with other arguments

One FLOP is one multiply-add, as in the papers, of convolutions and matrix products, for one clip forward. Counted by
torch.utils.flop_counter on the meta device: nothing is computed. MViTv2's relative positions count as the sum that the
paper has; our fused kernel multiplies some columns more instead, which are not counted.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from networks import VARIANTS, build
from networks.arguments import parse_settings
from networks.mvit_attention import ALIGNMENT, PooledAttention


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module) -> int:
    """Multiply-adds of one clip forward. The network must lie on the meta device."""
    shape: tuple[int, ...] = network.patch_embed.input_shape  # type: ignore[union-attr,assignment]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, *shape, device="meta"))
    fused = sum(fused_columns(layer) for layer in network.modules() if isinstance(layer, PooledAttention))
    return counter.get_total_flops() // 2 - fused


def fused_columns(layer: PooledAttention) -> int:
    """Multiply-adds with the columns of queries, keys and values that stand for a sum with relative positions."""
    if not layer.relative:
        return 0
    queries, keys = (1 + t * h * w for t, h, w in (layer.query_grid, layer.key_grid))
    width = layer.head_width + sum(layer.key_grid)
    return 2 * layer.heads * queries * keys * (width + -width % ALIGNMENT - layer.head_width)


def row(name: str, **kwargs: Any) -> str:
    with torch.device("meta"):
        network = build(name, **{"num_classes": 400} | kwargs)
    channels, frames, height, width = network.patch_embed.input_shape  # type: ignore[union-attr,misc]
    clip = f"{frames}x{height}x{width}"
    return f"{name:<17} {clip:>11} {count_parameters(network) / 1e6:>9.2f} {count_flops(network) / 1e9:>9.1f}"


def main(words: Sequence[str]) -> int:
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        names = [word for word in words if "=" not in word] or list(VARIANTS)
        settings = parse_settings([word for word in words if "=" in word])
        rows = (row(name, **settings) for name in names)
        first = next(rows)  # before the heading, in case it is a mistake
        print(f"{'network':<17} {'clip':>11} {'M params':>9} {'GFLOPs':>9}\n{first}")
        for line in rows:
            print(line, flush=True)
    except BrokenPipeError:  # | head
        return 0
    except (TypeError, ValueError) as error:
        print(f"networks.flops: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
