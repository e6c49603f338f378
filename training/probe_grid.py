"""A grid of probes: which there are, how each is trained, which of them go on, and how they do.

What is known of a probe is in the rows of kind "probes" in metrics.jsonl, one for each validation; everything else
(the probes that are stopped, the table, the figure) is a function of them, so that a run resumes exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from configs.schema import Config
from networks.probed_encoder import ProbeGrid
from training.optimizers import build_optimizer
from utils.files import write_csv

ROW_KIND = "probes"


class ProbeSetting(NamedTuple):
    """The kind of a probe, and the peak lr and weight decay that it is trained with."""

    kind: str
    lr: float
    weight_decay: float

    @property
    def name(self) -> str:
        """Its name in metrics.jsonl and TensorBoard."""
        return f"{self.kind}_lr{self.lr:g}_wd{self.weight_decay:g}"


class ProbeResult(NamedTuple):
    """The validation of one probe: accuracies 0 to 1, and the mean negative log probability of the label."""

    top1: float
    top5: float
    loss: float


def probe_settings(cfg: Config) -> list[ProbeSetting]:
    """Return all probes of a configuration: every kind with every lr and every weight decay. Raises ValueError if two
    are the same."""
    p = cfg.probe
    grid = itertools.product(p.kinds, p.lr or (cfg.optim.lr,), p.weight_decay or (cfg.optim.weight_decay,))
    settings = [ProbeSetting(*values) for values in grid]
    names = [setting.name for setting in settings]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"probe: {twice} occurs twice; expected different kinds, lr and weight_decay")
    return settings


def describe_probes(settings: Sequence[ProbeSetting]) -> str:
    """Describe the probes of a grid in one line."""
    kinds, lrs, decays = (list(dict.fromkeys(values)) for values in zip(*settings, strict=True))
    grid = f"lr {', '.join(map('{:g}'.format, lrs))}; weight decay {', '.join(map('{:g}'.format, decays))}"
    return f"{len(settings)} probe{'s' * (len(settings) > 1)}: {', '.join(kinds)}; {grid}"


def probe_grid_args(cfg: Config) -> dict[str, Any]:
    """Return the arguments of the network `probe_grid` for a configuration, beside classes, frames and size."""
    return {
        "encoder": cfg.model.name,
        "encoder_args": cfg.model.args,
        "kinds": [setting.kind for setting in probe_settings(cfg)],
        "layers": list(cfg.probe.layers),
        "num_heads": cfg.probe.num_heads,
        "num_clips": cfg.data.num_clips,
        "seed": cfg.run.seed,
    }


def build_probe_optimizers(
    network: ProbeGrid, settings: Sequence[ProbeSetting], **options: Any
) -> tuple[torch.optim.Optimizer, ...]:
    """Build an optimizer for each probe. `options` are those of build_optimizer() that all share."""
    optimizers = []
    for probe, setting in zip(network.probes, settings, strict=True):
        optimizer = build_optimizer(probe, lr=setting.lr, weight_decay=setting.weight_decay, **options)
        for group in optimizer.param_groups:
            group["peak_lr"] = setting.lr
        optimizers.append(optimizer)
    return tuple(optimizers)


def metrics_row(settings: Sequence[ProbeSetting], results: Mapping[int, ProbeResult]) -> dict[str, float]:
    """Return the values of a row of metrics.jsonl: three for each probe that was validated."""
    return {
        f"{name}/{settings[index].name}": value
        for index, result in results.items()
        for name, value in result._asdict().items()
    }


def read_results(row: Mapping[str, Any], settings: Sequence[ProbeSetting]) -> dict[int, ProbeResult]:
    """Return what metrics_row() made a row of."""
    results = {}
    for index, setting in enumerate(settings):
        values = [row.get(f"{name}/{setting.name}") for name in ProbeResult._fields]
        if values[0] is not None:
            results[index] = ProbeResult(*(math.nan if value is None else value for value in values))
    return results


def best_probe(results: Mapping[int, ProbeResult]) -> int:
    """Return the probe of the highest accuracy, of several the one with the lowest loss."""
    return rank_probes(results)[0]


def rank_probes(results: Mapping[int, ProbeResult]) -> list[int]:
    """Return the probes, the best first. A loss that is not finite comes last."""

    def key(index: int) -> tuple[float, float, int]:
        result = results[index]
        return -result.top1, result.loss if math.isfinite(result.loss) else math.inf, index

    return sorted(results, key=key)


def active_probes(
    rows: Sequence[Mapping[str, Any]], settings: Sequence[ProbeSetting], halving_epochs: int
) -> list[int]:
    """Return the probes that are trained after the validations in `rows` of metrics.jsonl.

    Every `halving_epochs` only the better half goes on, at least one (successive halving: Jamieson and Talwalkar,
    2016).
    """
    active = list(range(len(settings)))
    # By epoch, as a run that was killed while it wrote its validation has made it twice.
    validations = {row["epoch"]: row for row in rows if row["kind"] == ROW_KIND}
    for epoch, row in sorted(validations.items()):
        if halving_epochs and epoch % halving_epochs == 0:
            best = [index for index in rank_probes(read_results(row, settings)) if index in active]
            active = sorted(best[: math.ceil(len(active) / 2)])
    return active


def best_results(rows: Sequence[Mapping[str, Any]], settings: Sequence[ProbeSetting]) -> dict[int, tuple[int, Any]]:
    """Return the best validation of each probe that has one: its epoch and ProbeResult."""
    best: dict[int, tuple[int, ProbeResult]] = {}
    for row in rows:
        if row["kind"] == ROW_KIND:
            for index, result in read_results(row, settings).items():
                if index not in best or rank_probes({0: best[index][1], 1: result})[0] == 1:
                    best[index] = row["epoch"], result
    return best


def write_probes(folder: Path, rows: Sequence[Mapping[str, Any]], settings: Sequence[ProbeSetting]) -> None:
    """Write probes.csv, the best validation of each probe, the best one first, and probes.png."""
    best = best_results(rows, settings)
    last = max((row["epoch"] for row in rows if row["kind"] == ROW_KIND), default=0)
    trained = {
        i for row in rows if row["kind"] == ROW_KIND and row["epoch"] == last for i in read_results(row, settings)
    }
    lines = []
    for index in rank_probes({index: result for index, (_, result) in best.items()}):
        epoch, result = best[index]
        values = (f"{value:.4f}" for value in result)
        lines.append([*settings[index], epoch, *values, "trained to the end" if index in trained else "stopped early"])
    columns = ["kind", "lr", "weight_decay", "best_epoch", *ProbeResult._fields, "status"]
    write_csv(folder / "probes.csv", columns, lines)
    figure = draw_probes(settings, {index: result for index, (_, result) in best.items()})
    figure.savefig(folder / "probes.png", dpi=110)


def draw_probes(settings: Sequence[ProbeSetting], results: Mapping[int, ProbeResult]) -> Figure:
    """Draw the top-1 accuracy of probes: a panel for each kind, lr by weight decay, the best one framed."""
    kinds = list(dict.fromkeys(setting.kind for setting in settings))
    lrs = sorted({setting.lr for setting in settings}, reverse=True)
    decays = sorted({setting.weight_decay for setting in settings})
    size = max(4.5, len(kinds) * (1.6 + 0.75 * len(decays))), 1.5 + 0.5 * len(lrs)
    figure = Figure(figsize=size, layout="constrained")
    best = best_probe(results) if results else None
    top1 = {index: 100 * result.top1 for index, result in results.items()}
    low, high = (limit(top1.values(), default=0.0) for limit in (min, max))
    for axes, kind in zip(np.ravel(figure.subplots(1, len(kinds))), kinds, strict=True):
        values = np.full((len(lrs), len(decays)), np.nan)
        for index, setting in enumerate(settings):
            if setting.kind == kind and index in top1:
                row, column = lrs.index(setting.lr), decays.index(setting.weight_decay)
                values[row, column] = value = top1[index]
                color = "white" if value < (low + high) / 2 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
                if index == best:
                    frame = (column - 0.48, row - 0.47), 0.96, 0.94
                    axes.add_patch(Rectangle(*frame, fill=False, edgecolor="red", linewidth=2))
        axes.imshow(values, vmin=low, vmax=max(high, low + 1e-6), cmap="viridis", aspect="auto")
        axes.set(title=kind, xlabel="weight decay", ylabel="lr")
        axes.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        axes.set_yticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
    figure.suptitle("validation top-1, %", fontsize=10)
    return figure
