"""Read a checkpoint, and report a damaged file as a ValueError."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

# What torch.load raises, by the way in which a file is damaged.
_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load tensors and plain values from a checkpoint onto the CPU; no code in it is run.

    Raises ValueError for a file that is missing, damaged or no checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint: {reason}") from None
