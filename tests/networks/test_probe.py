"""Probes on frozen tokens: of every network, alone or in a grid, from several clips, and in several processes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from networks import build, weights
from networks.attention_maps import attention_maps, attention_saliency
from networks.attentive_pooler import AttentivePooler, standardize
from networks.probe import BatchStandardize
from tests.helpers.networks import EVERY, SMALL, random_video, randomize

KINDS = ["attentive", "linear", "attentive_2", "linear_bn"]
SIZE = dict(num_classes=5, num_frames=4, image_size=32)


def make_grid(kind: str = "vjepa2", kinds=KINDS, **options):
    name, kwargs = EVERY[kind]
    args = {key: value for key, value in kwargs.items() if key not in ("num_classes", "pooling")}
    return build("probe_grid", encoder=name, encoder_args=args, kinds=kinds, **SIZE | options)


@pytest.mark.parametrize("kind", EVERY)
def test_tokens_of_every_network_are_classified_and_do_not_depend_on_other_videos(kind):
    grid = randomize(make_grid(kind), seed=0)
    video = random_video(3, 2, 3, 4, 32, 32)
    with torch.no_grad():
        logits, tokens = grid(video), grid.forward_tokens(video)
        assert logits.shape == (4, 3, 5) and tokens.ndim == 3 and len(tokens) == 3
        torch.testing.assert_close(grid(video[1:2]), logits[:, 1:2], atol=1e-5, rtol=1e-4)
        assert torch.equal(grid(tokens), logits), "tokens that were kept give the same"
        first = tokens.shape[1] // 2
        torch.testing.assert_close(grid.forward_tokens(video[:, 0]), tokens[:, :first], atol=1e-5, rtol=1e-4)


LAYERED = ("vivit joint", "frames", "hiera")


@pytest.mark.parametrize(
    ("kind", "layers"), [*((kind, []) for kind in EVERY), *((kind, ["blocks.1"]) for kind in LAYERED)]
)
def test_attention_of_every_probe_can_be_shown(kind, layers):
    grid = randomize(make_grid(kind, layers=layers), seed=0)
    video = random_video(2, 3, 4, 32, 32)
    for index in range(len(KINDS)):
        network = grid.select(index)
        saliency = attention_saliency(network, video)
        torch.testing.assert_close(saliency.sum((1, 2, 3)), torch.ones(2))
        if KINDS[index] == "attentive" and not layers and kind.split(",")[0] != "vivit factorized encoder":
            assert saliency.shape[1:] == grid.encoder.token_grid
            (weights,) = attention_maps(network, video, [network.attention_layout.pooler_layer]).values()
            expected = weights.mean(1)[:, 0].reshape(saliency.shape)
            torch.testing.assert_close(saliency, expected)


@pytest.mark.parametrize("kind", ["timesformer divided", "timesformer joint"])
def test_tokens_of_timesformer_are_ordered_by_frame(kind):
    name, kwargs = EVERY[kind]
    network, video = randomize(build(name, **kwargs), seed=0), random_video(1, 3, 4, 32, 32)
    network.pos_embed.data.zero_()
    tokens = network.forward_tokens(video).reshape(4, 16, 32)
    still = network.forward_tokens(video[:, :, :1].expand(-1, -1, 4, -1, -1)).reshape(4, 16, 32)
    change = (tokens - still).abs().mean((1, 2))
    assert change[0] < change[1:].min()


@pytest.mark.parametrize("layers", [[], ["blocks.0"], ["blocks.0", "blocks.1"]])
def test_selected_probe_is_a_network_that_is_saved_and_loaded(layers, tmp_path):
    grid = randomize(make_grid(layers=layers, num_clips=2), seed=0)
    video = random_video(2, 2, 3, 4, 32, 32)
    tokens = grid.forward_tokens(video)
    assert tokens.shape == (2, 2 * 32 * max(len(layers), 1), SMALL["embed_dim"])
    if layers:
        clip, last = video[:, 0], grid.encoder.forward_tokens(video[:, 0])
        per_clip = tokens.shape[1] // 2
        assert torch.equal(grid.forward_tokens(clip), tokens[:, :per_clip])
        assert torch.equal(tokens[:, per_clip - 32 : per_clip], last) == (layers[-1] == "blocks.1")
    with torch.no_grad():
        for index, expected in enumerate(grid(video)):
            network = grid.select(index)
            weights.save_network(tmp_path / str(index), network, "probed_encoder")
            loaded, _ = weights.load_network(tmp_path / str(index))
            assert torch.equal(loaded(video), expected) and loaded.num_clips == 2


def test_only_probes_learn_and_each_as_if_it_were_alone():
    def step(kinds):
        grid = make_grid(kinds=kinds).train()
        assert not grid.encoder.training and all(probe.training for probe in grid.probes)
        before = copy.deepcopy(grid.encoder.state_dict())
        optimizer = torch.optim.AdamW([p for p in grid.parameters() if p.requires_grad], lr=0.1)
        for seed in range(2):
            logits = grid(random_video(2, 3, 4, 32, 32, seed=seed))
            sum(nn.functional.cross_entropy(part, torch.tensor([0, 3])) for part in logits).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(torch.equal(value, before[key]) for key, value in grid.encoder.state_dict().items())
        return grid

    torch.manual_seed(0)
    encoder = make_grid().encoder.state_dict()
    torch.manual_seed(0)
    together = step(KINDS)
    for index, kind in enumerate(KINDS):
        torch.manual_seed(0)
        alone = step([kind])
        assert all(torch.equal(value, encoder[key]) for key, value in alone.encoder.state_dict().items())
        expected, actual = alone.probes[0].state_dict(), together.probes[index].state_dict()
        assert all(torch.equal(actual[key], expected[key]) for key in expected), kind


def test_stopped_probe_is_left_out_and_changes_no_more():
    grid = make_grid()
    grid.stop(1)
    logits = grid(random_video(2, 3, 4, 32, 32))
    assert grid.active == [0, 2, 3] and logits.shape[0] == 3
    logits.sum().backward()
    assert all(p.grad is None for p in grid.probes[1].parameters())
    assert all(p.grad is not None for p in grid.probes[2].parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_equals_that_with_explicit_keys_and_values(dtype):
    """The formula of V-JEPA's code: norm, keys and values of every token, softmax over them; and its gradients."""
    pooler = randomize(AttentivePooler(32, 4), seed=1).double()
    tokens = random_video(2, 50, 32, seed=2).double().requires_grad_()
    block = pooler.cross_attention_block
    query = block.xattn.q(pooler.query_tokens).view(1, 1, 4, 8).transpose(1, 2)
    key, value = block.xattn.kv(block.norm1(tokens)).view(2, 50, 2, 4, 8).permute(2, 0, 3, 1, 4)
    mixed = ((query @ key.transpose(-2, -1)) * 8**-0.5).softmax(-1) @ value
    queries = pooler.query_tokens + mixed.transpose(1, 2).reshape(2, 1, 32)
    expected = (queries + block.mlp(block.norm2(queries)))[:, 0]
    names, parameters = zip(*pooler.named_parameters(), strict=True)
    expected_grads = torch.autograd.grad(expected.square().sum(), [tokens, *parameters])
    actual_grads = torch.autograd.grad(pooler(tokens).square().sum(), [tokens, *parameters])
    torch.testing.assert_close(pooler(tokens), expected, atol=1e-10, rtol=1e-10)
    for name, actual, wanted in zip(["tokens", *names], actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-9, rtol=1e-9, msg=name)
    if dtype is torch.bfloat16:
        with torch.autocast("cpu", dtype):
            half = pooler.float()(tokens.float())
        torch.testing.assert_close(half.double(), expected, atol=0.1, rtol=0.05)


def test_batch_standardize_equals_batch_norm():
    expected, actual = nn.BatchNorm1d(6, affine=False, eps=1e-6), BatchStandardize(6)
    for seed in range(3):
        features = random_video(7, 6, seed=seed) * 3 + 5
        torch.testing.assert_close(actual(features), expected(features))
    torch.testing.assert_close(actual.eval()(features), expected.eval()(features))
    assert standardize(features).std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["attentiv"]}, "probe 'attentiv': expected attentive, attentive_N"),
        ({"kinds": ["attentive_0"]}, "expected attentive, attentive_N"),
        ({"layers": ["blocks.9"]}, "blocks.9: the network has no such layer; its blocks are blocks.0, blocks.1"),
        ({"encoder": "vitvit"}, "encoder='vitvit': expected one of timesformer_tiny"),
        ({"num_clips": 0}, "num_clips=0: must be > 0"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    options = {"encoder": "vjepa2_tiny", "encoder_args": {"depth": 2}} | options
    with pytest.raises(ValueError, match=message):
        build("probe_grid", **SIZE | options)


def test_layers_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"layers=blocks\.0,blocks\.3: expected tokens of equal dimension, they have"):
        make_grid("mvit v2", layers=["blocks.0", "blocks.3"])
