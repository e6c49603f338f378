"""Parameter groups, optimizers, gradient clipping and the schedules of lr and weight decay."""

import pytest
import timm.optim
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import networks
from training.optimizers import build_optimizer, clip_gradients, layer_of, parameter_groups, takes_weight_decay
from training.schedule import cosine_lr, lr_at, weight_decay_at


@st.composite
def schedules(draw):
    total_steps = draw(st.integers(1, 300))
    warmup_steps = draw(st.integers(0, total_steps - 1))
    lr = draw(st.floats(1e-6, 10.0))
    return {
        "total_steps": total_steps,
        "warmup_steps": warmup_steps,
        "lr": lr,
        "min_lr": lr * draw(st.floats(0.0, 1.0)),
    }


@given(schedules())
def test_cosine_lr_rises_then_falls_and_ends_at_min_lr(schedule):
    total, warmup, lr, min_lr = (schedule[key] for key in ("total_steps", "warmup_steps", "lr", "min_lr"))
    lrs = [cosine_lr(step, **schedule) for step in range(total + 3)]
    slack = 1e-9 * lr
    assert all(min_lr - slack <= value <= lr + slack for value in lrs)
    assert all(before <= after + slack for before, after in zip(lrs[:warmup], lrs[1 : warmup + 1], strict=True))
    assert all(before + slack >= after for before, after in zip(lrs[warmup:-1], lrs[warmup + 1 :], strict=True))
    assert lrs[warmup] == pytest.approx(lr)
    assert lrs[total:] == pytest.approx([min_lr] * 3)


def test_cosine_lr_equals_values_by_hand():
    lrs = [cosine_lr(step, total_steps=8, warmup_steps=4, lr=1.0, min_lr=0.0) for step in range(9)]
    assert lrs == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)
    assert cosine_lr(0, total_steps=1, warmup_steps=0, lr=0.5) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 10, 1.0, 0.0), "warmup_steps=10"),
        ((0, 10, -1, 1.0, 0.0), "warmup_steps=-1"),
        ((0, 10, 0, 1.0, 2.0), "min_lr=2.0"),
        ((-1, 10, 0, 1.0, 0.0), "step=-1"),
    ],
)
def test_cosine_lr_refuses_arguments_with_their_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        cosine_lr(*arguments)


@pytest.mark.parametrize("name", networks.VARIANTS)
def test_parameter_groups_contain_each_parameter_once(name):
    with torch.device("meta"):
        network = networks.build(name, num_classes=3)
    decayed, not_decayed = parameter_groups(network, 0.3)
    assert (decayed["weight_decay"], not_decayed["weight_decay"]) == (0.3, 0.0)
    ids = [id(parameter) for group in (decayed, not_decayed) for parameter in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(parameter) for parameter in network.parameters()}

    names = {id(parameter): key for key, parameter in network.named_parameters()}
    not_decayed_names = {names[id(parameter)] for parameter in not_decayed["params"]}
    layers = nn.Linear | nn.Conv2d | nn.Conv3d
    weights = {f"{key}.weight" for key, module in network.named_modules() if isinstance(module, layers)}
    assert set(names.values()) - not_decayed_names == weights
    norm = "norm.weight" if hasattr(network, "norm") else "backbone.norm.weight"
    assert {norm, "head.bias"} <= not_decayed_names


def test_parameter_groups_leave_out_frozen_parameters():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    decayed, not_decayed = parameter_groups(network, 0.1)
    assert decayed["params"] == [network[1].weight] and not_decayed["params"] == [network[1].bias]


@pytest.mark.parametrize(
    ("name", "shape", "decays"),
    [
        ("blocks.0.attn.qkv.weight", (6, 2), True),
        ("blocks.0.norm1.weight", (2,), False),
        ("blocks.0.attn.pool_q.weight", (2, 1, 3, 3, 3), True),
        ("blocks.0.attn.rel_pos_h", (13, 2), False),
        ("blocks.0.attn.qkv.bias", (6,), False),
        ("attn.bias", (2, 2), False),
        ("cls_token", (1, 1, 2), False),
        ("temporal_cls_token", (1, 1, 2), False),
        ("temporal_pos_embed", (1, 5, 2), False),
        ("encoder.pos_embed_spatial", (1, 5, 2), False),
        ("time_embed", (1, 5, 2), False),
        ("pos_embed.proj.weight", (2, 2), True),
        ("repos_embedding", (2, 2), True),
    ],
)
def test_weight_decay_spares_biases_norms_and_learned_tokens(name, shape, decays):
    assert takes_weight_decay(name, nn.Parameter(torch.zeros(shape))) == decays


def test_build_optimizer_passes_its_settings_on():
    network = nn.Linear(2, 2)
    adamw = build_optimizer(network, "adamw", lr=0.1, weight_decay=0.2, betas=(0.8, 0.95))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.2, 0.0]
    assert all(group["lr"] == 0.1 and group["betas"] == (0.8, 0.95) for group in adamw.param_groups)
    sgd = build_optimizer(network, "sgd", lr=0.1, weight_decay=0.0, fused=True)
    assert isinstance(sgd, torch.optim.SGD)
    assert all(group["nesterov"] and group["momentum"] == 0.9 and group["fused"] for group in sgd.param_groups)
    with pytest.raises(ValueError, match="'adam': expected one of adamw, sgd, lamb, lion"):
        build_optimizer(network, "adam")


@pytest.mark.parametrize("name", ["lamb", "lion"])
def test_lamb_and_lion_step_as_timm_creates_them(name):
    torch.manual_seed(0)
    network, timm_network = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    timm_network.load_state_dict(network.state_dict())
    options = {"max_grad_norm": None, "decoupled_decay": True} if name == "lamb" else {}
    optimizer = build_optimizer(network, name, lr=0.1, weight_decay=0.2, betas=(0.9, 0.95))
    timm_optimizer = timm.optim.create_optimizer_v2(
        timm_network.parameters(), name, lr=0.1, weight_decay=0.2, betas=(0.9, 0.95), **options
    )
    for _ in range(3):
        for net, opt in ((network, optimizer), (timm_network, timm_optimizer)):
            opt.zero_grad()
            net(torch.arange(6.0).view(2, 3)).square().sum().backward()
            opt.step()
    assert torch.equal(network.weight, timm_network.weight)


def test_layer_of_a_temporal_encoder_follows_the_spatial_one():
    with torch.device("meta"):
        network = networks.build("vivit_fe_tiny", num_classes=3)
    depths = [len(network.blocks), len(network.temporal_blocks)]
    layers = {name: layer_of(name, depths) for name, _ in network.named_parameters()}
    assert {layers[n] for n in layers if n.startswith("blocks.")} == set(range(1, depths[0] + 1))
    assert {layers[n] for n in layers if n.startswith("temporal_blocks.")} == set(range(depths[0] + 1, sum(depths) + 1))
    assert layers["temporal_pos_embed"] == depths[0] and layers["pos_embed"] == layers["patch_embed.proj.weight"] == 0
    assert layers["norm.weight"] == depths[0] and layers["temporal_norm.weight"] == sum(depths) + 1
    assert layers["head.weight"] == sum(depths) + 1


def test_layer_of_a_pooler_and_of_what_follows_an_image_encoder_is_the_last():
    names = ("pooler.query_tokens", "pooler.blocks.0.norm1.weight", "backbone.attn_pool.latent", "head.bias")
    assert {name: layer_of(name, [12]) for name in names} == dict.fromkeys(names, 13)
    assert layer_of("backbone.blocks.3.norm1.weight", [12]) == 4 and layer_of("video_mod_embed", [12]) == 0
    assert layer_of("backbone.reg_token", [12, 2]) == layer_of("backbone.patch_embed.proj.weight", [12, 2]) == 0
    assert layer_of("backbone.norm.weight", [12, 2]) == layer_of("temporal_pos_embed", [12, 2]) == 12
    assert layer_of("backbone.norm.weight", [12]) == 13 and layer_of("temporal_pos_embed", [12]) == 12


@pytest.mark.parametrize("name", networks.VARIANTS)
def test_layer_decay_scales_the_lr_of_each_layer(name):
    with torch.device("meta"):
        network = networks.build(name, num_classes=3)
    scales = sorted({group["lr_scale"] for group in parameter_groups(network, 0.1, 0.5)})
    blocks = len(network.blocks) + len(getattr(network, "temporal_blocks", ()))
    assert scales == [0.5 ** (blocks + 1 - layer) for layer in range(blocks + 2)]


@given(st.lists(st.integers(0, 20), max_size=4), st.integers(0, 5), st.integers(0, 30))
def test_step_and_constant_lr_after_warmup(milestones, warmup, step):
    lrs = {
        schedule: lr_at(step, 30, warmup, 2.0, min_lr=0.5, schedule=schedule, milestones=milestones, gamma=0.1)
        for schedule in ("step", "constant")
    }
    if step < warmup:
        assert lrs["step"] == lrs["constant"] == pytest.approx(0.5 + 1.5 * (step + 1) / (warmup + 1))
    else:
        assert lrs["constant"] == 2.0
        assert lrs["step"] == pytest.approx(2.0 * 0.1 ** len([m for m in milestones if m <= step]))


def test_weight_decay_rises_along_a_cosine_to_its_end():
    values = [weight_decay_at(step, 10, 0.04, 0.4) for step in range(12)]
    assert values[0] == pytest.approx(0.04)
    assert values[5] == pytest.approx(0.22)
    assert values[10:] == pytest.approx([0.4] * 2)
    assert all(before < after for before, after in zip(values[:10], values[1:11], strict=True))


@pytest.mark.parametrize("per_param", [False, True])
def test_gradients_are_clipped_by_the_global_norm_or_per_parameter(per_param):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    with_grad = parameters[:2]
    for parameter, grad in zip(with_grad, ([3.0, 4.0], [0.5]), strict=True):
        parameter.grad = torch.tensor(grad)
    norm = clip_gradients(parameters, 1.0, per_param)
    assert norm.item() == pytest.approx(25.25**0.5)
    expected = ([0.6, 0.8], [0.5]) if per_param else ([3 / 25.25**0.5, 4 / 25.25**0.5], [0.5 / 25.25**0.5])
    for parameter, grad in zip(with_grad, expected, strict=True):
        assert parameter.grad.tolist() == pytest.approx(grad, rel=1e-4)
    before = [parameter.grad.clone() for parameter in with_grad]
    assert clip_gradients(parameters, 0.0, per_param).item() == pytest.approx(torch.cat(before).norm().item())
    for parameter, grad in zip(with_grad, before, strict=True):
        assert torch.equal(parameter.grad, grad), "with 0 nothing is clipped"
    parameters[0].grad[0] = float("nan")
    assert clip_gradients(parameters, 1.0, per_param).isnan()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_changes_weights_but_no_biases(name):
    network = nn.Linear(2, 2)
    nn.init.ones_(network.weight)
    nn.init.ones_(network.bias)
    optimizer = build_optimizer(network, name, lr=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (network.weight < 1).all() and (network.bias == 1).all()
