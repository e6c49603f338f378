"""Tests with fewer tokens: table, figure and page; a threshold of 0 is the test itself."""

from __future__ import annotations

import json

import pytest

from networks import weights
from tests.helpers.runs import NO_DROPOUT, evaluate, read_csv, train


@pytest.mark.figures
def test_thresholds_are_tested_beside_the_dense_network(arguments, capsys):
    run_dir = train(arguments, "a", *NO_DROPOUT, "optim.epochs=1", "optim.warmup_epochs=0")
    plain = json.loads((evaluate(run_dir) / "summary.json").read_text())
    folder = evaluate(run_dir, "eval.rlt_thresholds=0.3,100")
    out = capsys.readouterr().out
    assert out.count("rlt_threshold ") == 3 and "times (" in out
    summary = json.loads((folder / "summary.json").read_text())
    dense, middle, still = summary["rlt"]
    assert (dense["threshold"], dense["kept"], dense["top1"]) == (0, 1.0, plain["top1"]) and dense["speedup"] == 1
    assert still["kept"] == pytest.approx(0.5), "the first of two frames of tubelets"
    assert 0.5 < middle["kept"] < 1 and all(result["clips_per_s"] > 0 for result in summary["rlt"])
    assert [float(row["threshold"]) for row in read_csv(folder / "rlt.csv")] == [0, 0.3, 100]
    assert (folder / "rlt.png").stat().st_size > 5000 and "Fewer tokens" in (folder / "report.html").read_text()
    assert summary["top1"] == plain["top1"]
    with_threshold = train(
        arguments,
        "b",
        "model.args={embed_dim: 32, depth: 2, num_heads: 2, rlt_threshold: 100}",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
    )
    assert weights.load_network(with_threshold / "best")[0].rlt_threshold == 100
    evaluate(with_threshold)


def test_networks_without_it_are_refused(arguments, capsys):
    mvit = ["model.name=mvit_v2_tiny", "model.args={}", "optim.epochs=1", "optim.warmup_epochs=0"]
    run_dir = train(arguments, "a", *mvit)
    evaluate(run_dir, "eval.rlt_thresholds=0.1", status=2)
    assert "eval.rlt_thresholds: MViT has none; expected ViViT (joint), VideoMAE or V-JEPA 2" in capsys.readouterr().err
    evaluate(run_dir, "eval.rlt_thresholds=-1", status=2)
    assert "eval.rlt_thresholds=[-1.0]: expected numbers of 0 or more" in capsys.readouterr().err
