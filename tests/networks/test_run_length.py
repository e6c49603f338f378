"""Run-length tokenization: which patches change, and equality with the dense network and with masked attention."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from configs import loading
from networks import build
from networks.export import export
from networks.layer_outputs import layer_outputs
from networks.run_length import changed_patches
from tests.helpers.networks import EVERY, SMALL, random_video, randomize
from training.setup import build_state, freeze

KINDS = {
    "vivit": ("vivit_tiny", SMALL),
    "vivit mean": ("vivit_tiny", SMALL | {"pooling": "mean"}),
    "videomae": ("videomae_tiny", SMALL),
    "vjepa2": ("vjepa2_tiny", SMALL),
    "vjepa2.1, mean": ("vjepa2_1_tiny", SMALL | {"pooling": "mean"}),
}
CLIP = (3, 3, 8, 32, 32)


def make(kind: str, **options) -> nn.Module:
    name, kwargs = KINDS[kind]
    return randomize(build(name, **kwargs | {"num_frames": 8} | options), seed=0)


def partly_still_video(seed: int = 0) -> torch.Tensor:
    """Return clips whose first is still, whose second is still in its left half, and whose third moves everywhere."""
    video = random_video(*CLIP, seed=seed)
    video[0] = video[0, :, :1]
    video[1, :, :, :, :16] = video[1, :, :1, :, :16]
    return video


@given(st.integers(1, 3), st.sampled_from([4, 8]), st.floats(0, 2), st.integers(0, 9))
@settings(max_examples=30)
def test_patches_that_change_are_found_as_in_a_loop(frames, size, threshold, seed):
    video = random_video(2, 3, 4 * frames, 16, 8, seed=seed) * torch.tensor([0.1, 1.0]).view(2, 1, 1, 1, 1)
    keep = changed_patches(video, (frames, size, size), threshold).reshape(2, 4, 16 // size, 8 // size)
    for b, t, h, w in torch.cartesian_prod(*(torch.arange(n) for n in keep.shape)).tolist():
        last, first = t * frames + frames - 1, (t - 1) * frames
        rows, columns = slice(h * size, (h + 1) * size), slice(w * size, (w + 1) * size)
        change = (video[b, :, last, rows, columns] - video[b, :, max(first, 0), rows, columns]).abs().mean()
        assert keep[b, t, h, w] == (t == 0 or change >= threshold)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_network_equals_the_dense_one_where_everything_changes(kind):
    dense, packed = make(kind), make(kind, rlt_threshold=1e-9)
    video = random_video(*CLIP)
    with torch.no_grad():
        assert torch.equal(packed(video), dense(video)), "bit for bit"
        packed.rlt_threshold = 0
        assert torch.equal(packed(partly_still_video()), dense(partly_still_video()))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_clips_equal_each_clip_alone_and_masked_attention(kind):
    network = make(kind, rlt_threshold=1e-3)
    video = partly_still_video()
    with torch.no_grad():
        logits = network(video)
        alone = torch.cat([network(clip[None]) for clip in video])
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
        expected = masked_logits(network, video)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    dense = make(kind)
    assert not torch.allclose(dense(video)[:2], logits[:2], atol=1e-3) and torch.allclose(dense(video)[2], logits[2])


def masked_logits(network, video: torch.Tensor) -> torch.Tensor:
    """Compute all tokens, with an attention mask that hides those that do not change, by the formula."""
    keep = changed_patches(video, network.patch_embed.stride, network.rlt_threshold)
    if hasattr(network, "embed"):
        tokens, prefix = network.embed(video), 0
    else:
        tokens, prefix = rearrange(network.patch_embed(video), "B t n D -> B (t n) D"), int(network.has_cls_token)
        if prefix:
            tokens = torch.cat([network.cls_token.expand(len(video), -1, -1), tokens], dim=1)
            keep = torch.cat([torch.ones(len(video), 1, dtype=torch.bool), keep], dim=1)
        tokens = tokens + network.pos_embed
    for block in network.blocks:
        query, key, value = block.attn.query_key_value(block.norm1(tokens))
        scores = query @ key.transpose(-2, -1) * block.attn.scale
        weights = scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1)
        tokens = tokens + block.attn.proj(rearrange(weights @ value, "B h N d -> B N (h d)"))
        tokens = tokens + block.mlp(block.norm2(tokens))
    features = []
    for clip, kept in zip(tokens, keep, strict=True):
        if hasattr(network, "embed"):
            features.append(network.pool(network.norm(clip[kept])[None])[0])
        elif network.pooling == "cls":
            features.append(network.norm(clip[0]))
        else:
            patches = clip[prefix:][kept[prefix:]]
            mean_first = network.pooling == "fc_norm"
            features.append(network.norm(patches.mean(0)) if mean_first else network.norm(patches).mean(0))
    return network.head(torch.stack(features))


@pytest.mark.parametrize("checkpoint_blocks", [0, 1])
def test_gradients_flow_through_packed_tokens(checkpoint_blocks):
    network = make("vivit", rlt_threshold=1e-3, checkpoint_blocks=checkpoint_blocks).train()
    network(partly_still_video()).sum().backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    dense = make("vivit", rlt_threshold=1e-9).train()
    dense(random_video(*CLIP)).sum().backward()
    plain = make("vivit").train()
    plain(random_video(*CLIP)).sum().backward()
    for (name, p), q in zip(dense.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=name)
    with pytest.raises(ValueError, match="rlt_threshold: training with it needs drop_path=0"):
        make("vivit", rlt_threshold=0.1, drop_path=0.1).train()(partly_still_video())


@pytest.mark.parametrize(("value", "message"), [(-1, "expected a number of 0"), (True, "expected a number of 0")])
def test_threshold_that_is_none_is_refused(value, message):
    with pytest.raises(ValueError, match=f"rlt_threshold={value}: {message}"):
        build("vjepa2_tiny", **SMALL | {"rlt_threshold": value})


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind.startswith("vivit factorized")])
def test_threshold_needs_joint_attention(kind):
    name, kwargs = EVERY[kind]
    with pytest.raises(ValueError, match="rlt_threshold=0.1: expected 0, as it needs joint attention"):
        build(name, **kwargs | {"rlt_threshold": 0.1})


def test_frozen_drop_path_is_none_and_hooks_see_all_tokens(tmp_path):
    network = make("vjepa2", rlt_threshold=1e-3, drop_path=0.2).train()
    freeze(network, "blocks.0-1")
    network(partly_still_video())
    dense = make("vjepa2").eval()
    video = partly_still_video()
    outputs, expected = (layer_outputs(n.eval(), video, ["blocks.0"])[0] for n in (network, dense))
    assert outputs.shape == expected.shape and network.rlt_threshold == 1e-3
    export(network, tmp_path / "net.pt2")
    exported = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(exported(video), dense(video), atol=1e-5, rtol=1e-4)


def test_sharded_networks_have_no_run_length_tokenization():
    overrides = ["run.parallel=fsdp", "model.name=vivit_tiny", "model.args.rlt_threshold=0.1"]
    cfg = loading.load_config(None, overrides)
    with pytest.raises(ValueError, match="rlt_threshold: expected 0 with run.parallel=fsdp"):
        build_state(cfg, make("vivit", rlt_threshold=0.1), 1, torch.float32, 1)
