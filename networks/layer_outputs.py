"""The tokens that layers of a network put out, in its ordinary forward pass.

Shapes: B clips, N tokens, D their dimension.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from networks.run_length import all_tokens

PARTS = ("backbone", "encoder")  # inside which layers are found by their own names


def layer_outputs(network: nn.Module, video: Tensor, layers: Sequence[str]) -> list[Tensor]:
    """Return what each of the named layers puts out for clips (B, C, T, H, W), as it is.

    Raises ValueError, which lists the blocks, for an unknown layer, and for one that the network does not call.
    """
    modules = [find_layer(network, layer) for layer in layers]
    outputs: dict[str, Tensor] = {}

    def keep(layer: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[layer] = output

    with ExitStack() as stack:
        for layer, module in zip(layers, modules, strict=True):
            stack.callback(module.register_forward_hook(partial(keep, layer)).remove)
        stack.enter_context(all_tokens(network))
        network.forward_features(video)  # type: ignore[operator]  # not network(...), which may be compiled
    for layer in layers:
        if layer not in outputs:
            raise ValueError(f"layer {layer}: the network does not call it by itself")
    return [outputs[layer] for layer in layers]


def find_layer(network: nn.Module, layer: str) -> nn.Module:
    """Return a module by its name, also without that of the part of the network in which it is."""
    modules = dict(network.named_modules())
    for name in (layer, *(f"{part}.{layer}" for part in PARTS), f"encoder.backbone.{layer}"):
        if name in modules:
            return modules[name]
    blocks = [name for name in modules if name.rpartition(".")[0].endswith("blocks")]
    for part in PARTS:
        blocks = [name.removeprefix(f"{part}.") for name in blocks]
    raise ValueError(f"layer {layer}: the network has no such layer; its blocks are {', '.join(blocks)}")


def tokens_of_clips(output: Tensor, num_clips: int) -> Tensor:
    """Return the output of a layer as (B, N, D): one token where it has no tokens, all of them where it has rows.

    Rows are the frames of a clip where they are encoded one by one, or patch positions in blocks over time alone.
    """
    tokens = output.flatten(1, -2) if output.ndim > 2 else output[:, None]
    return rearrange(tokens, "(B rows) N D -> B (rows N) D", B=num_clips)


@torch.compiler.disable  # torch.compile would not see the hooks
def layer_patches(network: nn.Module, video: Tensor, layers: Sequence[str], num_prefix_tokens: int) -> list[Tensor]:
    """Return the tokens (B, N, D) that each of the named layers puts out, without class and register tokens.

    Raises ValueError as layer_outputs().
    """
    outputs = layer_outputs(network, video, layers)
    return [tokens_of_clips(output[..., num_prefix_tokens:, :], len(video)) for output in outputs]
