"""networks/: no leak between clips, gradients, options, compile, attention maps, build and its errors, Classify."""

import inspect
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import networks
from networks.attention_maps import attention_maps
from networks.flops import count_flops, count_parameters
from networks.layers import FEW_KEYS, Attention, attend, drop_path_rates
from networks.pos_embed import sincos_table
from networks.timesformer import TimeSformer
from tests.helpers.networks import EVERY, SMALL, random_video, randomise
from training.tasks import Classify

torch.set_num_threads(1)

every = pytest.mark.parametrize(("name", "settings"), EVERY.values(), ids=EVERY)


# ---- properties of every network -------------------------------------------------------------------------------------


@every
def test_a_clip_does_not_see_its_batch_mates(name, settings):
    network = randomise(networks.build(name, **settings), seed=5)
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
    network = randomise(networks.build(name, **settings), seed=6).train()
    torch.manual_seed(0)  # of the paths that are dropped
    network(random_video(2, 3, 4, 32, 32)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        # softmax does not see what is added to all scores alike; in the last block the class token's query is all that
        # counts, which is neither pooled nor has relative positions
        last = f"blocks.{len(network.blocks) - 1}.attn."
        of_cls = network.kwargs["pooling"] == "cls" and key.startswith((last + "rel_pos", last + "pool_q"))
        if not key.endswith("norm_k.bias") and not of_cls:
            assert parameter.grad.abs().max() > 1e-6, key


@every
def test_features_head_and_forward_agree_at_any_size(name, settings):
    network = networks.build(name, **settings | {"num_classes": 7, "num_frames": 8, "image_size": (32, 64)}).eval()
    video = random_video(2, 3, 8, 32, 64)
    with torch.no_grad():
        features = network.forward_features(video)
        assert features.shape == (2, network.head.in_features)
        assert torch.equal(network.forward_head(features), network(video))
        assert network(video).shape == (2, 7)
        headless = networks.build(name, **network.kwargs | {"num_classes": 0}).eval()
        headless.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("head")})
        assert torch.equal(headless(video), features)


@every
def test_dropout_and_drop_path_act_in_training_only(name, settings):
    video = random_video(2, 3, 4, 32, 32)
    for options in ({"dropout": 0.5, "drop_path": 0.0}, {"dropout": 0.0, "drop_path": 0.5}):
        network = randomise(networks.build(name, **settings | options), seed=7)
        assert torch.equal(network(video), network(video))
        network.train()
        first = network(video)
        assert any(not torch.equal(network(video), first) for _ in range(20)), options  # a draw may repeat by chance


@every
def test_recomputed_blocks_give_the_same_gradients(name, settings):
    """With drop path on, so that the second run of a block must draw as the first did."""
    video = random_video(2, 3, 4, 32, 32)
    gradients = []
    for checkpoint_blocks in (0, 1, 2):
        network = networks.build(name, **settings | {"drop_path": 0.3, "checkpoint_blocks": checkpoint_blocks})
        randomise(network, seed=8).train()
        torch.manual_seed(0)
        network(video).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))


def test_recomputed_blocks_keep_less():
    def kept(checkpoint_blocks):
        sizes = []
        network = networks.build("vivit_tiny", **SMALL, checkpoint_blocks=checkpoint_blocks).train()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            network(random_video(2, 3, 4, 32, 32))
        return sum(sizes)

    assert kept(2) < 0.5 * kept(0)


@pytest.mark.slow
@every
def test_compiled_equals_eager(name, settings):
    """Without a graph break, forward and backward; outputs within 1e-5, gradients within 1e-4 of the largest."""
    network = randomise(networks.build(name, **settings, checkpoint_blocks=1), seed=9)
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
def test_compiled_network_names_a_wrong_shape():
    network = networks.build("vivit_tiny", **SMALL)
    network.compile(fullgraph=True)
    # with fullgraph Dynamo wraps our ValueError in a RuntimeError of its own, which quotes it
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
        task(network, batch)["loss"].backward()
        optimizer.step()
    network.eval()
    outputs = task(network, batch)
    assert first > 1.0 and outputs["loss"].item() < 0.1
    assert torch.equal(outputs["logits"].argmax(1), batch.label)


# ---- attention maps --------------------------------------------------------------------------------------------------


@every
def test_attention_maps_are_what_the_network_uses(name, settings):
    """Each layer's output, made again from its map and its values, equals what the fused kernel gave."""
    network = randomise(networks.build(name, **settings), seed=10)
    video = random_video(2, 3, 4, 32, 32)
    layers = {key: layer for key, layer in network.named_modules() if isinstance(layer, Attention)}
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, key=key: seen.update({key: (inputs[0], output)}))
        for key, layer in layers.items()
    ]
    maps = attention_maps(network, video, list(layers))
    for hook in hooks:
        hook.remove()
    for key, layer in layers.items():
        tokens, output = seen[key]
        query, _, value = layer.query_key_value(tokens)
        assert maps[key].shape == (*query.shape[:3], value.shape[2])
        torch.testing.assert_close(maps[key].sum(-1), torch.ones(maps[key].shape[:3]))
        mixed = maps[key] @ value
        if getattr(layer, "residual", False):
            mixed[:, :, 1:] += query[:, :, 1:, : layer.head_width]
        again = layer.proj(mixed.transpose(1, 2).flatten(2))
        torch.testing.assert_close(again, output, atol=1e-5, rtol=1e-5)


def test_attention_maps_leave_the_network_alone():
    network = randomise(networks.build("timesformer_tiny", **SMALL), seed=11)
    video = random_video(2, 3, 4, 32, 32)
    before = network(video)
    assert list(attention_maps(network, video)) == ["blocks.1.temporal_attn"]
    assert list(attention_maps(network, video, ["blocks.0.attn"])) == ["blocks.0.attn"]
    assert torch.equal(network(video), before)
    assert not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match="no attention layer blocks.9.attn; there are blocks.0.attn"):
        attention_maps(network, video, ["blocks.9.attn"])


# ---- initialisation and positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FEW_KEYS)
@pytest.mark.parametrize("more", [0, 1])
def test_attention_to_few_keys_is_attention(dtype, more):
    """Values and gradients are those of the definition, on either side of where a CPU takes plain products."""
    torch.manual_seed(0)
    keys = FEW_KEYS[dtype] + more
    shapes = ((5, 8), (keys, 8), (keys, 6))
    inputs = [torch.randn(2, 3, *shape, dtype=dtype, requires_grad=True) for shape in shapes]
    query, key, value = exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.einsum("bhqd,bhkd->bhqk", query, key).div(8**0.5).softmax(-1) @ value
    found = attend(*inputs, 8**-0.5)
    weight = torch.randn_like(expected)
    pairs = [(found, expected)]
    ours, theirs = (torch.autograd.grad((o * weight).sum(), i) for o, i in ((found, inputs), (expected, exact)))
    for one, other in [*pairs, *zip(ours, theirs, strict=True)]:
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_drop_path_grows_linearly_with_depth():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]
    network = networks.build("timesformer_tiny", **SMALL, drop_path=0.2)
    assert network.blocks[-1].drop_path.drop_prob == 0.2


def test_timesformer_starts_blind_to_the_order_of_frames():
    torch.manual_seed(0)
    network = TimeSformer(**SMALL).eval()
    assert not network.time_embed.any()
    assert not any(block.temporal_fc.weight.any() or block.temporal_fc.bias.any() for block in network.blocks)
    video = random_video(2, 3, 4, 32, 32)
    shuffled = video[:, :, [2, 0, 3, 1]]
    with torch.no_grad():
        torch.testing.assert_close(network(video), network(shuffled), atol=1e-6, rtol=0)
        randomise(network, seed=8)
        assert (network(video) - network(shuffled)).abs().max() > 1e-2


@pytest.mark.parametrize("name", [name for name in networks.VARIANTS if name.endswith("tiny")])
def test_initialisation(name):
    torch.manual_seed(0)
    network = networks.build(name, num_classes=100)
    for key, parameter in network.named_parameters():
        if key.endswith(("qkv.weight", "fc1.weight", "head.weight")) or key.endswith("pos_embed"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), key
        elif key.endswith("bias") and "patch_embed" not in key:
            assert not parameter.any(), key


def test_fixed_positions_are_no_weights_and_do_not_move():
    learned, fixed = (networks.build("vivit_tiny", **SMALL, positions=kind) for kind in ("learned", "sincos"))
    assert learned.state_dict().keys() - fixed.state_dict().keys() == {"pos_embed"}
    assert not fixed.pos_embed[:, 0].any()  # the class token's row
    table = fixed.pos_embed[0, 1:]
    for position, column in ((0, 0), (1, 0), (5, 3), (31, 30)):
        angle = position / 10000 ** (2 * (column // 2) / 32)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert table[position, column].item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(sincos_table(32, 32)[0], table)


# ---- build and its errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", networks.VARIANTS)
def test_every_variant_builds_takes_overrides_and_is_rebuilt_from_kwargs(name):
    with torch.device("meta"):
        network = networks.build(name, num_classes=11, image_size=(64, 128), dropout=0.25)
        again = networks.build(name, **network.kwargs)
    assert network.head.out_features == 11 and network.dropout.p == 0.25
    assert json.loads(json.dumps(network.kwargs)) == network.kwargs
    assert set(network.kwargs) == set(inspect.signature(type(network)).parameters)
    assert again.kwargs == network.kwargs
    assert str(again) == str(network)


@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [
        ("timesformer_b", 121.4, 196), ("timesformer_hr", 121.4, 1703), ("timesformer_l", 121.4, 2380),
        ("mvit_v1_b", 36.6, 70.6), ("mvit_v2_s", 34.5, 64.2), ("mvit_v2_b", 51.2, 225),
        ("videomae_s", 22, 57), ("videomae_b", 87, 180), ("videomae_l", 305, 597), ("videomae_h", 633, 1192),
    ],
)  # fmt: skip
def test_published_parameters_and_flops(name, millions, gflops):
    """As the papers' tables print them, a multiply-add being one FLOP."""
    with torch.device("meta"):
        network = networks.build(name, num_classes=400)
    assert count_parameters(network) / 1e6 == pytest.approx(millions, rel=0.006)
    assert count_flops(network) / 1e9 == pytest.approx(gflops, rel=0.005)


def test_build_names_the_unknown_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"'vivit_bb'.*'vivit_b'") as caught:
        networks.build("vivit_bb", num_classes=2)
    assert all(name in str(caught.value) for name in networks.VARIANTS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vivit_tiny", {"image_size": 60}, "patch_size=8 does not divide image_size=60x60"),
        ("vivit_tiny", {"image_size": (64, 60)}, "patch_size=8 does not divide image_size=64x60"),
        ("vivit_tiny", {"image_size": (64, 64, 64)}, "image_size="),
        ("vivit_tiny", {"num_frames": 7}, "tubelet=2 does not divide num_frames=7"),
        ("vivit_tiny", {"heads": 5}, "heads=5 does not divide width=96"),
        ("vivit_tiny", {"attention": "divided"}, "attention='divided'"),
        ("vivit_tiny", {"attention": "factorised_attention"}, "cls_token=False"),
        ("vivit_tiny", {"cls_token": False}, "pooling='cls' needs cls_token=True"),
        ("vivit_tiny", {"positions": "none"}, "positions='none'"),
        ("vivit_tiny", {"pooling": "max"}, "pooling='max'"),
        ("vivit_tiny", {"gelu": "fast"}, "gelu='fast'"),
        ("vivit_tiny", {"drop_path": 1.0}, "drop_path=1.0"),
        ("vivit_tiny", {"num_classes": -1}, "num_classes=-1"),
        ("timesformer_tiny", {"image_size": 60}, "patch_size=8 does not divide image_size=60x60"),
        ("timesformer_tiny", {"heads": 5}, "heads=5 does not divide width=96"),
        ("timesformer_tiny", {"patch_size": 0}, "patch_size=0"),
        ("timesformer_tiny", {"attention": "space_time"}, "attention='space_time'"),
        ("mvit_v2_tiny", {"image_size": 62}, "patch_size=4 does not divide image_size=62x62"),
        ("mvit_v2_tiny", {"num_frames": 7}, "tubelet=2 does not divide num_frames=7"),
        ("mvit_v2_tiny", {"heads": [1, 2]}, "one entry a stage"),
        ("mvit_v2_tiny", {"key_stride": [4, 4]}, "key_stride=[4, 4]"),
        ("mvit_v2_tiny", {"width_change": "both"}, "width_change='both'"),
        ("mvit_v2_tiny", {"depths": [1, 0, 1]}, "depths[1]=0"),
    ],
)
def test_constructor_errors_name_the_value(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        networks.build(name, **{"num_classes": 2} | options)


@pytest.mark.parametrize("name", ["vivit_tiny", "timesformer_tiny", "mvit_v2_tiny"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 64, 64), (2, 3, 8, 64, 32), (2, 1, 8, 64, 64), (3, 8, 64, 64)])
def test_wrong_video_shape_is_named(name, shape):
    network = networks.build(name, num_classes=2)
    with pytest.raises(ValueError) as caught:
        network(torch.zeros(shape))
    assert str(shape) in str(caught.value) and "(B, 3, 8, 64, 64)" in str(caught.value)


# ---- Classify --------------------------------------------------------------------------------------------------------


def test_classify_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    batch = SimpleNamespace(video=logits, label=torch.tensor([0, 1]))
    log_shares = logits - logits.exp().sum(1, keepdim=True).log()
    plain = Classify()(nn.Identity(), batch)
    assert plain["logits"] is logits
    assert plain["loss"].item() == pytest.approx(-(log_shares[0, 0] + log_shares[1, 1]).item() / 2)
    target = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    smoothed = Classify(label_smoothing=0.3)(nn.Identity(), batch)["loss"].item()
    assert smoothed == pytest.approx(-(target * log_shares).sum(1).mean().item())
    mixed = Classify()(nn.Identity(), SimpleNamespace(video=logits, label=target.half()))["loss"].item()
    assert mixed == pytest.approx(smoothed, abs=1e-3)


def test_classify_computes_in_float32():
    logits = torch.tensor([[10.0, 0.0]])
    loss = Classify()(nn.Identity(), SimpleNamespace(video=logits.half(), label=torch.tensor([0])))["loss"]
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-10.0)), rel=1e-2)  # rounds to 0 in half precision


def test_classify_refuses_full_smoothing():
    with pytest.raises(ValueError, match="label_smoothing=1.0"):
        Classify(label_smoothing=1.0)


def test_cuda_graphs_of_the_environment_are_refused():
    """DALI's buffers are freed in a thread that waits for the device, which a capture does not survive."""
    from torch._inductor import config as inductor

    from configs import loading
    from training.setup import build_learner

    cfg = loading.load(None, ["run.compile=yes"])
    refused = pytest.raises(ValueError, match="TORCHINDUCTOR_CUDAGRAPHS=1: DALI frees the buffers")
    with inductor.patch({"triton.cudagraphs": True}), refused:
        build_learner(cfg, torch.nn.Linear(2, 2), 1, torch.float32, 1)
