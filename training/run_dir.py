"""The folder of a run: what is written into it while it trains, and read back to resume or evaluate it.

runs/NAME/config.yaml  env.json  metrics.jsonl  log.txt  tb/  last.pt  previous.pt  best/  curves.png  clips.png  ...
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from configs import loading
from configs.loading import Config
from training.history import draw_curves, read_metrics
from utils.checkpoint_io import load_checkpoint
from utils.environment import environment
from utils.files import replace_text, replacing, write_csv

LAST, PREVIOUS = "last.pt", "previous.pt"
_CANNOT_WRITE = (OSError, RuntimeError, SafetensorError)  # torch.save raises RuntimeError where the disk is full


def run_path(cfg: Config) -> Path:
    return Path(cfg.run.folder) / (cfg.run.name or "run")


class RunFolder:
    """Writes lines, metrics, scalars and checkpoints. Raises ValueError if the folder cannot be written at the start;
    a disk that is full later costs what it cannot hold, not the run: `trouble` says what, once for each kind of file.
    """

    def __init__(self, cfg: Config):
        self.path = run_path(cfg)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._log = open(self.path / "log.txt", "a", buffering=1)
            self.board = SummaryWriter(str(self.path / "tb"))
        except OSError as error:
            raise ValueError(f"run folder {self.path}: cannot be written: {error.strerror}") from None
        self.trouble: set[str] = set()

    def say(self, line: str) -> None:
        """A line on the terminal (around a progress bar) and in log.txt."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        with self._spared("log.txt"):
            self._log.write(line + "\n")

    @contextlib.contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        try:
            yield
            self.trouble.discard(name)
        except _CANNOT_WRITE as error:
            if name not in self.trouble:
                self.trouble.add(name)
                reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
                self.say(f"{self.path / name}: cannot be written: {reason}; training goes on")

    def record(self, kind: str, step: int, **values: float) -> None:
        """One line of metrics.jsonl, and the same numbers as TensorBoard scalars `kind/name`."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no nan
        with self._spared("metrics.jsonl"), open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        with self._spared("tb"):
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def show(self, name: str, figure: Figure, step: int) -> None:
        """NAME.png in the run folder, and TensorBoard."""
        with self._spared(f"{name}.png"):
            figure.savefig(self.path / f"{name}.png", dpi=90)
            self.board.add_figure(name, figure, step)

    def write_config(self, cfg: Config) -> None:
        """config.yaml and env.json, once it is sure that this is what the run goes on with. Raises ValueError if they
        cannot be written: without them nobody could use what the run leaves."""
        try:
            replace_text(self.path / "config.yaml", loading.dump(cfg))
            replace_text(self.path / "env.json", json.dumps(environment(), indent=1) + "\n")
        except OSError as error:
            raise ValueError(f"run folder {self.path}: cannot be written: {error.strerror}") from None

    def start_over(self) -> None:
        """Drop what an earlier run of this name left."""
        self.board.close()
        for name in ("metrics.jsonl", LAST, PREVIOUS, "curves.png", "clips.png", "attention.png", "bad_videos.csv"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("tb", "best", "eval", "profile"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.board = SummaryWriter(str(self.path / "tb"))

    def forget_after(self, step: int) -> None:
        """Drop metrics of later steps than the checkpoint a run resumes from: they will be made again."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        with self._spared("metrics.jsonl"):
            replace_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    def save_last(self, state: Mapping[str, Any]) -> None:
        """last.pt, written to a temporary name and renamed: a run that dies while saving keeps the one before, and
        previous.pt is kept for a disk that spoils the last."""
        for left in self.path.glob(".last.pt.*.tmp"):  # of a run that was killed while it saved
            left.unlink(missing_ok=True)
        with self._spared(LAST), replacing(self.path / LAST) as temporary:
            torch.save(dict(state), temporary)
            with contextlib.suppress(FileNotFoundError):
                (self.path / LAST).replace(self.path / PREVIOUS)

    def save_best(self, save: Callable[[Path], None]) -> None:
        """best/, by what writes into a folder."""
        with self._spared("best"):
            save(self.path / "best")

    def write_bad_videos(self, bad: Iterable[tuple[str, str]]) -> None:
        """bad_videos.csv: path and reason of every video that could not be read."""
        with self._spared("bad_videos.csv"):
            write_csv(self.path / "bad_videos.csv", ("path", "reason"), bad)

    def draw_curves(self) -> None:
        """curves.png, of metrics.jsonl."""
        with self._spared("curves.png"):
            draw_curves(self.path)

    def close(self) -> None:
        with self._spared("tb"):
            self.board.close()
        self._log.close()


def find_checkpoint(cfg: Config, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """What run.resume means, read: auto is the run's own last.pt if there is one, and where that cannot be read, said,
    previous.pt; a path must exist."""
    resume, own = cfg.run.resume, run_path(cfg)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and any((own / n).exists() for n in (LAST, PREVIOUS)):
        resume = "auto"  # torchrun started this run anew: what it was to begin with is behind it
    if resume == "no":
        return None
    folder = own if resume == "auto" else Path(resume)
    if not folder.is_dir():
        if resume == "auto":
            return None
        if not folder.exists():
            raise ValueError(f"run.resume={resume}: no such checkpoint (expected auto, no, or an existing path)")
        return folder, load_checkpoint(folder)
    there = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    if not there and resume != "auto":
        raise ValueError(f"run.resume={resume}: no {LAST} in it")
    for path in there:
        try:
            return path, load_checkpoint(path)
        except ValueError as error:
            if path == there[-1]:
                raise
            say(f"{error}; going on from {PREVIOUS}")
    return None
