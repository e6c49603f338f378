"""The folder of a run: what is written into it while it trains, and read back to resume or evaluate it.

runs/NAME/config.yaml  env.json  metrics.jsonl  log.txt  tb/  last.pt  best/  curves.png  clips.png  bad_videos.csv
"""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from configs import schema
from configs.schema import Config

# What torch.load raises, by the way in which a file is damaged.
_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile)
_PACKAGES = ("torch", "nvidia-dali-cuda120", "av", "timm", "einops", "kornia", "numpy")


def run_path(cfg: Config) -> Path:
    return Path(cfg.run.folder) / (cfg.run.name or "run")


class RunFolder:
    """Writes lines, metrics, scalars and checkpoints. Raises ValueError if the folder cannot be written."""

    def __init__(self, cfg: Config):
        self.path = run_path(cfg)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(schema.dump(cfg))
            (self.path / "env.json").write_text(json.dumps(environment(), indent=1) + "\n")
            self._log = open(self.path / "log.txt", "a", buffering=1)
        except OSError as error:
            raise ValueError(f"run folder {self.path}: cannot be written: {error.strerror}") from None
        self.board = SummaryWriter(str(self.path / "tb"))

    def say(self, line: str) -> None:
        """A line on the terminal (around a progress bar) and in log.txt."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        self._log.write(line + "\n")

    def record(self, kind: str, step: int, **values: float) -> None:
        """One line of metrics.jsonl, and the same numbers as TensorBoard scalars `kind/name`."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no nan
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def start_over(self) -> None:
        """Drop what an earlier run of this name left."""
        self.board.close()
        for name in ("metrics.jsonl", "last.pt", "curves.png", "clips.png", "bad_videos.csv"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("tb", "best", "eval"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.board = SummaryWriter(str(self.path / "tb"))

    def forget_after(self, step: int) -> None:
        """Drop metrics of later steps than the checkpoint a run resumes from: they will be made again."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        (self.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))

    def save_last(self, state: Mapping[str, Any]) -> None:
        """last.pt, written to a temporary name and renamed: a run that dies while saving keeps the one before."""
        temporary = self.path / f".last.pt.{os.getpid()}.tmp"
        try:
            torch.save(dict(state), temporary)
            temporary.replace(self.path / "last.pt")
        finally:
            temporary.unlink(missing_ok=True)

    def write_bad_videos(self, bad: Iterable[tuple[str, str]]) -> None:
        """bad_videos.csv: path and reason of every video that could not be read."""
        write_csv(self.path / "bad_videos.csv", ("path", "reason"), bad)

    def close(self) -> None:
        self.board.close()
        self._log.close()


def find_checkpoint(cfg: Config) -> Path | None:
    """What run.resume means: auto is the run's own last.pt if there is one; a path must exist."""
    last = run_path(cfg) / "last.pt"
    if cfg.run.resume == "no":
        return None
    if cfg.run.resume == "auto":
        return last if last.exists() else None
    path = Path(cfg.run.resume)
    path = path / "last.pt" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"run.resume={cfg.run.resume}: no such checkpoint (expected auto, no, or an existing path)")
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that save_last wrote, on the CPU; tensors and plain values only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint: {reason}") from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut short by a kill is dropped."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(list(header))
        writer.writerows(rows)


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit that figures were measured with."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu,
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def draw_curves(folder: Path) -> Path:
    """curves.png from metrics.jsonl: loss and top-1 accuracy (of a pre-training the loss's share of the mean HOG's)
    over steps, training and validation."""
    rows = read_metrics(folder)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    score, title = ("top1", "top-1, %") if any("top1" in row for row in rows) else ("share", "loss / mean HOG's, %")
    rows = [
        row | {"share": row["loss"] / row["baseline"]} if row.get("baseline") and row["loss"] else row for row in rows
    ]
    panels = zip(figure.subplots(1, 2), ("loss", score), (1, 100), ("loss", title), strict=True)
    for axes, key, scale, title in panels:
        for kind, style in (("train", {"color": "tab:blue"}), ("val", {"color": "tab:orange", "marker": "o"})):
            points = [
                (row["step"], scale * row[key]) for row in rows if row["kind"] == kind and row.get(key) is not None
            ]
            axes.plot(
                *zip(*points, strict=True) if points else ((), ()), label=kind, markersize=3, linewidth=1, **style
            )
        axes.set(xlabel="step", title=title, ylim=(0, 102 if scale == 100 else None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / "curves.png", dpi=110)
    return folder / "curves.png"
