"""The folder of a run: what training writes into it, and which checkpoint it resumes from.

runs/NAME/config.yaml  env.json  metrics.jsonl  log.txt  tb/  last.pt  previous.pt  best/  curves.png  clips.png  ...
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from safetensors import SafetensorError
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from configs import loading
from configs.schema import Config, Run
from training.history import draw_curves, read_metrics
from training.probe_grid import ProbeSetting, write_probes
from utils.checkpoint_io import load_checkpoint
from utils.environment import environment
from utils.files import atomic_path, atomic_write_text, write_csv

LAST, PREVIOUS, CHECKPOINTS = "last.pt", "previous.pt", "checkpoints"
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save raises RuntimeError where the disk is full


def run_path(run: Run) -> Path:
    """Return the path of a run's folder."""
    return Path(run.output_dir) / (run.name or "run")


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the networks of epochs that a run kept, in their order."""
    found = (folder / CHECKPOINTS).glob("epoch_*")
    return sorted(found, key=lambda path: int(path.name.removeprefix("epoch_")))


class RunDir:
    """Write lines, metrics, figures and checkpoints; on ranks other than the main one all methods do nothing.

    Raises ValueError if the folder cannot be written at the start. A disk that is full later costs what it cannot hold,
    not the run: `failed_writes` names it, and each kind of file is reported once.
    """

    def __init__(self, run: Run, enabled: bool = True):
        self.path, self.enabled = run_path(run), enabled
        self.failed_writes: set[str] = set()
        if not enabled:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._log_file = open(self.path / "log.txt", "a", buffering=1)
            self._tensorboard = SummaryWriter(str(self.path / "tb"))
        except OSError as error:
            raise ValueError(f"run folder {self.path}: cannot be written: {error.strerror}") from None

    def log(self, line: str) -> None:
        """Write a line to the terminal (above a progress bar) and to log.txt."""
        if not self.enabled:
            return
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        with self._tolerate_write_errors("log.txt"):
            self._log_file.write(line + "\n")

    @contextlib.contextmanager
    def _tolerate_write_errors(self, name: str) -> Iterator[None]:
        try:
            yield
            self.failed_writes.discard(name)
        except _WRITE_ERRORS as error:
            if name not in self.failed_writes:
                self.failed_writes.add(name)
                reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
                self.log(f"{self.path / name}: cannot be written: {reason}; training continues")

    def record(self, kind: str, step: int, **values: float) -> None:
        """Write a line of metrics.jsonl, and the same numbers as TensorBoard scalars `kind/name`."""
        if not self.enabled:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no nan
        with self._tolerate_write_errors("metrics.jsonl"), open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        with self._tolerate_write_errors("tb"):
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def save_figure(self, name: str, figure: Figure, step: int) -> None:
        """Write a figure as NAME.png and to TensorBoard."""
        with self._tolerate_write_errors(f"{name}.png"):
            figure.set_dpi(90)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()  # once for both
            image = np.asarray(canvas.buffer_rgba())[..., :3]
            Image.fromarray(image).save(self.path / f"{name}.png")
            self._tensorboard.add_image(name, image, step, dataformats="HWC")

    def write_config(self, cfg: Config) -> None:
        """Write config.yaml and env.json, once it is certain that the run goes on with this configuration.

        Raises ValueError if they cannot be written: without them nobody could use what the run leaves.
        """
        if not self.enabled:
            return
        try:
            atomic_write_text(self.path / "config.yaml", loading.dump_config(cfg))
            atomic_write_text(self.path / "env.json", json.dumps(environment(), indent=1) + "\n")
        except OSError as error:
            raise ValueError(f"run folder {self.path}: cannot be written: {error.strerror}") from None

    def reset(self, cfg: Config) -> None:
        """Remove what an earlier run of this name left, and begin with the configuration in TensorBoard."""
        if not self.enabled:
            return
        self._tensorboard.close()
        for name in (
            "metrics.jsonl",
            LAST,
            PREVIOUS,
            "curves.png",
            "clips.png",
            "attention.png",
            "bad_videos.csv",
            "probes.csv",
            "probes.png",
        ):
            (self.path / name).unlink(missing_ok=True)
        for name in ("tb", "best", "eval", "profile", CHECKPOINTS, "soup"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self._tensorboard = SummaryWriter(str(self.path / "tb"))
        self._tensorboard.add_text("config", f"```yaml\n{loading.dump_config(cfg)}```")

    def resume_from(self, path: Path, step: int) -> None:
        """Prepare the folder for continuing a checkpoint: remove metrics of later steps, which will be made again."""
        if not self.enabled:
            return
        if path == self.path / PREVIOUS:
            (self.path / LAST).unlink(missing_ok=True)  # else the corrupt last.pt would be rotated into previous.pt
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        with self._tolerate_write_errors("metrics.jsonl"):
            atomic_write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Write last.pt to a temporary name and rename it, so that a run which dies meanwhile keeps the one before.

        previous.pt is kept for a disk that corrupts last.pt.
        """
        if not self.enabled:
            return
        for leftover in self.path.glob(".last.pt.*.tmp"):  # of a run that was killed while it saved
            leftover.unlink(missing_ok=True)
        with self._tolerate_write_errors(LAST), atomic_path(self.path / LAST) as temporary:
            torch.save(dict(state), temporary)
            with contextlib.suppress(FileNotFoundError):
                (self.path / LAST).replace(self.path / PREVIOUS)

    def save_best(self, save: Callable[[Path], None]) -> None:
        """Write best/ with a function that writes into a folder."""
        if self.enabled:
            with self._tolerate_write_errors("best"):
                save(self.path / "best")

    def keep_checkpoint(self, epoch: int, number: int, save: Callable[[Path], None]) -> None:
        """Write checkpoints/epoch_N/ with a function that writes into a folder; remove all but the last ones."""
        if self.enabled:
            folder = self.path / CHECKPOINTS
            with self._tolerate_write_errors(CHECKPOINTS):
                save(folder / f"epoch_{epoch}")
                for path in checkpoint_folders(self.path):
                    if not epoch - number < int(path.name.removeprefix("epoch_")) <= epoch:
                        shutil.rmtree(path)

    def write_bad_videos(self, reasons: Iterable[tuple[str, str]]) -> None:
        """Write bad_videos.csv: path and reason of every video that could not be read."""
        if self.enabled:
            with self._tolerate_write_errors("bad_videos.csv"):
                write_csv(self.path / "bad_videos.csv", ("path", "reason"), reasons)

    def draw_curves(self) -> None:
        """Write curves.png from metrics.jsonl."""
        if self.enabled:
            with self._tolerate_write_errors("curves.png"):
                draw_curves(self.path)

    def write_probes(self, settings: Sequence[ProbeSetting]) -> None:
        """Write probes.csv and probes.png from metrics.jsonl."""
        if self.enabled:
            with self._tolerate_write_errors("probes.csv"):
                write_probes(self.path, read_metrics(self.path), settings)

    def close(self) -> None:
        """Close log.txt and TensorBoard's file."""
        if self.enabled:
            with self._tolerate_write_errors("tb"):
                self._tensorboard.close()
            self._log_file.close()


def find_checkpoint(run: Run, log: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """Load the checkpoint that run.resume refers to: its path and its content.

    auto: last.pt of the run, or previous.pt (with a warning) if last.pt is corrupt; None if there is neither. A path
    must exist.
    """
    resume, own_dir = run.resume, run_path(run)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and any((own_dir / name).exists() for name in (LAST, PREVIOUS)):
        resume = "auto"  # torchrun restarted this run, which has done what run.resume asked for already
    if resume == "no":
        return None
    source = own_dir if resume == "auto" else Path(resume)
    if not source.is_dir():
        if resume == "auto":
            return None
        if not source.exists():
            raise ValueError(f"run.resume={resume}: no such checkpoint (expected auto, no, or an existing path)")
        return source, load_checkpoint(source)
    paths = [source / name for name in (LAST, PREVIOUS) if (source / name).exists()]
    if not paths and resume != "auto":
        raise ValueError(f"run.resume={resume}: the folder has no {LAST}")
    for path in paths:
        try:
            return path, load_checkpoint(path)
        except ValueError as error:
            if path == paths[-1]:
                raise
            log(f"{error}; resuming from {PREVIOUS} instead")
    return None
