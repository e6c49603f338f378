"""training/optimizers.py: parameter groups, optimisers, the schedule."""

import pytest
import timm.optim
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import networks
from training.optimizers import build_optimizer, clip_gradients, layer_of, parameter_groups, takes_weight_decay
from training.schedule import cosine_lr, decay_at, rate_at

torch.set_num_threads(1)


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
def test_schedule_is_bounded_rises_then_falls_and_ends_at_min_lr(schedule):
    total, warmup, lr, min_lr = (schedule[key] for key in ("total_steps", "warmup_steps", "lr", "min_lr"))
    rates = [cosine_lr(step, **schedule) for step in range(total + 3)]
    slack = 1e-9 * lr
    assert all(min_lr - slack <= rate <= lr + slack for rate in rates)
    assert all(a <= b + slack for a, b in zip(rates[:warmup], rates[1 : warmup + 1], strict=True))
    assert all(a + slack >= b for a, b in zip(rates[warmup:-1], rates[warmup + 1 :], strict=True))
    assert rates[warmup] == pytest.approx(lr)
    assert rates[total:] == pytest.approx([min_lr] * 3)


def test_schedule_by_hand():
    rates = [cosine_lr(step, total_steps=8, warmup_steps=4, lr=1.0, min_lr=0.0) for step in range(9)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)
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
def test_schedule_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        cosine_lr(*arguments)


@pytest.mark.parametrize("name", networks.VARIANTS)
def test_groups_partition_the_parameters(name):
    with torch.device("meta"):
        network = networks.build(name, num_classes=3)
    decayed, kept = parameter_groups(network, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    ids = [id(parameter) for group in (decayed, kept) for parameter in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(parameter) for parameter in network.parameters()}

    names = {id(parameter): key for key, parameter in network.named_parameters()}
    kept_names = {names[id(parameter)] for parameter in kept["params"]}
    weights = {f"{key}.weight" for key, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv3d)}
    assert set(names.values()) - kept_names == weights
    assert {"norm.weight", "head.bias"} <= kept_names


def test_frozen_parameters_are_in_no_group():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    decayed, kept = parameter_groups(network, 0.1)
    assert decayed["params"] == [network[1].weight] and kept["params"] == [network[1].bias]


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
def test_weight_decay_rule(name, shape, decays):
    assert takes_weight_decay(name, nn.Parameter(torch.zeros(shape))) == decays


def test_optimisers():
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
def test_timms_optimisers_are_what_they_are_at_timm(name):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    more = {"max_grad_norm": None, "decoupled_decay": True} if name == "lamb" else {}
    pair = build_optimizer(ours, name, 0.1, 0.2, (0.9, 0.95)), timm.optim.create_optimizer_v2(
        theirs.parameters(), name, lr=0.1, weight_decay=0.2, betas=(0.9, 0.95), **more)  # fmt: skip
    for _ in range(3):
        for network, optimizer in zip((ours, theirs), pair, strict=True):
            optimizer.zero_grad()
            network(torch.arange(6.0).view(2, 3)).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_layers_of_a_factorised_encoder_follow_each_other():
    with torch.device("meta"):
        network = networks.build("vivit_fe_tiny", num_classes=3)
    depths = [len(network.blocks), len(network.temporal_blocks)]
    layers = {name: layer_of(name, depths) for name, _ in network.named_parameters()}
    assert {layers[n] for n in layers if n.startswith("blocks.")} == set(range(1, depths[0] + 1))
    assert {layers[n] for n in layers if n.startswith("temporal_blocks.")} == set(range(depths[0] + 1, sum(depths) + 1))
    assert layers["temporal_pos_embed"] == depths[0] and layers["pos_embed"] == layers["patch_embed.proj.weight"] == 0
    assert layers["norm.weight"] == depths[0] and layers["temporal_norm.weight"] == sum(depths) + 1
    assert layers["head.weight"] == sum(depths) + 1


@pytest.mark.parametrize("name", networks.VARIANTS)
def test_layer_decay_gives_each_layer_its_rate(name):
    with torch.device("meta"):
        network = networks.build(name, num_classes=3)
    scales = sorted({group["lr_scale"] for group in parameter_groups(network, 0.1, 0.5)})
    blocks = len(network.blocks) + len(getattr(network, "temporal_blocks", ()))
    assert scales == [0.5 ** (blocks + 1 - layer) for layer in range(blocks + 2)]


@given(st.lists(st.integers(0, 20), max_size=4), st.integers(0, 5), st.integers(0, 30))
def test_step_and_constant_schedules(drops, warmup, place):
    rates = {kind: rate_at(place, 30, warmup, 2.0, 0.5, kind, drops, 0.1) for kind in ("step", "constant")}
    if place < warmup:
        assert rates["step"] == rates["constant"] == pytest.approx(0.5 + 1.5 * (place + 1) / (warmup + 1))
    else:
        assert rates["constant"] == 2.0
        assert rates["step"] == pytest.approx(2.0 * 0.1 ** len([d for d in drops if d <= place]))


def test_weight_decay_goes_from_one_to_the_other():
    values = [decay_at(step, 10, 0.04, 0.4) for step in range(12)]
    assert (
        values[0] == pytest.approx(0.04)
        and values[5] == pytest.approx(0.22)
        and values[10:] == pytest.approx([0.4] * 2)
    )
    assert all(a < b for a, b in zip(values[:10], values[1:11], strict=True))


@pytest.mark.parametrize("each", [False, True])
def test_clipping(each):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for parameter, grad in zip(parameters[:2], ([3.0, 4.0], [0.5]), strict=True):
        parameter.grad = torch.tensor(grad)
    norm = clip_gradients(parameters, 1.0, each)
    assert norm.item() == pytest.approx(25.25**0.5)
    expected = ([0.6, 0.8], [0.5]) if each else ([3 / 25.25**0.5, 4 / 25.25**0.5], [0.5 / 25.25**0.5])
    for parameter, grad in zip(parameters[:2], expected, strict=True):
        assert parameter.grad.tolist() == pytest.approx(grad, rel=1e-4)
    before = [parameter.grad.clone() for parameter in parameters[:2]]
    assert clip_gradients(parameters, 0.0, each).item() == pytest.approx(torch.cat(before).norm().item())
    assert all(torch.equal(a, p.grad) for a, p in zip(before, parameters[:2], strict=True)), "0: none are clipped"
    parameters[0].grad[0] = float("nan")
    assert clip_gradients(parameters, 1.0, each).isnan()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_reaches_only_what_it_should(name):
    network = nn.Linear(2, 2)
    nn.init.ones_(network.weight)
    nn.init.ones_(network.bias)
    optimizer = build_optimizer(network, name, lr=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (network.weight < 1).all() and (network.bias == 1).all()
