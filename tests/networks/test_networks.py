"""Properties of all networks, and `build` with its errors."""

import inspect
import json
import re
from types import SimpleNamespace

import pytest
import torch

import networks
from tests.helpers.networks import EVERY, SMALL, random_video, randomize
from training.tasks import Classify

every = pytest.mark.parametrize(("name", "settings"), EVERY.values(), ids=EVERY)


# ---- properties of every network -------------------------------------------------------------------------------------


@every
def test_logits_do_not_depend_on_other_clips_of_the_batch(name, settings):
    network = randomize(networks.build(name, **settings), seed=5)
    video = random_video(3, 3, 4, 32, 32)
    changed = video.clone()
    changed[0] = random_video(3, 4, 32, 32, seed=1)
    with torch.no_grad():
        before, after = network(video), network(changed)
        alone = network(video[1:2])
    assert torch.equal(before[1:], after[1:])
    assert not torch.allclose(before[0], after[0], atol=1e-2)
    torch.testing.assert_close(before[1:2], alone, atol=1e-5, rtol=1e-5)


@every
def test_gradient_reaches_every_parameter(name, settings):
    network = randomize(networks.build(name, **settings), seed=6).train()
    torch.manual_seed(0)  # for drop path
    network(random_video(2, 3, 4, 32, 32)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        # Softmax cancels what is added to all scores of a query. In the last block only the class token's query matters
        # (pooling="cls"), which is neither pooled nor has relative positions.
        last = f"blocks.{len(network.blocks) - 1}.attn."
        is_unused = network.kwargs["pooling"] == "cls" and key.startswith((last + "rel_pos", last + "pool_q"))
        if not key.endswith("norm_k.bias") and not is_unused:
            assert parameter.grad.abs().max() > 1e-6, key


@every
def test_forward_equals_features_and_head_at_any_size(name, settings):
    network = networks.build(name, **settings | {"num_classes": 7, "num_frames": 8, "image_size": (32, 64)}).eval()
    video = random_video(2, 3, 8, 32, 64)
    with torch.no_grad():
        features = network.forward_features(video)
        assert features.shape == (2, network.head.in_features)
        assert torch.equal(network.forward_head(features), network(video))
        assert network(video).shape == (2, 7)
        headless = networks.build(name, **network.kwargs | {"num_classes": 0}).eval()
        headless.load_state_dict(
            {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("head")}
        )
        assert torch.equal(headless(video), features)


@every
def test_dropout_and_drop_path_act_in_training_only(name, settings):
    video = random_video(2, 3, 4, 32, 32)
    for options in ({"dropout": 0.5, "drop_path": 0.0}, {"dropout": 0.0, "drop_path": 0.5}):
        network = randomize(networks.build(name, **settings | options), seed=7)
        assert torch.equal(network(video), network(video))
        network.train()
        first = network(video)
        assert any(not torch.equal(network(video), first) for _ in range(20)), (
            options
        )  # two draws may be equal by chance


@every
def test_checkpoint_blocks_give_the_same_gradients(name, settings):
    """With drop path, so the second run of a block must draw the same random numbers as the first."""
    video = random_video(2, 3, 4, 32, 32)
    gradients = []
    for checkpoint_blocks in (0, 1, 2):
        network = networks.build(name, **settings | {"drop_path": 0.3, "checkpoint_blocks": checkpoint_blocks})
        randomize(network, seed=8).train()
        torch.manual_seed(0)
        network(video).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    expected, *recomputed = gradients
    for actual in recomputed:
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_checkpoint_blocks_save_less_for_backward():
    def saved_numbers(checkpoint_blocks):
        sizes = []
        network = networks.build("vivit_tiny", **SMALL, checkpoint_blocks=checkpoint_blocks).train()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            network(random_video(2, 3, 4, 32, 32))
        return sum(sizes)

    assert saved_numbers(2) < 0.5 * saved_numbers(0)


@pytest.mark.slow
@every
def test_compiled_equals_eager(name, settings):
    """Forward and backward have no graph break. Outputs differ by up to 1e-5, gradients by 1e-4 of the largest."""
    network = randomize(networks.build(name, **settings, checkpoint_blocks=1), seed=9)
    video = random_video(2, 3, 4, 32, 32)
    expected = network(video)
    expected.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    network.compile(fullgraph=True)
    compiled = network(video)
    compiled.square().sum().backward()
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-5)
    largest = max(gradient.abs().max() for gradient in gradients)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-4 * max(gradient.abs().max(), 1e-3 * largest)


@pytest.mark.slow
def test_compiled_network_refuses_a_wrong_shape():
    network = networks.build("vivit_tiny", **SMALL)
    network.compile(fullgraph=True)
    # with fullgraph=True, Dynamo raises a RuntimeError that quotes our ValueError
    with pytest.raises((ValueError, RuntimeError), match=r"takes \(B, 3, 4, 32, 32\)"):
        network(torch.zeros(2, 3, 2, 32, 32))


@every
def test_overfits_four_clips(name, settings):
    torch.manual_seed(0)
    network = networks.build(name, **settings | {"num_classes": 4, "dropout": 0.0})
    batch = SimpleNamespace(video=random_video(4, 3, 4, 32, 32), label=torch.arange(4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    task = Classify()
    first = task(network, batch)["loss"].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = task(network, batch)["loss"]
        if loss < 0.03:
            break
        loss.backward()
        optimizer.step()
    network.eval()
    outputs = task(network, batch)
    assert first > 1.0 and outputs["loss"].item() < 0.1
    assert torch.equal(outputs["logits"].argmax(1), batch.label)


# ---- build and its errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", networks.VARIANTS)
def test_variant_takes_overrides_and_is_rebuilt_from_kwargs(name):
    with torch.device("meta"):
        image_size = (2016, 4032)  # multiples of the patches of all: 8, 14, 16, 18 and Hiera's mask units of 32
        network = networks.build(name, num_classes=11, image_size=image_size, dropout=0.25)
        rebuilt = networks.build(name, **network.kwargs)
    assert network.head.out_features == 11 and network.dropout.p == 0.25
    assert json.loads(json.dumps(network.kwargs)) == network.kwargs
    assert set(network.kwargs) == set(inspect.signature(type(network)).parameters)
    assert rebuilt.kwargs == network.kwargs
    assert str(rebuilt) == str(network)


def test_build_lists_the_variants_for_an_unknown_name():
    with pytest.raises(ValueError, match=r"'vivit_bb'.*'vivit_b'") as error:
        networks.build("vivit_bb", num_classes=2)
    assert all(name in str(error.value) for name in networks.VARIANTS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vivit_tiny", {"image_size": 60}, "patch_size=8 does not divide image_size=60x60"),
        ("vivit_tiny", {"image_size": (64, 60)}, "patch_size=8 does not divide image_size=64x60"),
        ("vivit_tiny", {"image_size": (64, 64, 64)}, "image_size="),
        ("vivit_tiny", {"num_frames": 7}, "tubelet_size=2 does not divide num_frames=7"),
        ("vivit_tiny", {"num_heads": 5}, "num_heads=5 does not divide embed_dim=96"),
        ("vivit_tiny", {"attention": "divided"}, "attention='divided'"),
        ("vivit_tiny", {"attention": "factorized_attention"}, "cls_token=False"),
        ("vivit_fdp_tiny", {"cls_token": True}, "attention='factorized_dot_product' has no class token"),
        ("vivit_fdp_tiny", {"num_heads": 3}, "num_heads=3: expected an even number"),
        ("vivit_tiny", {"cls_token": False}, "pooling='cls' needs cls_token=True"),
        ("vivit_tiny", {"pos_embed": "none"}, "pos_embed='none'"),
        ("vivit_tiny", {"pooling": "max"}, "pooling='max'"),
        ("vivit_tiny", {"gelu": "fast"}, "gelu='fast'"),
        ("vivit_tiny", {"drop_path": 1.0}, "drop_path=1.0"),
        ("vivit_tiny", {"num_classes": -1}, "num_classes=-1"),
        ("timesformer_tiny", {"image_size": 60}, "patch_size=8 does not divide image_size=60x60"),
        ("timesformer_tiny", {"num_heads": 5}, "num_heads=5 does not divide embed_dim=96"),
        ("timesformer_tiny", {"patch_size": 0}, "patch_size=0"),
        ("timesformer_tiny", {"attention": "space_time"}, "attention='space_time'"),
        ("vjepa2_tiny", {"embed_dim": 100}, "embed_dim / num_heads = 25: rotary positions need an even number"),
        ("vjepa2_tiny", {"rope_layout": "paired"}, "rope_layout='paired'"),
        ("vjepa2_tiny", {"pooling": "cls"}, "pooling='cls'"),
        ("vjepa2_tiny", {"pooler_depth": 0}, "pooler_depth=0"),
        ("hiera_tiny", {"image_size": 72}, "num_frames=8, image_size=72: expected multiples of a mask unit"),
        ("hiera_tiny", {"depths": [1, 2, 1]}, "depths=[1, 2, 1]: expected two stages or more, and two blocks"),
        ("hiera_tiny", {"mask_unit_attn": [True, False]}, "expected one entry per stage"),
        ("hiera_tiny", {"mask_unit_attn": [True, True, True]}, "the last stage attends to all tokens"),
        ("mvit_v2_tiny", {"image_size": 62}, "patch_size=4 does not divide image_size=62x62"),
        ("mvit_v2_tiny", {"num_frames": 7}, "tubelet_size=2 does not divide num_frames=7"),
        ("mvit_v2_tiny", {"num_heads": [1, 2]}, "one entry per stage"),
        ("mvit_v2_tiny", {"kv_stride": [4, 4]}, "kv_stride=[4, 4]"),
        ("mvit_v2_tiny", {"expand_attn": "both"}, "expand_attn='both'"),
        ("mvit_v2_tiny", {"depths": [1, 0, 1]}, "depths[1]=0"),
    ],
)
def test_constructor_errors_name_the_value(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        networks.build(name, **{"num_classes": 2} | options)


@pytest.mark.parametrize("name", ["vivit_tiny", "timesformer_tiny", "mvit_v2_tiny", "vjepa2_tiny", "hiera_tiny"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 64, 64), (2, 3, 8, 64, 32), (2, 1, 8, 64, 64), (3, 8, 64, 64)])
def test_forward_refuses_a_wrong_video_shape(name, shape):
    network = networks.build(name, num_classes=2)
    with pytest.raises(ValueError) as error:
        network(torch.zeros(shape))
    assert str(shape) in str(error.value) and "(B, 3, 8, 64, 64)" in str(error.value)
