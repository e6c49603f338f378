"""Attention maps: the weights of attention layers, computed beside the fused kernel, which never materializes them.

Shapes: B' the batch of a layer (B clips; (B T) frames or (B n) patch positions where attention is divided), h heads,
N queries, N'' keys. Where a layer has a class token, it comes first.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.adapters.prompts import Prompted
from networks.attentive_pooler import CrossAttention
from networks.layers import Attention, AttentionLayout
from networks.pretraining import PretrainingNetwork
from networks.probed_encoder import ProbedEncoder
from networks.run_length import all_tokens

_MAX_ROLLOUT_TOKENS = 5000  # of a clip: roll-out multiplies (tokens, tokens) matrices


@torch.no_grad()
def attention_maps(network: nn.Module, video: Tensor, layers: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return {"blocks.11.attn": (B', h, N, N'') float32, ...} of the named layers, by default of the last one.

    Rows sum to 1; prompt tokens are left out. In MViT, N'' counts the pooled keys. The network may be compiled and in
    either mode; it is left as it was. Raises ValueError that lists the layers if a name is unknown.
    """
    network = getattr(network, "module", network)  # of DistributedDataParallel
    attention_layers = {name: module for name, module in network.named_modules() if _has_attention(module)}
    names = list(layers) or [list(attention_layers)[-1]]
    unknown = [name for name in names if name not in attention_layers]
    if unknown:
        raise ValueError(f"no attention layer {', '.join(unknown)}; there are {', '.join(attention_layers)}")
    maps: dict[str, Tensor] = {}

    def keep(name: str, weights: Tensor) -> None:
        block = network.get_submodule(name.rpartition(".")[0])
        maps[name] = without_prompts(weights, block.prompt_tokens.shape[1]) if isinstance(block, Prompted) else weights

    def compute_map(name: str, layer: Attention | CrossAttention, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, CrossAttention):
            keep(name, layer.attention_weights(*inputs))
            return
        query, key, _ = layer.query_key_value(*inputs)
        keep(name, layer.attention_weights(query.float(), key.float()))

    def keep_map(name: str, dropout: nn.Module, inputs: tuple[Tensor]) -> None:
        keep(name, inputs[0].float())

    with ExitStack() as stack:
        for name in names:
            layer = attention_layers[name]
            if isinstance(layer, Attention | CrossAttention):
                hook = layer.register_forward_pre_hook(partial(compute_map, name))
            else:  # of timm: without its fused kernel, the weights pass through a dropout
                hook = layer.attn_drop.register_forward_pre_hook(partial(keep_map, name))  # type: ignore[union-attr]
                stack.callback(setattr, layer, "fused_attn", layer.fused_attn)
                layer.fused_attn = False
            stack.callback(hook.remove)
        stack.enter_context(all_tokens(network))
        network.forward_features(video)  # type: ignore[operator]  # network(video) may be compiled, without hooks
    return maps


def without_prompts(weights: Tensor, num_prompts: int) -> Tensor:
    """(B', h, N + P, N + P) -> (B', h, N, N): leave out prompt tokens, so that rows sum to 1 over the others."""
    weights = weights[..., :-num_prompts, :-num_prompts]
    return weights / weights.sum(-1, keepdim=True)


def _has_attention(module: nn.Module) -> bool:
    """Tell whether a module is an attention layer of this project or of timm."""
    is_of_timm = hasattr(module, "fused_attn") and hasattr(module, "attn_drop")
    return isinstance(module, Attention | CrossAttention) or is_of_timm


@torch.no_grad()
def attention_saliency(network: nn.Module, video: Tensor, rollout: bool = False) -> Tensor:
    """(B, C, T, H, W) -> (B, t, h, w): the share of attention that each patch gets from the classified feature.

    By default it is the last layer's attention, averaged over heads: that of the class token, of the query of an
    attentive pooler or probe, or the mean over all tokens if their mean is classified. In a factorized encoder, the
    frames are weighted by the attention of the temporal encoder; where that attends at each position (VideoPrism), the
    last layers of both encoders are multiplied. `rollout` multiplies all layers, each half attention and half identity
    (Abnar and Zuidema, 2020, section 3). Raises ValueError for roll-out if queries are pooled (MViT, Hiera) or if there
    are too many tokens.
    """
    network = _shown_network(getattr(network, "module", network), rollout)
    if isinstance(network, ProbedEncoder):
        return _pooler_saliency(network, video, network.attention_layout)
    backbone: Any = network.backbone if isinstance(network, PretrainingNetwork) else network
    layout: AttentionLayout = backbone.attention_layout
    _check_layout(layout, rollout)
    is_attentive = backbone.pooling == "attentive"
    if is_attentive and not rollout:  # the query of the pooler attends to all patches of the clip
        return _pooler_saliency(backbone, video, layout)
    names = _layer_names(layout.prefix + "blocks.{}.attn", len(backbone.blocks), rollout)
    time_names, pooler_names = [], []
    if layout.kind == "divided" and rollout:
        time_names = _layer_names("blocks.{}.temporal_attn", len(backbone.blocks), rollout)
    if layout.kind in ("factorized_encoder", "space_then_time"):
        time_names = _layer_names("temporal_blocks.{}.attn", len(backbone.temporal_blocks), rollout)
    if is_attentive:
        depth = len(backbone.pooler.blocks)
        pooler_names = [*(f"pooler.blocks.{index}.attn" for index in range(depth)), layout.pooler_layer]
    all_maps = attention_maps(backbone, video, [*names, *time_names, *pooler_names])
    maps = {name: weights.mean(1) for name, weights in all_maps.items()}

    layers = _layers_of_clip([maps[name] for name in names], [maps[name] for name in time_names], layout)
    if layout.kind == "space_then_time" and not rollout:
        layers = [layers[1] @ layers[0]]
    product = _combine(layers, rollout)
    if is_attentive:
        return _normalize(_to_grid(_pooler_attention(product, [maps[name] for name in pooler_names], layout), layout))
    saliency = _feature_attention(product, backbone.pooling, layout)
    if layout.kind not in ("per_frame", "factorized_encoder"):
        return _normalize(_to_grid(saliency, layout))
    t, h, _ = layout.grid
    saliency = _normalize(rearrange(saliency, "(B t) (h w) -> B t h w", t=t, h=h))
    if layout.kind == "factorized_encoder":
        time_product = _combine([maps[name] for name in time_names], rollout)
        frame_saliency = time_product.mean(1)
        if layout.has_temporal_cls_token:
            frame_saliency = _feature_attention(time_product, backbone.pooling, layout)
        saliency = (
            saliency / reduce(saliency, "B t h w -> B t 1 1", "sum") * rearrange(frame_saliency, "B t -> B t 1 1")
        )
    return _normalize(saliency)


def _shown_network(network: nn.Module, rollout: bool) -> nn.Module:
    """Return the network, or the encoder of a probe whose own attention cannot be shown."""
    if isinstance(network, ProbedEncoder) and (rollout or not network.attention_layout):
        return network.encoder
    return network


def _pooler_saliency(network: nn.Module, video: Tensor, layout: AttentionLayout | None) -> Tensor:
    """Return the attention (B, t, h, w) of the query of an attentive pooler, averaged over heads."""
    assert layout
    weights = attention_maps(network, video, [layout.pooler_layer])[layout.pooler_layer]
    return _normalize(_to_grid(weights.mean(1)[:, 0], layout))


def _pooler_attention(product: Tensor, pooler_layers: Sequence[Tensor], layout: AttentionLayout) -> Tensor:
    """Return the roll-out (B, N) of an attentive pooler: its blocks and its query, after the product of the encoder."""
    if layout.kind == "per_frame":
        first_patch = layout.num_prefix_tokens
        product = _spatial_to_full(product[:, first_patch:, first_patch:], layout._replace(num_prefix_tokens=0))
    *blocks, query_weights = pooler_layers
    for layer in blocks:
        product = (layer @ product + product) / 2
    return (query_weights @ product)[:, 0]


def _layers_of_clip(layers: list[Tensor], time_layers: list[Tensor], layout: AttentionLayout) -> list[Tensor]:
    """Return the layers in the order in which they are computed, over all tokens of a clip if they can be combined."""
    if layout.kind == "divided":
        layers = [_spatial_to_full(layer, layout) for layer in layers]
        pairs = zip([_temporal_to_full(layer, layout) for layer in time_layers], layers, strict=True)
        return [layer for pair in pairs for layer in pair] if time_layers else layers
    if layout.kind == "space_then_time":
        spatial = [_spatial_to_full(layer, layout) for layer in layers]
        return spatial + [_temporal_to_full(layer, layout) for layer in time_layers]
    return layers


def _to_grid(saliency: Tensor, layout: AttentionLayout) -> Tensor:
    """(B, N) of all patches of a clip -> (B, t, h, w)."""
    t, h, w = layout.grid
    return rearrange(saliency, f"B {layout.token_order} -> B t h w", t=t, h=h, w=w)


def _check_layout(layout: AttentionLayout, rollout: bool) -> None:
    """Raise ValueError if the tokens of a network cannot be shown, or its layers not be multiplied."""
    if layout.kind == "unrolled":
        raise ValueError("attention: the tokens of a Hiera with q_pool are in an order that cannot be shown")
    if not rollout:
        return
    if layout.kind == "pooled":
        raise ValueError(
            "attention roll-out: the network pools its queries, so its layers cannot be multiplied; use the last layer "
            "only"
        )
    num_tokens = math.prod(layout.grid)
    if num_tokens > _MAX_ROLLOUT_TOKENS:
        raise ValueError(
            f"attention roll-out: {num_tokens} tokens are more than {_MAX_ROLLOUT_TOKENS}; use the last layer only"
        )


def _layer_names(pattern: str, depth: int, rollout: bool) -> list[str]:
    """Return the names of the layers of all blocks for roll-out, else that of the last block."""
    return [pattern.format(index) for index in (range(depth) if rollout else [depth - 1])]


def _combine(layers: Sequence[Tensor], rollout: bool) -> Tensor:
    """Return the last layer (B', N, N''), or for roll-out the product of all, each averaged with the identity."""
    if not rollout:
        return layers[-1]
    product = torch.eye(layers[0].shape[-1], device=layers[0].device)
    for layer in layers:
        product = (layer @ product + product) / 2
    return product


def _feature_attention(weights: Tensor, pooling: str, layout: AttentionLayout) -> Tensor:
    """(B', N, N'') -> (B', patches): the attention of the class token, or the mean of that of all patches."""
    first_patch = layout.num_prefix_tokens
    return weights[:, 0, first_patch:] if pooling == "cls" else weights[:, first_patch:, first_patch:].mean(1)


def _spatial_to_full(spatial: Tensor, layout: AttentionLayout) -> Tensor:
    """(B t, [1 +] n, [1 +] n) of single frames -> (B, N, N) of the clip, with patches in the order (t n)."""
    (t, h, w), first_patch = layout.grid, layout.num_prefix_tokens
    n = h * w
    spatial = rearrange(spatial, "(B t) q k -> B t q k", t=t)
    full = spatial.new_zeros(len(spatial), first_patch + t * n, first_patch + t * n)
    for frame in range(t):
        patches = slice(first_patch + frame * n, first_patch + (frame + 1) * n)
        full[:, patches, patches] = spatial[:, frame, first_patch:, first_patch:]
        if first_patch:  # each frame has a copy of the class token, and the mean of the copies is the next block's
            full[:, patches, 0] = spatial[:, frame, 1:, 0]
            full[:, 0, patches] = spatial[:, frame, 0, 1:] / t
            full[:, 0, 0] += spatial[:, frame, 0, 0] / t
    return full


def _temporal_to_full(temporal: Tensor, layout: AttentionLayout) -> Tensor:
    """(B n, t, t) of single patch positions -> (B, N, N) as in `_spatial_to_full`; a class token attends to itself."""
    (t, h, w), first_patch = layout.grid, layout.num_prefix_tokens
    n = h * w
    temporal = rearrange(temporal, "(B n) q k -> B n q k", n=n)
    full = temporal.new_zeros(len(temporal), first_patch + t * n, first_patch + t * n)
    full[:, :first_patch, :first_patch] = 1
    for position in range(n):
        full[:, first_patch + position :: n, first_patch + position :: n] = temporal[:, position]
    return full


def _normalize(saliency: Tensor) -> Tensor:
    """Divide by the sum over each clip."""
    return saliency / reduce(saliency, "B t h w -> B 1 1 1", "sum")
