"""networks/optim.py: parameter groups, optimisers, the schedule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import networks
from networks.optim import build_optimizer, cosine_lr, parameter_groups, takes_weight_decay

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
    with pytest.raises(ValueError, match="'lion'"):
        build_optimizer(network, "lion")


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
