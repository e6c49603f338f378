"""Tests that were interrupted: continued where they stopped, and never mixed with another test's scores."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from configs import loading
from evaluation import evaluate as evaluate_module
from evaluation.partial import eval_dir_name
from tests.helpers.runs import evaluate, read_csv

NUM_BATCHES = 7  # of 13 videos, two per batch


@pytest.fixture
def scored_batches(monkeypatch) -> list[int]:
    """Note each batch that is scored; Ctrl-C interrupts before the fourth one."""
    rearrange, calls = evaluate_module.rearrange, []

    def interrupt_or_rearrange(*values, **axes):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return rearrange(*values, **axes)

    monkeypatch.setattr(evaluate_module, "rearrange", interrupt_or_rearrange)
    return calls


def test_interrupted_test_continues_to_the_same_result(run_dir, request, capsys):
    test_dir = evaluate(run_dir)
    predictions, summary = (test_dir / "predictions.csv").read_bytes(), (test_dir / "summary.json").read_text()
    shutil.rmtree(test_dir)
    calls = request.getfixturevalue("scored_batches")
    evaluate(run_dir, status=130)
    assert "the same command continues from here" in capsys.readouterr().err
    (partial_file,) = test_dir.iterdir()
    assert re.fullmatch(r"partial_scores_[0-9a-f]{8}_rank0of1\.pt", partial_file.name)
    evaluate(run_dir)
    assert len(calls) == 4 + NUM_BATCHES - 3, "three batches were scored, the fourth is scored again"
    assert (test_dir / "predictions.csv").read_bytes() == predictions
    assert json.loads((test_dir / "summary.json").read_text()) == json.loads(summary)
    assert not list(test_dir.glob("partial_scores*"))


def test_interrupted_test_starts_over_with_other_weights_or_an_unreadable_file(run_dir, scored_batches):
    evaluate(run_dir, status=130)
    os.utime(run_dir / "best" / "model.safetensors", (1, 1))
    test_dir = evaluate(run_dir)
    assert len(scored_batches) == 4 + NUM_BATCHES, "the weights have changed"
    scored_batches.clear()
    evaluate(run_dir, status=130)
    next(test_dir.glob("partial_scores*")).write_bytes(b"half")
    evaluate(run_dir)
    assert len(scored_batches) == 4 + NUM_BATCHES, "the partial scores are unreadable"


@pytest.mark.parametrize(
    "change",
    [lambda lines: lines[::-1], lambda lines: [*lines, lines[0]], lambda lines: lines[2:]],
    ids=["reversed", "longer", "shorter"],
)
def test_interrupted_test_starts_over_with_another_list(run_dir, scored_batches, change):
    path = run_dir.parent / "data" / "list.txt"
    evaluate(run_dir, status=130)
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    test_dir = evaluate(run_dir)
    assert len(scored_batches) >= 4 + NUM_BATCHES - 1
    labels = [row["label"] for row in read_csv(test_dir / "predictions.csv")]
    assert labels == [line.split()[1] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["eval.preset=mvit"], "mvit"),
        (["eval.preset=mvit", "eval.num_crops=3"], "5x3_short_side8-7"),
        (
            ["eval.num_clips=2", "eval.num_crops=1", "eval.clip_placement=segment_center", "eval.average=logits"],
            "2x1_segment_center_logits",
        ),
        (["eval.num_clips=2", "eval.num_crops=1", "data.val=lists/other.txt"], "2x1_other"),
        (
            ["eval.num_clips=2", "eval.num_crops=1", "data.frame_stride=6", "data.mean=0.5,0.5,0.5"],
            "2x1_frame_stride6_mean-0.5-0.5-0.5",
        ),
        (["eval.num_clips=2", "eval.num_crops=1", "eval.short_side=256"], "2x1_short_side256"),
    ],
)
def test_eval_dir_name_tells_what_differs_from_the_run(overrides, name):
    saved_cfg = loading.load_config(None, ["data.val=lists/own.txt"])
    assert eval_dir_name(loading.load_config(None, ["data.val=lists/own.txt", *overrides]), saved_cfg) == name
