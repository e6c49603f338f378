"""Scores of a test so far, so that an interrupted test continues; and what tells one test from another."""

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
from configs.schema import PRESETS, Config, Eval
from utils.checkpoint_io import load_checkpoint
from utils.files import atomic_path

# Keys of data that decide which part of a video a test sees.
DATA_KEYS_OF_A_TEST = (
    "eval_max_per_class",
    "num_frames",
    "frame_stride",
    "fps",
    "sampling",
    "short_clip",
    "snap_to_keyframes",
    "crop",
    "image_size",
    "mean",
    "std",
)


def eval_dir_name(cfg: Config, saved_cfg: Config) -> str:
    """Name the folder of a test: its views, then the list and the settings that are not those of the run itself."""
    name = _views_name(cfg.eval)
    test_list, own_list = (c.data.test or c.data.val for c in (cfg, saved_cfg))
    parts = [name] if test_list == own_list else [name, Path(test_list).stem]
    settings = {key: (getattr(cfg.data, key), getattr(saved_cfg.data, key)) for key in DATA_KEYS_OF_A_TEST}
    if name != cfg.eval.preset:
        settings["short_side"] = cfg.eval.short_side, saved_cfg.eval.short_side
    settings["shots"] = cfg.eval.shots, saved_cfg.eval.shots
    parts += [f"{key}{value}" for key, (value, saved) in settings.items() if value != saved]
    parts = [re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts]
    return "_".join(parts)


def _views_name(e: Eval) -> str:
    is_preset = e.preset and all(getattr(e, key) == value for key, value in PRESETS[e.preset].items())
    name = e.preset if is_preset else f"{e.num_clips}x{e.num_crops}"
    if not is_preset and e.clip_placement != "uniform":
        name += f"_{e.clip_placement}"
    return name if e.average == "probs" else f"{name}_{e.average}"


def eval_fingerprint(cfg: Config, weights_file: Path, videos: Sequence[tuple[object, ...]]) -> str:
    """Hash what tells tests apart whose scores must not be mixed: configuration, weights, and the videos.

    `videos` has path, label, size and mtime of each.
    """
    mtime_ns = weights_file.stat().st_mtime_ns if weights_file.exists() else 0
    return hashlib.sha256(
        f"{loading.dump_config(cfg)}{mtime_ns}{list(videos)}".encode("utf-8", "surrogateescape")
    ).hexdigest()


@dataclass(frozen=True)
class PartialScores:
    """The file in which a process keeps the scores of a test so far; those of another test are ignored."""

    path: Path
    fingerprint: str

    def load(self) -> dict[str, Any]:
        """Return the state that save() wrote, or nothing if there is none or it cannot be read."""
        try:
            state: dict[str, Any] = load_checkpoint(self.path)
        except ValueError:
            return {}
        return state if state.get("fingerprint") == self.fingerprint else {}

    def save(self, state: dict[str, Any]) -> None:
        """Write the state completely or not at all. A full disk costs no more than an interruption would."""
        with contextlib.suppress(OSError, RuntimeError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path) as temporary:
                torch.save(state | {"fingerprint": self.fingerprint}, temporary)
