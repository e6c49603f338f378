"""Further tests of the clips that a test has decoded: changed clips (eval.perturbations), fewer tokens
(eval.rlt_thresholds)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from configs.schema import Config
from evaluation.html_report import Image
from evaluation.perturbation_report import (
    PerturbationTest,
    compare_perturbed,
    describe_perturbations,
    write_perturbations,
)
from evaluation.run_length_report import ThresholdTest, describe_thresholds, write_thresholds
from evaluation.scores import Scores
from pipelines.perturbations import list_perturbations

Tests = dict[str, PerturbationTest | ThresholdTest]


class FurtherReport(NamedTuple):
    """Hold what further tests add to a report: entries of summary.json, lines to print, titled figures."""

    summary: dict[str, Any]
    lines: list[str]
    images: list[tuple[str, Image]]


def build_further_tests(cfg: Config, network: nn.Module) -> Tests:
    """Return the tests that a configuration asks for. Raises ValueError for one that the network cannot have."""
    tests: Tests = {}
    if cfg.eval.perturbations:
        perturbations = list_perturbations(cfg.eval.perturbations)
        tests["perturbations"] = PerturbationTest(perturbations, cfg.data.mean, cfg.data.std)
    if cfg.eval.rlt_thresholds:
        tests["rlt"] = ThresholdTest(network, cfg.eval.rlt_thresholds)
    return tests


def report_further_tests(tests: Tests, scores: Scores, output_dir: Path) -> FurtherReport:
    """Write the tables and figures of all further tests."""
    report, top1 = FurtherReport({}, [], []), scores.topk(1)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in ("perturbations.csv", "perturbations.png", "rlt.csv", "rlt.png"):  # of an earlier test
        (output_dir / name).unlink(missing_ok=True)
    for name, test in tests.items():
        if isinstance(test, PerturbationTest):
            results = compare_perturbed(scores, test.perturbations)
            report.summary[name] = [result._asdict() for result in results]
            report.lines.extend(describe_perturbations(results, top1))
            report.images.append(("Changed clips", write_perturbations(output_dir, results, top1)))
        else:
            thresholds = test.results(scores)
            report.summary[name] = [result.row() for result in thresholds]
            report.lines.extend(describe_thresholds(thresholds))
            report.images.append(("Fewer tokens", write_thresholds(output_dir, thresholds)))
    return report
