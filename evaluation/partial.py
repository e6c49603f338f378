"""A test that goes on where it stopped: its folder's name, its fingerprint, the scores so far."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs import loading
from configs.schema import PRESETS, Config
from utils.checkpoint_io import load_checkpoint
from utils.files import replacing

# Keys of data that decide what of a video a test sees.
SEEN = ("eval_per_class", "frames", "stride", "fps", "sampling", "short", "snap", "crop", "size", "mean", "std")


def test_name(cfg: Config, run: Path) -> str:
    """Of a test's folder: the preset if it is one, else the views; then the list and what else is not the run's own."""
    e = cfg.eval
    name = f"{e.clips}x{e.crops}"
    if e.preset and all(getattr(e, key) == value for key, value in PRESETS[e.preset].items()):
        name = e.preset
    elif e.place != "spread":
        name += f"_{e.place}"
    if e.average != "probability":
        name += f"_{e.average}"
    own = loading.load(run / "config.yaml") if (run / "config.yaml").exists() else cfg
    asked, known = (c.data.test or c.data.val for c in (cfg, own))
    parts = [name] if asked == known else [name, Path(asked).stem]
    given = {key: (getattr(cfg.data, key), getattr(own.data, key)) for key in SEEN}
    if name != e.preset:
        given["short_side"] = e.short_side, own.eval.short_side
    parts += [f"{key}{value}" for key, (value, its) in given.items() if value != its]
    parts = [re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts]
    return "_".join(parts)


def test_key(cfg: Config, folder: Path, videos: Sequence[tuple[object, ...]]) -> str:
    """Tells tests apart whose scores must not be mixed: another configuration, other weights, or other videos, of which
    `videos` says path, label and state."""
    weights_file = Path(cfg.model.init) if not (folder / "best").exists() else folder / "best" / "model.safetensors"
    stamp = weights_file.stat().st_mtime_ns if weights_file.exists() else 0
    return hashlib.sha256(f"{loading.dump(cfg)}{stamp}{list(videos)}".encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Kept:
    """Where a process keeps the scores of a test so far; those of another test (`key`) are not gone on with."""

    path: Path
    key: str

    def load(self) -> dict[str, Any]:
        """Nothing if there is none, or it cannot be read."""
        try:
            state: dict[str, Any] = load_checkpoint(self.path)
        except ValueError:
            return {}
        return state if state.get("key") == self.key else {}

    def save(self, state: dict[str, Any]) -> None:
        """Whole or not at all; a disk that is full costs no more than what an interruption would."""
        with contextlib.suppress(OSError, RuntimeError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                torch.save(state | {"key": self.key}, temporary)
