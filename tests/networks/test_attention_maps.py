"""attention: the shares of what a network looks at lie where it looks."""

from __future__ import annotations

import math

import pytest
import torch
from einops import rearrange

import networks
from networks import attention_maps as attention_module
from networks.attention_maps import attended, attention_maps
from tests.helpers.networks import EVERY, random_video, randomise

PLAIN = [kind for kind in EVERY if not kind.startswith("mvit")]


def small(kind: str) -> torch.nn.Module:
    name, kwargs = EVERY[kind]
    return randomise(networks.build(name, **kwargs), seed=0)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("rollout", [False, True])
def test_shares_of_a_clip(kind, rollout):
    network, video = small(kind), random_video(3, 3, 4, 32, 32)
    if rollout and kind.startswith("mvit"):
        with pytest.raises(ValueError, match="MViT pools its queries"):
            attended(network, video, rollout)
        return
    seen = attended(network, video, rollout)
    grid = network.blocks[-1].attn.key_grid if kind.startswith("mvit") else network.patch_embed.grid
    assert seen.shape == (3, *grid) and seen.min() >= 0
    assert torch.allclose(seen.sum((1, 2, 3)), torch.ones(3)) and seen.std() > 0
    assert torch.allclose(attended(network, video[1:2], rollout), seen[1:2], atol=1e-6), "clips do not mix"


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("rollout", [False, True])
def test_a_patch_that_all_look_at_is_found(kind, rollout, monkeypatch):
    """Every layer's weights are put on one patch of one frame (or its frame's, its position's share of them)."""
    network, video = small(kind), random_video(2, 3, 4, 32, 32)
    t, h, w = network.patch_embed.grid
    frame, row, column = 1, h - 1, 1
    patch, n = row * w + column, h * w

    def hot(network, video, names):
        maps = {}
        for name, weights in attention_maps(network, video, names).items():
            weights = torch.zeros_like(weights)
            keys = weights.shape[-1]
            if name.startswith("temporal_blocks."):
                key = keys - t + frame
            elif name.endswith("temporal_attn"):
                key = frame
            elif keys >= t * n:
                joint = hasattr(network, "time_embed") and network.attention == "joint"
                key = keys - t * n + (patch * t + frame if joint else frame * n + patch)
            else:
                key = keys - n + patch
            weights[..., key] = 1
            maps[name] = weights
        return maps

    monkeypatch.setattr(attention_module, "attention_maps", hot)
    seen = attended(network, video, rollout)
    peaks = {tuple(place) for place in (seen == seen.amax((1, 2, 3), keepdim=True)).nonzero()[:, 1:].tolist()}
    alone = kind in ("vivit joint", "videomae", "timesformer joint") or "factorised encoder" in kind
    by_frames = {(f, row, column) for f in range(t)}
    assert peaks == {(frame, row, column)} if alone or rollout and "space" not in kind else peaks <= by_frames


def test_rollout_by_hand():
    """Joint attention: the plain product over layers (Abnar and Zuidema, section 3)."""
    network, video = small("vivit joint"), random_video(2, 3, 4, 32, 32)
    maps = attention_maps(network, video, [f"blocks.{n}.attn" for n in range(2)])
    a, b = (0.5 * weights.mean(1) + 0.5 * torch.eye(weights.shape[-1]) for weights in maps.values())
    expected = (b @ a)[:, 0, 1:]
    expected = expected / expected.sum(1, keepdim=True)
    t, h, w = network.patch_embed.grid
    expected = rearrange(expected, "B (t h w) -> B t h w", t=t, h=h)
    assert torch.allclose(attended(network, video, True), expected, atol=1e-6)


def test_divided_rollout_by_hand():
    """One block, one clip: through time, then through space, written out for a single pair of patches."""
    network, video = small("timesformer divided"), random_video(1, 3, 4, 32, 32)
    network.blocks = network.blocks[:1]
    names = ["blocks.0.attn", "blocks.0.temporal_attn"]
    maps = attention_maps(network, video, names)
    space, time = (maps[name].mean(1) for name in names)
    t, h, w = network.patch_embed.grid
    expected = torch.zeros(t, h * w)
    for frame in range(t):  # class token -> patch of `frame` by space, -> the same position in another frame by time
        for position in range(h * w):
            share = space[frame, 0, 1 + position] / t / 2
            expected[frame, position] += share / 2
            expected[:, position] += share * time[position, frame] / 2
    expected = (expected / expected.sum()).reshape(1, t, h, w)
    assert torch.allclose(attended(network, video, True), expected, atol=1e-6)


def test_too_many_tokens_are_refused(monkeypatch):
    network = small("vivit joint")
    monkeypatch.setattr(attention_module, "_MOST_TOKENS", math.prod(network.patch_embed.grid) - 1)
    with pytest.raises(ValueError, match="tokens are more than"):
        attended(network, random_video(1, 3, 4, 32, 32), True)
