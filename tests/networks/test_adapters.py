"""Adapters: they start as the network that they are put into, LoRA equals peft's, merging changes no logit."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

import networks
from networks.adapters import add_adapter, is_mergeable, merge_adapter
from networks.adapters.lora import LoRA, matches
from networks.attention_maps import attention_maps, attention_saliency
from tests.helpers.networks import EVERY, SMALL, SMALL_FRAMES, random_video, randomize

LORA = {"rank": 3, "alpha": 6.0, "target_modules": ["qkv", "proj", "mlp.fc1"]}
FRAMES = ("frame_encoder_tiny", SMALL_FRAMES)
EVA = SMALL_FRAMES | {"encoder": "vit_small_patch16_dinov3_qkvb"}
LAYER_SCALE = SMALL_FRAMES | {"encoder_args": SMALL_FRAMES["encoder_args"] | {"init_values": 0.3}}
DINOV3 = EVERY["frames dinov3, attentive"]
STRUCTURES = [
    (FRAMES, "st_adapter", {}),
    (FRAMES, "st_adapter", {"position": "both", "dim": 5}),
    (("frame_encoder_tiny", LAYER_SCALE), "st_adapter", {"position": "attn"}),
    (DINOV3, "st_adapter", {"position": "both"}),
    (FRAMES, "aim", {}),
    (("frame_encoder_tiny", LAYER_SCALE), "aim", {"dim": 3, "scale": 1.0}),
]


def make_network(kind: str | tuple, **options) -> nn.Module:
    name, settings = EVERY[kind] if isinstance(kind, str) else kind
    return randomize(networks.build(name, **settings | options), seed=3)


def randomize_only(network: nn.Module, names: list[str]) -> None:
    for index, name in enumerate(names):
        parameter = network.get_parameter(name)
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.2


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(random_video(2, *network.patch_embed.input_shape))


@pytest.mark.parametrize("kind", EVERY)
def test_lora_changes_no_logit_at_first_and_none_when_it_is_merged(kind):
    network = make_network(kind)
    before, keys = logits(network), list(network.state_dict())
    added = add_adapter(network, "lora", **LORA)
    assert torch.equal(logits(network), before)
    assert not any(name.startswith(("head", "pooler")) for name in added)
    randomize_only(network, added)
    unmerged = logits(network)
    assert (unmerged - before).abs().max() > 1e-3
    merge_adapter(network)
    assert list(network.state_dict()) == keys and not any(isinstance(m, LoRA) for m in network.modules())
    scale = unmerged.abs().max()
    assert (logits(network) - unmerged).abs().max() < 1e-6 * max(scale, 1)


def test_lora_has_the_logits_and_gradients_of_peft():
    network = make_network("videomae")
    oracle = copy.deepcopy(network)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=r"blocks.*\.(qkv|proj|fc1)", init_lora_weights=False)
    oracle = inject_adapter_in_model(config, oracle)
    added = add_adapter(network, "lora", **LORA)
    for name in added:  # the same numbers in both
        layer, _, matrix = name.rpartition(".lora_")
        weight = oracle.get_submodule(f"{layer}.lora_{matrix.upper()}.default").weight
        network.get_parameter(name).data.copy_(weight)
    video = random_video(2, *network.patch_embed.input_shape)
    for module in (network, oracle):
        module(video).square().sum().backward()
    torch.testing.assert_close(network(video), oracle(video), rtol=1e-6, atol=1e-6)
    for name in added:
        layer, _, matrix = name.rpartition(".lora_")
        expected = oracle.get_submodule(f"{layer}.lora_{matrix.upper()}.default").weight.grad
        torch.testing.assert_close(network.get_parameter(name).grad, expected, rtol=1e-5, atol=1e-6)


def test_lora_dropout_applies_to_what_is_learned_only():
    network = make_network("videomae")
    before = logits(network)
    added = add_adapter(network, "lora", **LORA, dropout=0.9)
    assert torch.equal(logits(network.train()), before)
    randomize_only(network, added)
    assert not torch.equal(logits(network), logits(network))
    assert torch.equal(logits(network.eval()), logits(network))


def test_lora_is_initialized_with_the_variance_of_its_authors():
    linear = nn.Linear(400, 300)
    network = nn.Sequential(linear)
    add_adapter(network, "lora", rank=64, target_modules=["0"])
    assert linear.lora_a.std().item() == pytest.approx((3 * 400) ** -0.5, rel=0.05)
    assert not linear.lora_b.any()


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("blocks.0.attn.qkv", "qkv", True),
        ("blocks.0.attn.qkv", "attn.*", True),
        ("blocks.0.temporal_attn.qkv", "attn.*", False),
        ("blocks.0.attn.qkv", "blocks.?.attn.qkv", True),
        ("blocks.0.attn.qkv", "kv", False),
        ("qkv", "qkv", True),
    ],
)
def test_lora_patterns_fit_whole_parts_of_a_name(name, pattern, fits):
    assert matches(name, pattern) is fits


@pytest.mark.parametrize(("kind", "adapter", "args"), STRUCTURES)
def test_adapters_of_frame_encoders_start_as_the_encoder_and_then_see_time(kind, adapter, args):
    network = make_network(kind)
    before, fixed = logits(network), network.state_dict()
    added = add_adapter(network, adapter, **args)
    torch.testing.assert_close(logits(network), before, rtol=1e-6, atol=1e-6)
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in fixed.items()), "keys stay what they are"
    randomize_only(network, added)
    video = random_video(2, *network.patch_embed.input_shape)
    with torch.no_grad():
        assert (network(video) - network(video.flip(2))).abs().max() > 1e-3, "the order of the frames matters"
    assert not is_mergeable(network)
    with pytest.raises(ValueError, match=f"an adapter \\({adapter}\\) that cannot be merged"):
        merge_adapter(network)


@pytest.mark.parametrize(("kind", "adapter", "args"), [*STRUCTURES, (FRAMES, "prompt", {}), (FRAMES, "lora", LORA)])
def test_recomputed_blocks_have_the_same_gradients(kind, adapter, args):
    gradients = []
    for checkpoint_blocks in (0, 2):
        network = make_network(kind, checkpoint_blocks=checkpoint_blocks)
        randomize_only(network, add_adapter(network, adapter, **args))
        network(random_video(2, *network.patch_embed.input_shape)).square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_aim_block_is_the_published_sum():
    """Written out for one block: attention over time, over space, and an adapter beside the MLP."""
    network = make_network(FRAMES)
    added = add_adapter(network, "aim", dim=3)
    randomize_only(network, added)
    block = network.blocks[0]
    tokens = random_video(4, 17, 32)  # one clip of four frames
    x = tokens + block.t_adapter(block.attn(block.norm1(tokens.transpose(0, 1)))).transpose(0, 1)
    attended = block.attn(block.norm1(x))
    x = x + attended + block.s_adapter(attended)
    normed = block.norm2(x)
    expected = x + block.mlp(normed) + 0.5 * block.mlp_adapter(normed)
    torch.testing.assert_close(block(tokens), expected)


def test_aim_adds_positions_in_time_before_the_norm_that_clip_has_before_its_blocks():
    network = make_network(FRAMES)
    norm = network.backbone.norm_pre = torch.nn.LayerNorm(32)
    plain = copy.deepcopy(norm)
    (time_embed,) = (name for name in add_adapter(network, "aim", dim=3) if name.endswith("time_embed"))
    positions = torch.nn.init.normal_(network.get_parameter(time_embed))
    tokens = random_video(8, 17, 32)  # two clips of four frames
    torch.testing.assert_close(norm(tokens), plain(tokens + positions[0].repeat(2, 1, 1)))


@pytest.mark.parametrize("kind", ["videomae", "vivit joint", "vivit factorized encoder", "frames"])
def test_prompts_are_seen_in_every_block_and_dropped_after_it(kind):
    network = make_network(kind)
    before = logits(network)
    added = add_adapter(network, "prompt", num_tokens=3)
    assert logits(network).shape == before.shape and not torch.allclose(logits(network), before)
    network(random_video(2, *network.patch_embed.input_shape)).square().sum().backward()
    assert all(network.get_parameter(name).grad.abs().max() > 0 for name in added)
    video = random_video(1, *network.patch_embed.input_shape)
    assert attention_saliency(network, video).shape == (1, *network.patch_embed.grid)
    (weights,) = attention_maps(network, video).values()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_one_prompt_of_a_block_equals_one_more_token():
    network = make_network("videomae")
    (name, *_) = add_adapter(network, "prompt", num_tokens=1)
    block, prompt = network.blocks[0], network.get_parameter(name)
    tokens = random_video(2, 9, 32)
    plain = copy.deepcopy(make_network("videomae").blocks[0])
    expected = plain(torch.cat([tokens, prompt.expand(2, -1, -1)], dim=1))[:, :9]
    torch.testing.assert_close(block(tokens), expected)


@pytest.mark.parametrize("kind", ["frames", "mvit v2"])
def test_bias_trains_all_biases_and_merges_to_the_same_network(kind):
    network = make_network(kind)
    trained = add_adapter(network, "bias")
    assert trained == [name for name, _ in network.named_parameters() if name.endswith("bias")]
    eva = networks.build("frame_encoder_tiny", **EVA)
    assert "backbone.blocks.0.attn.q_bias" in add_adapter(eva, "bias")
    randomize_only(network, trained)
    before = logits(network)
    merge_adapter(network)
    assert torch.equal(logits(network), before) and not hasattr(network, "adapter")


@pytest.mark.parametrize(
    ("kind", "adapter", "args", "message"),
    [
        ("videomae", "st_adapter", {}, "expected an image encoder on frames"),
        ("frames dinov3, attentive", "aim", {}, "without rotary positions, not EvaBlock"),
        ("mvit v2", "prompt", {}, "blocks.0 is a MultiscaleBlock with PooledAttention"),
        ("timesformer divided", "prompt", {}, "blocks.0 is a DividedBlock with Attention"),
        ("vjepa2", "prompt", {}, "blocks.0 is a RotaryBlock with RotaryAttention"),
        (("videomae_tiny", SMALL | {"rlt_threshold": 0.1}), "prompt", {}, "expected rlt_threshold=0"),
        (("frame_encoder_tiny", EVA), "lora", {}, "backbone.blocks.0.attn has biases of its own"),
        ("videomae", "lora", {"target_modules": ["query"]}, "no linear layer fits query; their names end in qkv, proj"),
        ("videomae", "lora", {"r": 4}, "unexpected keyword argument 'r'"),
        ("videomae", "lora", {"rank": 0}, "rank=0"),
        ("videomae", "lorra", {}, "adapter lorra: expected one of lora, bias"),
    ],
)
def test_wrong_adapters_are_refused(kind, adapter, args, message):
    network = make_network(kind)
    state = set(network.state_dict())
    with pytest.raises(ValueError, match=message):
        add_adapter(network, adapter, **args)
    assert set(network.state_dict()) == state, "the network is as it was"


def test_second_adapter_is_refused():
    network = networks.build("videomae_tiny", **SMALL)
    add_adapter(network, "bias")
    with pytest.raises(ValueError, match="has one already"):
        add_adapter(network, "lora")
