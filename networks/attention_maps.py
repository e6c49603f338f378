"""What a network attends to: the weights of its attention layers, read beside the fused kernel that never makes them.

Shapes: B' rows of the layer's own batch (B clips; (B T) frames or (B n) patch positions where attention is divided),
h heads, N queries, N'' keys; the class token is first where the layer sees it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.layers import Attention, Triple
from networks.mvit_attention import PooledAttention

_MOST_TOKENS = 5000  # of a clip, whose attention to each other is multiplied layer by layer


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


@torch.no_grad()
def attended(network: nn.Module, video: Tensor, rollout: bool = False) -> Tensor:
    """(B, C, T, H, W) -> (B, t, h, w): the share of its attention that what is classified gives to each patch.

    In the last layer, the mean over heads: of the class token, or of all tokens where their mean is classified; a
    factorised encoder's frames count as much as its temporal encoder looks at them. `rollout` goes back through all
    layers, each half attention and half what stays as it is (Abnar and Zuidema, 2020, section 3). Raises ValueError for
    it where queries are pooled (MViT) or tokens too many.
    """
    network = getattr(network, "module", network)
    network = getattr(network, "backbone", network)
    blocks: list[Any] = list(network.blocks)  # type: ignore[arg-type]
    grid: Triple = network.patch_embed.grid  # type: ignore[union-attr,assignment]
    first = int(getattr(network, "has_cls_token", True))  # tokens before the patches
    if rollout and isinstance(blocks[-1].attn, PooledAttention):
        raise ValueError("attention roll-out: MViT pools its queries, so layers cannot be multiplied; last layer only")
    if rollout and math.prod(grid) > _MOST_TOKENS:
        raise ValueError(f"attention roll-out: {math.prod(grid)} tokens are more than {_MOST_TOKENS}; last layer only")
    temporal: Sequence[Any] = list(getattr(network, "temporal_blocks", ()))
    names = [name for name, module in network.named_modules() if isinstance(module, Attention)]
    if not rollout:
        names = [f"blocks.{len(blocks) - 1}.attn"] + [f"temporal_blocks.{len(temporal) - 1}.attn"] * bool(temporal)
    maps = {name: weights.mean(1) for name, weights in attention_maps(network, video, names).items()}

    if isinstance(blocks[-1].attn, PooledAttention):
        grid = blocks[-1].attn.key_grid
    t, h, w = grid
    layers = [maps[name] for name in names if name.startswith("blocks.") and name.endswith(".attn")]
    if hasattr(blocks[0], "temporal_attn"):
        layers = [_across(layer, grid, first) for layer in layers]
        times = [_alongside(maps[f"blocks.{n}.temporal_attn"], grid, first) for n in range(len(blocks)) if rollout]
        layers = [layer for pair in zip(times, layers, strict=True) for layer in pair] if rollout else layers
    seen = _of_output(_through(layers, rollout), network.pooling == "cls", first)
    if len(seen) == len(video):
        joint = hasattr(network, "time_embed") and network.attention == "joint"
        return _shares(rearrange(seen, f"B {'(h w t)' if joint else '(t h w)'} -> B t h w", t=t, h=h, w=w))
    frames = _shares(rearrange(seen, "(B t) (h w) -> B t h w", t=t, h=h))
    if temporal:
        layers = [maps[name] for name in names if name.startswith("temporal_blocks.")]
        of_frames = _of_output(_through(layers, rollout), network.pooling == "cls", first)
        frames = frames / reduce(frames, "B t h w -> B t 1 1", "sum") * rearrange(of_frames, "B t -> B t 1 1")
    return _shares(frames)


def _of_output(weights: Tensor, by_class: bool, first: int) -> Tensor:
    """(B', N, N) -> (B', patches): of the class token, or the mean of all patches."""
    return weights[:, 0, first:] if by_class else weights[:, first:, first:].mean(1)


def _through(layers: Sequence[Tensor], rollout: bool) -> Tensor:
    """The last layer; or all, one after the other, each half of what it was given."""
    if not rollout:
        return layers[-1]
    whole = torch.eye(layers[0].shape[-1], device=layers[0].device)
    for layer in layers:
        whole = (layer @ whole + whole) / 2
    return whole


def _across(space: Tensor, grid: Triple, first: int) -> Tensor:
    """(B t, [1 +] n, [1 +] n), frame by frame -> (B, N, N) of the clip, patches in the order (t n)."""
    t, n = grid[0], grid[1] * grid[2]
    space = rearrange(space, "(B t) q k -> B t q k", t=t)
    whole = space.new_zeros(len(space), first + t * n, first + t * n)
    for frame in range(t):
        here = slice(first + frame * n, first + (frame + 1) * n)
        whole[:, here, here] = space[:, frame, first:, first:]
        if first:  # the frames' class tokens are copies of one, and their mean goes on
            whole[:, here, 0] = space[:, frame, 1:, 0]
            whole[:, 0, here] = space[:, frame, 0, 1:] / t
            whole[:, 0, 0] += space[:, frame, 0, 0] / t
    return whole


def _alongside(time: Tensor, grid: Triple, first: int) -> Tensor:
    """(B n, t, t), patch position by patch position -> (B, N, N) as _across(); a class token sees itself."""
    t, n = grid[0], grid[1] * grid[2]
    time = rearrange(time, "(B n) q k -> B n q k", n=n)
    whole = time.new_zeros(len(time), first + t * n, first + t * n)
    whole[:, :first, :first] = 1
    for position in range(n):
        whole[:, first + position :: n, first + position :: n] = time[:, position]
    return whole


def _shares(seen: Tensor) -> Tensor:
    """Divided by the sum over the clip."""
    return seen / reduce(seen, "B t h w -> B 1 1 1", "sum")
