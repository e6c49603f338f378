"""networks/: parity with independent implementations, no leak between clips, gradients, compile, build, Classify."""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import networks
from networks.layers import drop_path_rates
from networks.tasks import Classify
from networks.timesformer import TimeSformer
from networks.vivit import ViViT

torch.set_num_threads(1)

TINY = ["vivit_tiny", "vivit_fe_tiny", "timesformer_tiny"]
SMALL = dict(num_classes=5, num_frames=4, patch_size=8, width=32, depth=2, heads=4)  # TINY, but for the CPU's sake


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter random, zeros and ones of the initialisation too: what is still zero cannot be compared."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_norm_weight = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float(is_norm_weight))
    return module.eval()


def random_video(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- parity with transformers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [32, (16, 32)])
def test_vivit_joint_equals_transformers(image_size):
    from transformers import VivitConfig, VivitForVideoClassification

    ours = randomise(ViViT(**SMALL, image_size=image_size), seed=1)
    config = VivitConfig(
        image_size=image_size,
        num_frames=4,
        tubelet_size=(2, 8, 8),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=5,
    )
    theirs = VivitForVideoClassification(config).eval()
    theirs.load_state_dict(vivit_to_transformers(ours.state_dict()))

    video = random_video(2, 3, 4, *(image_size if isinstance(image_size, tuple) else (image_size, image_size)))
    with torch.no_grad():
        expected = theirs(pixel_values=rearrange(video, "B C T H W -> B T C H W"))
        torch.testing.assert_close(ours(video), expected.logits, atol=1e-5, rtol=0)
    assert expected.logits.std() > 0.1


def vivit_to_transformers(state):
    renames = [
        ("cls_token", "vivit.embeddings.cls_token"),
        ("pos_embed", "vivit.embeddings.position_embeddings"),
        ("patch_embed.proj", "vivit.embeddings.patch_embeddings.projection"),
        ("blocks.", "vivit.layers."),
        (".norm1", ".layernorm_before"),
        (".norm2", ".layernorm_after"),
        (".attn.proj", ".attention.o_proj"),
    ]
    renamed = {}
    for key, tensor in state.items():
        for old, new in renames:
            key = key.replace(old, new)
        if ".attn.qkv" in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[key.replace("attn.qkv", f"attention.{letter}_proj")] = part
        elif key.startswith("norm."):
            renamed[key.replace("norm.", "vivit.layernorm.")] = tensor
        else:
            renamed[key.replace("head.", "classifier.")] = tensor
    return renamed


@pytest.mark.parametrize("direction", ["ours to theirs", "theirs to ours"])
def test_timesformer_divided_equals_transformers(direction):
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    ours = randomise(TimeSformer(**SMALL, image_size=32), seed=2)
    config = TimesformerConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=5,
    )
    theirs = randomise(TimesformerForVideoClassification(config), seed=3)
    names = {key: timesformer_to_transformers(key) for key in ours.state_dict()}
    if direction == "ours to theirs":
        state = {names[key]: tensor for key, tensor in ours.state_dict().items()}
        weight = "timesformer.embeddings.patch_embeddings.projection.weight"
        theirs.load_state_dict(state | {weight: state[weight].squeeze(2)})
    else:
        state = theirs.state_dict()
        assert set(names.values()) == set(state)
        state = {key: state[name] for key, name in names.items()}
        ours.load_state_dict(state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].unsqueeze(2)})

    assert all(block.temporal_fc.weight.abs().mean() > 0.1 for block in ours.blocks)
    assert ours.time_embed.abs().mean() > 0.1
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = theirs(pixel_values=rearrange(video, "B C T H W -> B T C H W")).logits
        torch.testing.assert_close(ours(video), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def timesformer_to_transformers(key):
    top = {
        "cls_token": "timesformer.embeddings.cls_token",
        "pos_embed": "timesformer.embeddings.position_embeddings",
        "time_embed": "timesformer.embeddings.time_embeddings",
    }
    parts = {
        "temporal_norm1": "temporal_layernorm",
        "temporal_attn.qkv": "temporal_attention.attention.qkv",
        "temporal_attn.proj": "temporal_attention.output.dense",
        "temporal_fc": "temporal_dense",
        "norm1": "layernorm_before",
        "attn.qkv": "attention.attention.qkv",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    if key in top:
        return top[key]
    path, _, kind = key.rpartition(".")
    if path.startswith("blocks."):
        _, number, part = path.split(".", 2)
        return f"timesformer.encoder.layer.{number}.{parts[part]}.{kind}"
    last = {
        "patch_embed.proj": "timesformer.embeddings.patch_embeddings.projection",
        "norm": "timesformer.layernorm",
        "head": "classifier",
    }
    return f"{last[path]}.{kind}"


# ---- the factorised encoder, composed of PyTorch's own layers, one clip and one frame at a time ----------------------


def reference_encoder(tokens, cls_token, pos_embed, blocks, norm, heads, pooling):
    """(N, D) -> (D,), with nn.TransformerEncoderLayer where ours has Block."""
    width = tokens.shape[1]
    tokens = torch.cat([cls_token[0], tokens])[None] + pos_embed
    for block in blocks:
        layer = nn.TransformerEncoderLayer(
            width,
            heads,
            dim_feedforward=block.mlp.fc1.out_features,
            dropout=0.0,
            activation=lambda x: F.gelu(x, approximate="tanh"),
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        ).eval()
        pairs = {"norm1": block.norm1, "norm2": block.norm2, "linear1": block.mlp.fc1, "linear2": block.mlp.fc2}
        state = {f"{name}.{key}": value for name, part in pairs.items() for key, value in part.state_dict().items()}
        state |= {f"self_attn.in_proj_{key}": value for key, value in block.attn.qkv.state_dict().items()}
        state |= {f"self_attn.out_proj.{key}": value for key, value in block.attn.proj.state_dict().items()}
        layer.load_state_dict(state)
        tokens = layer(tokens)
    tokens = F.layer_norm(tokens[0], (width,), norm.weight, norm.bias, 1e-6)
    return tokens[0] if pooling == "cls" else tokens[1:].mean(0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vivit_factorised_equals_two_reference_encoders(pooling):
    network = ViViT(**SMALL, image_size=(16, 32), attention="factorised", temporal_depth=3, pooling=pooling)
    randomise(network, seed=4)
    video = random_video(3, 3, 4, 16, 32)
    kernel, bias = network.patch_embed.proj.weight.flatten(1), network.patch_embed.proj.bias

    logits = []
    with torch.no_grad():
        for clip in video:
            features = []
            for frame in range(2):
                pixels = clip[:, 2 * frame : 2 * frame + 2]
                tokens = rearrange(pixels, "C t (h p) (w q) -> (h w) (C t p q)", p=8, q=8) @ kernel.T + bias
                features.append(
                    reference_encoder(
                        tokens, network.cls_token, network.pos_embed, network.blocks, network.norm, 4, pooling
                    )
                )
            feature = reference_encoder(
                torch.stack(features),
                network.temporal_cls_token,
                network.temporal_pos_embed,
                network.temporal_blocks,
                network.temporal_norm,
                4,
                pooling,
            )
            logits.append(network.head(feature))
        torch.testing.assert_close(network(video), torch.stack(logits), atol=1e-5, rtol=0)


# ---- properties of every network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("name", TINY)
def test_a_clip_does_not_see_its_batch_mates(name, pooling):
    if name == "timesformer_tiny" and pooling == "mean":
        pytest.skip("TimeSformer has no pooling option")
    options = {} if name == "timesformer_tiny" else {"pooling": pooling}
    network = randomise(networks.build(name, **SMALL, image_size=32, **options), seed=5)
    video = random_video(3, 3, 4, 32, 32)
    changed = video.clone()
    changed[0] = random_video(3, 4, 32, 32, seed=1)
    with torch.no_grad():
        before, after = network(video), network(changed)
        alone = network(video[1:2])
    assert torch.equal(before[1:], after[1:])
    assert not torch.allclose(before[0], after[0], atol=1e-2)
    torch.testing.assert_close(before[1:2], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TINY)
def test_gradient_reaches_every_parameter(name):
    network = randomise(networks.build(name, **SMALL, image_size=32), seed=6).train()
    network(random_video(2, 3, 4, 32, 32)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, key


@pytest.mark.parametrize("name", TINY)
def test_features_head_and_forward_agree(name):
    network = networks.build(name, num_classes=7, image_size=(32, 64)).eval()
    video = random_video(2, 3, 8, 32, 64)
    with torch.no_grad():
        features = network.forward_features(video)
        assert features.shape == (2, network.kwargs["width"])
        assert torch.equal(network.forward_head(features), network(video))
        assert network(video).shape == (2, 7)


@pytest.mark.parametrize("name", TINY)
def test_dropout_and_drop_path_act_in_training_only(name):
    video = random_video(2, 3, 4, 32, 32)
    for options in ({"dropout": 0.5, "drop_path": 0.0}, {"dropout": 0.0, "drop_path": 0.5}):
        network = randomise(networks.build(name, **SMALL, image_size=32, **options), seed=7)
        assert torch.equal(network(video), network(video))
        network.train()
        first = network(video)
        assert any(not torch.equal(network(video), first) for _ in range(20)), options  # a draw may repeat by chance


def test_drop_path_grows_linearly_with_depth():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]
    network = networks.build("timesformer_tiny", **SMALL, image_size=32, drop_path=0.2)
    assert network.blocks[-1].drop_path.drop_prob == 0.2


def test_timesformer_starts_blind_to_the_order_of_frames():
    torch.manual_seed(0)
    network = TimeSformer(**SMALL, image_size=32).eval()
    assert not network.time_embed.any()
    assert not any(block.temporal_fc.weight.any() or block.temporal_fc.bias.any() for block in network.blocks)
    video = random_video(2, 3, 4, 32, 32)
    shuffled = video[:, :, [2, 0, 3, 1]]
    with torch.no_grad():
        torch.testing.assert_close(network(video), network(shuffled), atol=1e-6, rtol=0)
        randomise(network, seed=8)
        assert (network(video) - network(shuffled)).abs().max() > 1e-2


def test_initialisation():
    torch.manual_seed(0)
    for name in TINY:
        network = networks.build(name, num_classes=100)
        for key, parameter in network.named_parameters():
            if key.endswith(("qkv.weight", "fc1.weight", "head.weight")) or key.endswith("pos_embed"):
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1), key
            elif key.endswith("bias") and "patch_embed" not in key:
                assert not parameter.any(), key


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_compiled_equals_eager(name):
    network = randomise(networks.build(name, **SMALL, image_size=32), seed=9)
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = network(video)
        network.compile(fullgraph=True)
        torch.testing.assert_close(network(video), expected, atol=1e-5, rtol=0)
        # with fullgraph Dynamo wraps our ValueError in a RuntimeError of its own, which quotes it
        with pytest.raises((ValueError, RuntimeError), match=r"takes \(B, 3, 4, 32, 32\)"):
            network(video[:, :, :2])


@pytest.mark.parametrize("name", TINY)
def test_overfits_four_clips(name):
    torch.manual_seed(0)
    network = networks.build(name, **SMALL | {"num_classes": 4}, image_size=32)
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


# ---- build and its errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", networks.VARIANTS)
def test_every_variant_builds_takes_overrides_and_is_rebuilt_from_kwargs(name):
    with torch.device("meta"):
        network = networks.build(name, num_classes=11, image_size=(64, 128), dropout=0.25)
        again = networks.build(name, **network.kwargs)
    assert network.head.out_features == 11 and network.dropout.p == 0.25
    assert set(network.kwargs) == set(inspect.signature(type(network)).parameters)
    assert again.kwargs == network.kwargs
    assert str(again) == str(network)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("timesformer_b", 121.6), ("timesformer_l", 121.6), ("vivit_b", 87.7), ("vivit_l", 305.9), ("vivit_fe_b", 115.1)],
)
def test_published_sizes(name, millions):
    with torch.device("meta"):
        network = networks.build(name, num_classes=400)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


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
        ("vivit_tiny", {"pooling": "max"}, "pooling='max'"),
        ("vivit_tiny", {"gelu": "fast"}, "gelu='fast'"),
        ("vivit_tiny", {"drop_path": 1.0}, "drop_path=1.0"),
        ("vivit_tiny", {"num_classes": 0}, "num_classes=0"),
        ("timesformer_tiny", {"image_size": 60}, "patch_size=8 does not divide image_size=60x60"),
        ("timesformer_tiny", {"heads": 5}, "heads=5 does not divide width=96"),
        ("timesformer_tiny", {"patch_size": 0}, "patch_size=0"),
    ],
)
def test_constructor_errors_name_the_value(name, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        networks.build(name, **{"num_classes": 2} | options)


@pytest.mark.parametrize("name", TINY)
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
