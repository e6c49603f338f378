"""Tasks: the loss of a network on a batch."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.losses import Loss
from training.tasks import Classify


def test_classify_loss_equals_values_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    batch = SimpleNamespace(video=logits, label=torch.tensor([0, 1]))
    log_probs = logits - logits.exp().sum(1, keepdim=True).log()
    unsmoothed = Classify()(nn.Identity(), batch)
    assert unsmoothed["logits"] is logits
    assert unsmoothed["loss"].item() == pytest.approx(-(log_probs[0, 0] + log_probs[1, 1]).item() / 2)
    target = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    smoothed = Classify(Loss(label_smoothing=0.3))(nn.Identity(), batch)["loss"].item()
    assert smoothed == pytest.approx(-(target * log_probs).sum(1).mean().item())
    mixed = Classify()(nn.Identity(), SimpleNamespace(video=logits, label=target.half()))["loss"].item()
    assert mixed == pytest.approx(smoothed, abs=1e-3)


def test_classify_computes_in_float32():
    logits = torch.tensor([[10.0, 0.0]])
    loss = Classify()(nn.Identity(), SimpleNamespace(video=logits.half(), label=torch.tensor([0])))["loss"]
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-10.0)), rel=1e-2)  # rounds to 0 in half precision
