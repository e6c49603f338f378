"""Tests of changed clips: table, figure and page, resumed, and equal to a test of clips that were changed by hand."""

from __future__ import annotations

import json

import pytest
import torch

import eval as eval_command
from evaluation.perturbation_report import compare_perturbed
from evaluation.scores import Scores, mcnemar
from pipelines.perturbations import Perturbation, list_perturbations
from tests.helpers.runs import evaluate, read_csv, run, torchrun_command


def test_results_count_what_only_one_test_gets_right():
    label = torch.tensor([0, 1, 2, 0, 1])
    probs = torch.eye(3)[torch.tensor([0, 1, 0, 0, 2])]  # right, right, wrong, right, wrong
    scored = torch.tensor([True, True, True, True, False])
    perturbed = torch.tensor([[0, 1], [2, 1], [2, 0], [2, 0], [1, 2]])
    scores = Scores(probs, label, scored, {4: "gone"}, 0, torch.zeros(5, 1, 2), predicted={"perturbations": perturbed})
    first, second = compare_perturbed(scores, [Perturbation("reversed"), Perturbation("noise", 3)])
    assert (first.top1, first.only_normal, first.only_perturbed) == (2 / 5, 2, 1), "the video that failed is wrong"
    assert first.p == mcnemar(2, 1) and first.same_class == 1 / 4
    assert (second.name, second.strength, second.top1, second.same_class) == ("noise", 3, 2 / 5, 3 / 4)
    assert second.p == 1.0


@pytest.mark.figures
def test_test_with_perturbations_writes_table_figure_and_page(run_dir, capsys):
    plain = read_csv(evaluate(run_dir) / "predictions.csv")
    folder = evaluate(run_dir, "eval.perturbations=all")
    out = capsys.readouterr().out
    assert "frames reversed" in out and "McNemar's p" in out and "at strengths 1 to 5" in out
    rows = read_csv(folder / "perturbations.csv")
    assert [(row["name"], int(row["strength"])) for row in rows] == [tuple(p) for p in list_perturbations("all")]
    summary = json.loads((folder / "summary.json").read_text())
    assert [f"{r['top1']:.4f}" for r in summary["perturbations"]] == [row["top1"] for row in rows]
    assert (folder / "perturbations.png").stat().st_size > 5000
    assert "<h2>Changed clips</h2>" in (folder / "report.html").read_text()
    assert read_csv(folder / "predictions.csv") == plain, "the test itself is the same"
    evaluate(run_dir, "eval.perturbations=motions", status=2)
    assert "did you mean 'motion'?" in capsys.readouterr().err


def test_interrupted_test_with_perturbations_continues(run_dir, monkeypatch):
    motion = "eval.perturbations=motion"
    expected = json.loads((evaluate(run_dir, motion) / "summary.json").read_text())
    calls = []

    def interrupt(self, state):
        save(self, state)
        raise KeyboardInterrupt

    from evaluation.partial import PartialScores

    save = PartialScores.save
    monkeypatch.setattr("evaluation.evaluate.IntervalTimer", lambda minutes: Timer(calls))
    monkeypatch.setattr(PartialScores, "save", interrupt)
    assert eval_command.main([str(run_dir), motion]) == 130
    monkeypatch.undo()
    assert json.loads((evaluate(run_dir, motion) / "summary.json").read_text()) == expected


class Timer:
    """Due after the second batch."""

    def __init__(self, calls: list[int]):
        self.calls = calls

    def due(self) -> bool:
        self.calls.append(1)
        return len(self.calls) == 2


@pytest.mark.slow
def test_perturbations_are_the_same_on_two_processes(run_dir):
    expected = json.loads((evaluate(run_dir, "eval.perturbations=all") / "summary.json").read_text())
    run(torchrun_command([str(run_dir), "eval.perturbations=all"], "eval.py"))
    actual = json.loads((run_dir / "eval" / "2x3" / "summary.json").read_text())
    assert actual["perturbations"] == expected["perturbations"]
