"""Print parameters and FLOPs of networks, and the published weights that fit them:

    python -m networks.flops                                        all variants, those for pre-training too
    python -m networks.flops timesformer_b image_size=448           one of them, with other arguments

One FLOP is one multiply-add, as in the papers, of convolutions and matrix products, in the forward pass of one clip.
They are counted by torch.utils.flop_counter on the meta device, without computing anything. MViTv2's relative position
embeddings count as the sum in its paper; the additional columns that our fused kernel multiplies are not counted.
Of a pre-training the published share of a clip is hidden.
Below a network are the weights that model.pretrained takes, their license and published top-1 accuracy.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from networks import PRETRAINING, VARIANTS, build
from networks.arguments import parse_network_args
from networks.jepa import JEPA
from networks.masking import draw_masks, multi_block_masks, upsample_mask
from networks.mvit_attention import ALIGNMENT, PooledAttention
from networks.pretraining import MaskedAutoencoder
from networks.published import describe
from utils.cli import run_command


def count_parameters(network: nn.Module) -> int:
    """Count the learned numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module) -> int:
    """Count the multiply-adds of one clip in the forward pass.

    The network must be on the meta device; it is left in eval mode and without gradients, whose hooks the counter would
    set on views of parameters.
    """
    shape: tuple[int, ...] = network.patch_embed.input_shape  # type: ignore[union-attr,assignment]
    network.eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *shape, device="meta"), *draw_positions(network))
    layers = [layer for layer in network.modules() if isinstance(layer, PooledAttention)]
    return counter.get_total_flops() // 2 - sum(count_extra_flops(layer) for layer in layers)


def draw_positions(network: nn.Module) -> tuple[Any, ...]:
    """Return what an autoencoder or a JEPA needs beside a clip: positions of what is visible and of what is predicted,
    on the meta device; () for other networks."""

    def positions(*chosen: np.ndarray) -> tuple[Tensor, ...]:
        return tuple(torch.empty(1, int(mask.sum()), dtype=torch.int64, device="meta") for mask in chosen)

    if isinstance(network, MaskedAutoencoder):
        hidden = draw_masks(network.default_mask, network.mask_grid, network.default_mask_ratio, [(0, 0, 0)])
        return positions(~hidden, upsample_mask(hidden, network.pixel_targets.grid))
    if isinstance(network, JEPA):
        return ([positions(~hidden, hidden) for hidden in multi_block_masks(network.mask_grid, [(0, 0, 0)])],)
    return ()


def count_extra_flops(layer: PooledAttention) -> int:
    """Count the multiply-adds with the extra columns by which a fused kernel adds relative position embeddings."""
    if not layer.has_rel_pos:
        return 0
    queries, keys = (1 + t * h * w for t, h, w in (layer.query_grid, layer.key_grid))
    columns = layer.head_dim + sum(layer.key_grid)
    return 2 * layer.num_heads * queries * keys * (columns + -columns % ALIGNMENT - layer.head_dim)


def format_row(name: str, **kwargs: Any) -> str:
    """Return the line of the table for a variant: clip, parameters in millions, GFLOPs."""
    with torch.device("meta"):
        network = build(name, **({} if name in PRETRAINING else {"num_classes": 400}) | kwargs)
    _, frames, height, width = network.patch_embed.input_shape  # type: ignore[union-attr,misc]
    clip = f"{frames}x{height}x{width}"
    return f"{name:<24} {clip:>11} {count_parameters(network) / 1e6:>9.2f} {count_flops(network) / 1e9:>9.1f}"


def print_table(argv: Sequence[str]) -> int:
    """Print a line for each variant named in `argv` (default: all), with the key=value arguments in it."""
    names = [argument for argument in argv if "=" not in argument] or [*VARIANTS, *PRETRAINING]
    kwargs = parse_network_args([argument for argument in argv if "=" in argument])
    rows = ("\n".join([format_row(name, **kwargs), *describe(name)]) for name in names)
    first_row = next(rows)  # before the heading: a mistake in the arguments shows here
    try:
        print(f"{'network':<24} {'clip':>11} {'M params':>9} {'GFLOPs':>9}\n{first_row}")
        for row in rows:
            print(row, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has stopped reading
        pass
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    errors = (TypeError, ValueError)
    return run_command("networks.flops", __doc__, print_table, argv, errors=errors, needs_arguments=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
