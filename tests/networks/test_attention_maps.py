"""Attention maps equal the attention that is used, and saliency lies where a network attends."""

import copy
import math

import pytest
import torch
from einops import rearrange
from timm.utils import AttentionExtract

import networks
from networks import attention_maps as attention_module
from networks.attention_maps import attention_maps, attention_saliency
from networks.attentive_pooler import CrossAttention
from networks.hiera_attention import MaskUnitAttention
from networks.layers import Attention
from tests.helpers.networks import DINOV3, EVERY, SMALL, SMALL_FRAMES, random_video, randomize

POOLED = [kind for kind in EVERY if kind.startswith(("mvit", "hiera"))]
UNPOOLED = [kind for kind in EVERY if kind not in POOLED]


def make_network(kind: str) -> torch.nn.Module:
    name, kwargs = EVERY[kind]
    return randomize(networks.build(name, **kwargs), seed=0)


# ---- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_attention_maps_reproduce_the_output_of_each_layer(kind):
    """The output computed from a map and the values equals that of the fused kernel."""
    name, settings = EVERY[kind]
    network = randomize(networks.build(name, **settings), seed=10)
    video = random_video(2, 3, 4, 32, 32)
    kinds = Attention | CrossAttention
    layers = {key: layer for key, layer in network.named_modules() if isinstance(layer, kinds)}
    inputs_and_outputs = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, output, key=key: inputs_and_outputs.update({key: (inputs, output)})
        )
        for key, layer in layers.items()
    ]
    maps = attention_maps(network, video, list(layers))
    for hook in hooks:
        hook.remove()
    assert layers or name == "frame_encoder_tiny", "its layers are timm's"
    for key, layer in layers.items():
        inputs, expected = inputs_and_outputs[key]
        if isinstance(layer, CrossAttention):
            torch.testing.assert_close(mix_values(layer, maps[key], *inputs), expected, atol=1e-5, rtol=1e-5)
            continue
        query, _, value = layer.query_key_value(*inputs)
        assert maps[key].shape == (*query.shape[:3], value.shape[2])
        torch.testing.assert_close(maps[key].sum(-1), torch.ones(maps[key].shape[:3]))
        mixed = maps[key] @ value
        if getattr(layer, "residual_pooling", False):
            mixed[:, :, 1:] += query[:, :, 1:, : layer.head_dim]
        is_in_units = isinstance(layer, MaskUnitAttention)
        actual = layer.merge_units(mixed, layer.count_units(inputs[0])) if is_in_units else layer.merge_heads(mixed)
        actual = layer.proj(actual) if hasattr(layer, "proj") else actual
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def mix_values(layer, weights, queries, tokens, weight=1.0, bias=0.0):
    """Return the output of cross-attention computed with explicit values, which the layer never makes."""
    value = rearrange(layer.kv(tokens * weight + bias), "B N (two h d) -> two B h N d", two=2, h=layer.num_heads)[1]
    mixed = rearrange(weights @ value, "B h Q d -> B Q (h d)")
    return layer.proj(mixed) if hasattr(layer, "proj") else mixed


def test_attention_maps_leave_the_network_unchanged():
    network = randomize(networks.build("timesformer_tiny", **SMALL), seed=11)
    video = random_video(2, 3, 4, 32, 32)
    before = network(video)
    assert list(attention_maps(network, video)) == ["blocks.1.temporal_attn"]
    assert list(attention_maps(network, video, ["blocks.0.attn"])) == ["blocks.0.attn"]
    assert torch.equal(network(video), before)
    assert not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match="no attention layer blocks.9.attn; there are blocks.0.attn"):
        attention_maps(network, video, ["blocks.9.attn"])


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", DINOV3])
def test_attention_maps_of_image_encoders_equal_those_of_timm(encoder):
    network = randomize(networks.build("frame_encoder_tiny", **SMALL_FRAMES | {"encoder": encoder}), seed=2)
    video = random_video(2, 3, 4, 32, 32)
    unfused = copy.deepcopy(network.backbone)
    for block in unfused.blocks:
        block.attn.fused_attn = False
    extract = AttentionExtract(unfused, names=["blocks.1.attn.softmax"], method="fx")
    with torch.no_grad():
        (weights,) = extract(rearrange(video, "B C T H W -> (B T) C H W")).values()
    before = network(video)
    maps = attention_maps(network, video)
    torch.testing.assert_close(maps["backbone.blocks.1.attn"], weights)
    assert torch.equal(network(video), before) and network.blocks[1].attn.fused_attn


# ---- saliency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("rollout", [False, True])
def test_saliency_sums_to_one_in_every_clip(kind, rollout):
    network, video = make_network(kind), random_video(3, 3, 4, 32, 32)
    if rollout and kind in POOLED:
        with pytest.raises(ValueError, match="the network pools its queries"):
            attention_saliency(network, video, rollout)
        return
    saliency = attention_saliency(network, video, rollout)
    grid = network.attention_layout.grid if kind in POOLED else network.patch_embed.grid
    assert saliency.shape == (3, *grid) and saliency.min() >= 0
    assert torch.allclose(saliency.sum((1, 2, 3)), torch.ones(3)) and saliency.std() > 0
    of_one_clip = attention_saliency(network, video[1:2], rollout)
    assert torch.allclose(of_one_clip, saliency[1:2], atol=1e-6), "clips must not mix"


@pytest.mark.parametrize("kind", UNPOOLED)
@pytest.mark.parametrize("rollout", [False, True])
def test_saliency_finds_a_patch_that_all_tokens_attend_to(kind, rollout, monkeypatch):
    """Every layer attends to one patch of one frame alone: to its frame (over time) or its position (over space)."""
    network, video = make_network(kind), random_video(2, 3, 4, 32, 32)
    t, h, w = network.patch_embed.grid
    frame, row, column = 1, h - 1, 1
    patch, n = row * w + column, h * w

    def one_hot_maps(network, video, names):
        maps = {}
        for name, weights in attention_maps(network, video, names).items():
            weights = torch.zeros_like(weights)
            keys = weights.shape[-1]
            if name.startswith("temporal_blocks."):
                key = keys - t + frame
            elif name.endswith("temporal_attn"):
                key = frame
            elif keys >= t * n:
                is_patch_first = kind == "timesformer joint"
                key = keys - t * n + (patch * t + frame if is_patch_first else frame * n + patch)
            else:
                key = keys - n + patch
            weights[..., key] = 1
            maps[name] = weights
        return maps

    monkeypatch.setattr(attention_module, "attention_maps", one_hot_maps)
    saliency = attention_saliency(network, video, rollout)
    is_peak = saliency == saliency.amax((1, 2, 3), keepdim=True)
    peaks = {tuple(index) for index in is_peak.nonzero()[:, 1:].tolist()}
    tells_frames_apart = network.attention_layout.kind in ("joint", "factorized_encoder")
    if tells_frames_apart or rollout and network.attention_layout.kind != "per_frame":
        assert peaks == {(frame, row, column)}
    else:
        assert peaks <= {(f, row, column) for f in range(t)}


def test_rollout_of_joint_attention_equals_values_by_hand():
    """The product over layers (Abnar and Zuidema, section 3)."""
    network, video = make_network("vivit joint"), random_video(2, 3, 4, 32, 32)
    maps = attention_maps(network, video, [f"blocks.{n}.attn" for n in range(2)])
    first, second = (0.5 * weights.mean(1) + 0.5 * torch.eye(weights.shape[-1]) for weights in maps.values())
    expected = (second @ first)[:, 0, 1:]
    expected = expected / expected.sum(1, keepdim=True)
    t, h, w = network.patch_embed.grid
    expected = rearrange(expected, "B (t h w) -> B t h w", t=t, h=h)
    assert torch.allclose(attention_saliency(network, video, True), expected, atol=1e-6)


def test_rollout_of_divided_attention_equals_values_by_hand():
    """One block and one clip: through time, then through space, written out for single patches."""
    network, video = make_network("timesformer divided"), random_video(1, 3, 4, 32, 32)
    network.blocks = network.blocks[:1]
    names = ["blocks.0.attn", "blocks.0.temporal_attn"]
    maps = attention_maps(network, video, names)
    space, time = (maps[name].mean(1) for name in names)
    t, h, w = network.patch_embed.grid
    expected = torch.zeros(t, h * w)
    for frame in range(t):  # from the class token to a patch of `frame`, then to its position in other frames
        for position in range(h * w):
            share = space[frame, 0, 1 + position] / t / 2
            expected[frame, position] += share / 2
            expected[:, position] += share * time[position, frame] / 2
    expected = (expected / expected.sum()).reshape(1, t, h, w)
    assert torch.allclose(attention_saliency(network, video, True), expected, atol=1e-6)


def test_rollout_refuses_too_many_tokens(monkeypatch):
    network = make_network("vivit joint")
    monkeypatch.setattr(attention_module, "_MAX_ROLLOUT_TOKENS", math.prod(network.patch_embed.grid) - 1)
    with pytest.raises(ValueError, match="tokens are more than"):
        attention_saliency(network, random_video(1, 3, 4, 32, 32), True)
