"""Statistics of scores: top-k accuracy, Wilson's interval, McNemar's p, the confusion matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scores import Scores, mcnemar, wilson_interval


def test_topk_counts_labels_among_the_k_best():
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    scores = Scores(
        probs=probs,
        label=torch.tensor([0, 1, 0]),
        scored=torch.tensor([True, True, True]),
        failed={},
        padded=0,
        correct=torch.zeros(3, 1, 2),
    )
    assert scores.topk(1) == pytest.approx(1 / 3)
    assert scores.topk(2) == pytest.approx(2 / 3)
    assert scores.topk(5) == 1


def test_wilson_interval_equals_published_values():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(0, 0) == (0, 1)
    low, high = wilson_interval(15000, 19796)
    assert high - low < 0.013


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_interval_contains_the_proportion(correct, wrong):
    low, high = wilson_interval(correct, correct + wrong)
    assert 0 <= low <= correct / (correct + wrong) <= high <= 1


def test_mcnemar_is_the_exact_two_sided_p():
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1
    assert mcnemar(0, 1) == 1
    assert mcnemar(0, 20) < 1e-5
