"""Average the networks of several epochs of a run, and find out which of them score best on its validation list.

Uniform soups of the last k epochs are stochastic weight averaging (Izmailov et al., 2018) without its own schedule; the
greedy soup is algorithm 1 of model soups (Wortsman et al., 2022). Networks with batch norm would need its statistics
anew; there are none here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from configs.schema import Eval
from evaluation.eval_run import load_run
from evaluation.evaluate import evaluate
from evaluation.validate import validation_metrics
from networks.weights.adapter import weights_file
from networks.weights.save_load import write_folder
from networks.weights.source_config import CONFIG, read_json
from pipelines.loader import EvalVideoLoader
from training.history import score_of
from training.run_dir import checkpoint_folders
from utils.device import clip_dtype


class Soup(NamedTuple):
    """An average of the networks of some epochs, and its score on the validation list, more is better."""

    name: str
    epochs: list[int]
    score: float


def find_checkpoints(run: Path) -> dict[int, Path]:
    """Return the folders of the epochs that a run kept. Raises ValueError if there are fewer than two."""
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder")
    folders = {int(path.name.removeprefix("epoch_")): path for path in checkpoint_folders(run)}
    if len(folders) < 2:
        expected = "expected at least two, of a run with run.keep_checkpoints=N"
        raise ValueError(f"{run}: {len(folders)} networks in checkpoints/: {expected}")
    return folders


def average(folders: Sequence[Path]) -> dict[str, Tensor]:
    """Return the means of the weights in folders of one network, or of one adapter."""
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for folder in folders:
        for key, tensor in load_file(weights_file(folder)).items():
            total[key] = total[key] + tensor.double() if key in total else tensor.double()
            dtypes[key] = tensor.dtype
    return {key: (tensor / len(folders)).to(dtypes[key]) for key, tensor in total.items()}


def try_soups(folders: Mapping[int, Path], score: Callable[[Mapping[str, Tensor]], float]) -> list[Soup]:
    """Score each epoch alone, the last 2, 3 ... together, and the greedy soup."""

    def soup(name: str, epochs: Sequence[int]) -> Soup:
        return Soup(name, list(epochs), score(average([folders[epoch] for epoch in epochs])))

    numbers = sorted(folders)
    alone = [soup(f"epoch {epoch}", [epoch]) for epoch in numbers]
    uniform = [soup(f"last {count}", numbers[-count:]) for count in range(2, len(numbers) + 1)]
    first, *others = sorted(alone, key=lambda single: -single.score)
    greedy = first
    for single in others:
        candidate = soup("greedy", [*greedy.epochs, *single.epochs])
        greedy = candidate if candidate.score >= greedy.score else greedy
    return [*alone, *uniform, greedy._replace(name="greedy")]


def best_soup(soups: Sequence[Soup]) -> Soup:
    """Return the one with the highest score; of equal ones that of most epochs."""
    return max(soups, key=lambda soup: (soup.score, len(soup.epochs)))


def describe(soups: Sequence[Soup], metric: str) -> str:
    """Return a table of soups."""
    width = max(len(soup.name) for soup in soups)

    def show(score: float) -> str:
        return f"{-score:.4f}" if metric == "loss" else f"{100 * score:6.2f} %"

    best = best_soup(soups)
    return "\n".join(
        f"{soup.name:{width}}  {metric} {show(soup.score)}  epochs {', '.join(map(str, sorted(soup.epochs)))}"
        f"{'  <- best' if soup is best else ''}"
        for soup in soups
    )


def write_soup(run: Path, folders: Mapping[int, Path], soup: Soup) -> Path:
    """Write RUN/soup, a run folder with the average as its best network; return it."""
    output = run / "soup"
    shutil.rmtree(output, ignore_errors=True)
    source = folders[soup.epochs[0]]
    config = read_json(source / CONFIG) | {"soup": {"of": str(run), "epochs": sorted(soup.epochs)}}
    state = average([folders[epoch] for epoch in soup.epochs])
    file = weights_file(source)
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()  # of an adapter what tells its base from others
    write_folder(output / "best", state, {CONFIG: config}, metadata, weights_file=file.name)
    shutil.copy(run / "config.yaml", output / "config.yaml")
    return output


def find_soup(path: Path, overrides: Sequence[str]) -> str:
    """Score averages of the epochs that a run kept on its validation list, and write the best one; return the lines."""
    folders = find_checkpoints(path)
    run = load_run(path, overrides)
    cfg = run.cfg
    if run.world.size > 1 or cfg.task.is_pretraining or not cfg.data.val:
        raise ValueError("--soup: expected one process, and a classifier with a validation list (data.val)")
    center = Eval(num_clips=1, num_crops=1, batch_size=cfg.data.batch_size)
    loader = EvalVideoLoader(
        cfg.data.val, cfg.data, center, device=run.device, dtype=clip_dtype(run.dtype), classes=run.classes
    )
    metric = cfg.eval.metric if cfg.eval.metric != "auto" else "map" if cfg.data.multi_label else "top1"

    def score(state: Mapping[str, Tensor]) -> float:
        run.network.load_state_dict(state, strict=False)  # of an adapter these are some of its keys
        scores = evaluate(run.network, loader, run.world, run.dtype, average=cfg.eval.average)
        return score_of(validation_metrics(scores, run.classes), metric)[0]

    with loader:
        soups = try_soups(folders, score)
    best = best_soup(soups)
    output = write_soup(path, folders, best)
    alone = f"no average is better than epoch {best.epochs[0]} alone\n" if len(best.epochs) == 1 else ""
    return f"{describe(soups, metric)}\n{alone}written: {output}; test it with: python eval.py {output}"
