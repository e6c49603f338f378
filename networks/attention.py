"""What a network attends to: the weights of its attention layers, read beside the fused kernel that never makes them.

Shapes: B' rows of the layer's own batch (B clips; (B T) frames or (B n) patch positions where attention is divided),
h heads, N queries, N'' keys; the class token is first where the layer sees it.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from networks.layers import Attention


@torch.no_grad()
def attention_maps(network: nn.Module, video: Tensor, layers: Sequence[str] = ()) -> dict[str, Tensor]:
    """{"blocks.11.attn": (B', h, N, N'') float32, each row summing to 1} for `layers`, by default the last block's.

    The network runs as it is, compiled or not, in the mode it is in, and is left as it was. MViT's N'' are pooled keys.
    Raises ValueError that lists the layers for a name that is none.
    """
    network = getattr(network, "module", network)  # DistributedDataParallel's
    known = {name: module for name, module in network.named_modules() if isinstance(module, Attention)}
    wanted = list(layers) or [list(known)[-1]]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no attention layer {', '.join(unknown)}; there are {', '.join(known)}")
    maps: dict[str, Tensor] = {}

    def look(name: str, layer: Attention, inputs: tuple[Tensor]) -> None:
        query, key, _ = layer.query_key_value(inputs[0])
        maps[name] = (query.float() @ key.float().transpose(-2, -1) * layer.scale).softmax(-1)

    hooks = [known[name].register_forward_pre_hook(partial(look, name)) for name in wanted]
    try:
        network.forward_features(video)  # type: ignore[operator]  # not network(...), which may be compiled
    finally:
        for hook in hooks:
            hook.remove()
    return maps
