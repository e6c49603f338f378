"""Losses: each against its published formula, its gradient, and the libraries that have it."""

from __future__ import annotations

import math

import kornia
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.loss import AsymmetricLossMultiLabel, BinaryCrossEntropy, LabelSmoothingCrossEntropy
from torch import Tensor

from training.losses import SIGMOID, SOFTMAX, Loss, adjusted_offsets, effective_weights

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [-4.0, 1.0, 0.25], [30.0, -30.0, 0.0]])
LABEL = torch.tensor([0, 1, 2, 0])
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
MIXED = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5], [0.25, 0.0, 0.75], [1.0, 0.0, 0.0]])


def label_probs(logits: Tensor = LOGITS) -> list[float]:
    rows = [[math.exp(x) for x in row] for row in logits.double().tolist()]
    return [row[label] / sum(row) for row, label in zip(rows, LABEL.tolist(), strict=True)]


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("name", "args", "formula"),
    [
        ("cross_entropy", {}, lambda p: -math.log(p)),
        ("focal", {"gamma": 0.5}, lambda p: -((1 - p) ** 0.5) * math.log(p)),
        ("poly", {"epsilon": 2.0}, lambda p: -math.log(p) + 2 * (1 - p)),
        ("gce", {"q": 0.7}, lambda p: (1 - p**0.7) / 0.7),
        ("gce", {"q": 1.0}, lambda p: 1 - p),
        ("gce", {"q": 1e-3}, lambda p: -math.log(p)),
    ],
)
def test_softmax_losses_equal_their_formulas(name, args, formula):
    expected = mean(map(formula, label_probs()))
    assert Loss(name, args)(LOGITS, LABEL).item() == pytest.approx(
        expected, rel=1e-2 if args.get("q") == 1e-3 else 1e-5
    )


def test_sigmoid_losses_equal_their_formulas():
    def asymmetric(p: float, y: float) -> float:
        shifted = max(p - 0.05, 0)
        return -math.log(p) * (1 - p) if y else -math.log(1 - shifted) * shifted**4

    def focal(p: float, y: float) -> float:
        return -0.25 * (1 - p) ** 2 * math.log(p) if y else -0.75 * p**2 * math.log(1 - p)

    logits, labels = LOGITS[:3], LABELS[:3]  # the last row rounds to 0 and 1 here
    pairs = list(zip(logits.double().sigmoid().flatten().tolist(), labels.flatten().tolist(), strict=True))
    expected = {
        "bce": mean(-math.log(p if y else 1 - p) for p, y in pairs),
        "focal": mean(focal(p, y) for p, y in pairs),
        "asymmetric": mean(asymmetric(p, y) for p, y in pairs) * 3,
    }
    for name, value in expected.items():
        assert Loss(name, multi_label=True)(logits, labels).item() == pytest.approx(value, rel=1e-5), name


def test_losses_equal_those_of_libraries():
    few, labels = LOGITS[:3], LABELS[:3]  # timm cuts off probabilities near 0
    several = Loss("asymmetric", multi_label=True)(few, labels)
    torch.testing.assert_close(several, AsymmetricLossMultiLabel()(few, labels))
    torch.testing.assert_close(Loss("bce", multi_label=True)(LOGITS, LABELS), BinaryCrossEntropy(0)(LOGITS, LABELS))
    smoothed = Loss("bce", label_smoothing=0.3)(LOGITS, LABEL)
    torch.testing.assert_close(smoothed, BinaryCrossEntropy(0.3)(LOGITS, LABEL))
    smoothed = Loss("cross_entropy", label_smoothing=0.3)(LOGITS, LABEL)
    torch.testing.assert_close(smoothed, LabelSmoothingCrossEntropy(0.3)(LOGITS, LABEL))
    plain = Loss("focal", {"gamma": 2.0, "alpha": -1}, multi_label=True)(LOGITS, LABELS)
    with_alpha = kornia.losses.binary_focal_loss_with_logits(LOGITS, LABELS, alpha=0.5, gamma=2.0, reduction="mean")
    torch.testing.assert_close(plain, 2 * with_alpha)
    ours = Loss("focal", {"gamma": 1.5})(LOGITS, LABEL)
    theirs = kornia.losses.focal_loss(LOGITS, LABEL, alpha=None, gamma=1.5, reduction="none").sum(-1).mean()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("name", "multi_label"), [*((name, False) for name in [*SOFTMAX, "bce"]), *((name, True) for name in SIGMOID)]
)
def test_gradients_equal_finite_differences(name, multi_label, smoothing, monkeypatch):
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # finite differences need more than float32
    weights, offsets = torch.tensor([0.5, 1.0, 1.5]).double(), torch.tensor([0.1, -1.0, 0.3]).double()
    options = {"label_smoothing": smoothing, "class_weights": weights, "logit_offsets": offsets}
    loss = Loss(name, multi_label=multi_label, **options)
    logits = LOGITS[:3].double().requires_grad_()
    for target in [LABELS[:3]] if multi_label else [LABEL[:3], MIXED[:3]]:
        assert torch.autograd.gradcheck(lambda x, target=target: loss(x, target), (logits,))


@pytest.mark.parametrize("name", [*SOFTMAX, "bce", "asymmetric"])
def test_one_hot_targets_equal_class_indices_and_half_precision_is_computed_in_float32(name):
    loss = Loss(name, class_weights=torch.tensor([0.5, 1.0, 1.5]))
    one_hot = F.one_hot(LABEL, 3).float()
    torch.testing.assert_close(loss(LOGITS, LABEL), loss(LOGITS, one_hot))
    assert loss(LOGITS.bfloat16(), one_hot.bfloat16()).dtype == torch.float32
    assert loss(LOGITS, LABEL).isfinite() and loss(100 * LOGITS, LABEL).isfinite()


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "poly", "gce"])
def test_soft_targets_mix_the_losses_of_the_classes(name):
    losses = torch.stack([Loss(name)(LOGITS[:1], torch.tensor([label])) for label in range(3)])
    torch.testing.assert_close(Loss(name)(LOGITS[:1], MIXED[:1]), (MIXED[0] * losses).sum())


def test_focal_loss_of_a_certain_clip_has_a_gradient_at_any_power():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    Loss("focal", {"gamma": 0.5})(logits, torch.tensor([0])).backward()
    assert logits.grad.isfinite().all()


def test_logit_adjustment_shifts_the_decision_by_the_log_of_the_shares():
    counts = [60, 30, 10]
    loss = Loss(logit_offsets=adjusted_offsets(counts, tau=1.0))
    shares = torch.tensor(counts) / 100
    expected = F.cross_entropy(LOGITS + shares.log(), LABEL)
    torch.testing.assert_close(loss(LOGITS, LABEL), expected)
    assert adjusted_offsets([1, 0], tau=1.0).isfinite().all()
    torch.testing.assert_close(adjusted_offsets(counts, 2.0), 2 * shares.log())


def test_class_weights_are_those_of_effective_numbers():
    weights = effective_weights([1000, 100, 10], beta=0.999)
    raw = [(1 - 0.999) / (1 - 0.999**n) for n in (1000, 100, 10)]
    torch.testing.assert_close(weights, torch.tensor([3 * value / sum(raw) for value in raw]))
    assert effective_weights([5, 0, 5], beta=0.9).tolist() == pytest.approx([1.5, 0, 1.5])
    single = Loss(class_weights=weights)(LOGITS[:1], LABEL[:1])
    torch.testing.assert_close(single, weights[0] * F.cross_entropy(LOGITS[:1], LABEL[:1]))
    columns = Loss("bce", multi_label=True, class_weights=weights)(LOGITS, LABELS)
    plain = F.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(columns, (weights * plain).mean())


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any), st.floats(0, 0.9999))
def test_effective_weights_have_mean_one_and_fall_with_the_number_of_videos(counts, beta):
    weights = effective_weights(counts, beta)
    assert weights.mean().item() == pytest.approx(1, rel=1e-4)
    pairs = sorted((n, w) for n, w in zip(counts, weights.tolist(), strict=True) if n)
    assert all(b <= a * (1 + 1e-5) for (_, a), (_, b) in zip(pairs, pairs[1:], strict=False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "l2"}, "loss=l2: expected one of cross_entropy, focal, poly, gce, bce, asymmetric"),
        (
            {"name": "poly", "multi_label": True},
            "loss=poly: expected one of bce, focal, asymmetric with several labels",
        ),
        ({"name": "poly", "args": {"eps": 1}}, "loss_args.eps: expected the arguments of loss=poly: epsilon"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"name": "gce", "args": {"q": 0}}, "q=0: expected a number, 0.001 to 1"),
        ({"name": "focal", "args": {"gamma": "two"}}, "gamma=two: expected a number, 0 to inf"),
    ],
)
def test_wrong_losses_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Loss(**settings)
