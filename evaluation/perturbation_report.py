"""What changed clips do to a test: one table, one figure, and the lines to print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from evaluation.scores import Scores, mcnemar, wilson_interval
from pipelines.perturbations import Perturbation, Seeds, perturb
from utils.files import write_csv

PHRASES = {
    "one_frame": "one frame repeated",
    "shuffled": "frames shuffled",
    "reversed": "frames reversed",
    "half_rate": "every second frame twice",
    "dropped_frames": "dropped frames",
}


class PerturbedResult(NamedTuple):
    """The accuracy with changed clips, beside the same test of the clips as they are."""

    name: str
    strength: int
    top1: float
    low: float  # 95 % interval
    high: float
    only_normal: int  # videos that are right only without the change
    only_perturbed: int  # and only with it
    p: float  # McNemar's exact one
    same_class: float  # share of the videos that are still classified as the same class, rightly or not


class PerturbationTest:
    """Score clips that are changed after they were decoded."""

    def __init__(self, perturbations: Sequence[Perturbation], mean: Sequence[float], std: Sequence[float]):
        self.perturbations, self.mean, self.std = perturbations, mean, std

    def __call__(self, score: Callable[[Tensor], Tensor], video: Tensor, seeds: Seeds) -> Tensor:
        """Return the classes (B, perturbations) of clips (B, V, C, T, H, W)."""
        given: dict[str, Any] = {"seeds": seeds, "mean": self.mean, "std": self.std}
        return torch.stack([score(perturb(video, p, **given)).argmax(1) for p in self.perturbations], dim=1)


def compare_perturbed(scores: Scores, perturbations: Sequence[Perturbation]) -> list[PerturbedResult]:
    """Return a result for each perturbation of a test."""
    n, normal = len(scores.label), scores.probs.argmax(1)
    right = (normal == scores.label) & scores.scored
    results = []
    for column, perturbation in enumerate(perturbations):
        predicted = scores.predicted["perturbations"][:, column]
        correct = (predicted == scores.label) & scores.scored
        only_normal, only_perturbed = int((right & ~correct).sum()), int((correct & ~right).sum())
        same = (predicted == normal)[scores.scored].double().mean().item()
        count = int(correct.sum())
        low, high = wilson_interval(count, n)
        p = mcnemar(only_normal, only_perturbed)
        results.append(PerturbedResult(*perturbation, count / n, low, high, only_normal, only_perturbed, p, same))
    return results


def write_perturbations(output_dir: Path, results: Sequence[PerturbedResult], top1: float) -> Figure:
    """Write perturbations.csv and perturbations.png; return the figure. `top1` is the accuracy of the test itself."""
    rows = (
        [*r[:2], *(f"{value:.4f}" for value in r[2:5]), *r[5:7], f"{r.p:.4g}", f"{r.same_class:.4f}"] for r in results
    )
    write_csv(output_dir / "perturbations.csv", PerturbedResult._fields, rows)
    figure = draw_perturbations(results, top1)
    figure.savefig(output_dir / "perturbations.png", dpi=110)
    return figure


def describe_perturbations(results: Sequence[PerturbedResult], top1: float) -> list[str]:
    """Return a line for each change of motion, and one for each corruption with its five strengths."""
    lines = []
    width = max(len(phrase(r.name)) for r in results)
    for result in (r for r in results if not r.strength):
        change = 100 * (result.top1 - top1)
        lines.append(
            f"{phrase(result.name):{width}}  {100 * result.top1:6.2f} % ({change:+.2f}, McNemar's p {result.p:.4f}); "
            f"{100 * result.same_class:.1f} % classified as before"
        )
    for name in dict.fromkeys(r.name for r in results if r.strength):
        values = "  ".join(f"{100 * r.top1:6.2f}" for r in results if r.name == name)
        lines.append(f"{phrase(name):{width}}  {values} % at strengths 1 to 5")
    return lines


def phrase(name: str) -> str:
    """Return the words for a perturbation."""
    return PHRASES.get(name, name)


def draw_perturbations(results: Sequence[PerturbedResult], top1: float) -> Figure:
    """Draw accuracies: bars for changes of motion, a line over the strengths for each corruption."""
    motion = [r for r in results if not r.strength]
    corruptions = list(dict.fromkeys(r.name for r in results if r.strength))
    panels = int(bool(motion)) + int(bool(corruptions))
    figure = Figure(figsize=(5.2 * panels, 3.4), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if motion:
        panel, positions = axes.pop(0), range(len(motion))
        values = [100 * r.top1 for r in motion]
        below, above = (
            [100 * abs(r.top1 - bound) for r, bound in zip(motion, bounds, strict=True)]
            for bounds in ([r.low for r in motion], [r.high for r in motion])
        )
        panel.barh(positions, values, xerr=[below, above], color="tab:blue", ecolor="gray", capsize=3)
        panel.axvline(100 * top1, color="tab:orange", label="as it is")
        panel.set_yticks(positions, [phrase(r.name) for r in motion])
        panel.invert_yaxis()
        panel.set(xlabel="top-1, %", xlim=(0, 102), title="Motion")
        panel.legend(loc="center right")
    if corruptions:
        panel = axes.pop(0)
        for name in corruptions:
            values = [100 * top1, *(100 * r.top1 for r in results if r.name == name)]
            panel.plot(range(6), values, marker="o", markersize=3, label=phrase(name))
        panel.set(xlabel="strength (0: as it is)", ylabel="top-1, %", ylim=(0, 102), title="Corruptions")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return figure
