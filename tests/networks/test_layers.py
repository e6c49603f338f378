"""Attention, stochastic depth, initialization and position embeddings."""

import math

import pytest
import torch

import networks
from networks.layers import MATH_ATTENTION_MAX_KEYS, attend, drop_path_rates
from networks.pos_embed import sincos_pos_embed
from networks.timesformer import TimeSformer
from tests.helpers.networks import SMALL, random_video, randomize


@pytest.mark.parametrize("dtype", MATH_ATTENTION_MAX_KEYS)
@pytest.mark.parametrize("extra_keys", [0, 1])
def test_attend_equals_its_definition_by_either_method(dtype, extra_keys):
    """Values and gradients on both sides of the number of keys up to which a CPU uses plain products."""
    torch.manual_seed(0)
    keys = MATH_ATTENTION_MAX_KEYS[dtype] + extra_keys
    shapes = ((5, 8), (keys, 8), (keys, 6))
    inputs = [torch.randn(2, 3, *shape, dtype=dtype, requires_grad=True) for shape in shapes]
    query, key, value = exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.einsum("bhqd,bhkd->bhqk", query, key).div(8**0.5).softmax(-1) @ value
    actual = attend(*inputs, 8**-0.5)
    direction = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * direction).sum(), exact_inputs)
    actual_gradients = torch.autograd.grad((actual * direction).sum(), inputs)
    for ours, exact in zip((actual, *actual_gradients), (expected, *expected_gradients), strict=True):
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_drop_path_grows_linearly_with_depth():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]
    network = networks.build("timesformer_tiny", **SMALL, drop_path=0.2)
    assert network.blocks[-1].drop_path.drop_prob == 0.2


def test_timesformer_ignores_the_order_of_frames_at_first():
    torch.manual_seed(0)
    network = TimeSformer(**SMALL).eval()
    assert not network.time_embed.any()
    assert not any(block.temporal_fc.weight.any() or block.temporal_fc.bias.any() for block in network.blocks)
    video = random_video(2, 3, 4, 32, 32)
    shuffled = video[:, :, [2, 0, 3, 1]]
    with torch.no_grad():
        torch.testing.assert_close(network(video), network(shuffled), atol=1e-6, rtol=0)
        randomize(network, seed=8)
        assert (network(video) - network(shuffled)).abs().max() > 1e-2


@pytest.mark.parametrize("name", [name for name in networks.VARIANTS if name.endswith("tiny")])
def test_initialization_has_the_expected_std(name):
    torch.manual_seed(0)
    network = networks.build(name, num_classes=100)
    for key, parameter in network.named_parameters():
        if key.endswith(("qkv.weight", "fc1.weight", "head.weight")) or key.endswith("pos_embed"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), key
        elif key.endswith("bias") and "patch_embed" not in key:
            assert not parameter.any(), key


def test_sincos_pos_embed_equals_its_formula_and_is_not_saved():
    learned, fixed = (networks.build("vivit_tiny", **SMALL, pos_embed=kind) for kind in ("learned", "sincos"))
    assert learned.state_dict().keys() - fixed.state_dict().keys() == {"pos_embed"}
    assert not fixed.pos_embed[:, 0].any()  # the class token's row
    table = fixed.pos_embed[0, 1:]
    for position, column in ((0, 0), (1, 0), (5, 3), (31, 30)):
        angle = position / 10000 ** (2 * (column // 2) / 32)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert table[position, column].item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(sincos_pos_embed(32, 32)[0], table)
