"""Query a machine with a GPU without importing torch, DALI or CUDA into this process."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

QUERY = "import torch; print('GPU', torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


def gpu_name(timeout_s: float = 90.0) -> str:
    """Return the name of the GPU that torch uses; empty if there is none. Raises ValueError if torch does not tell."""
    try:
        process = subprocess.run([sys.executable, "-c", QUERY], capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"torch did not report within {timeout_s:.0f} s which GPU there is: does nvidia-smi work?"
        ) from None
    line = next((line for line in process.stdout.splitlines() if line.startswith("GPU ")), None)
    if line is None:
        message = (process.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ValueError(f"torch cannot report which GPU there is; it printed: {message}")
    return line.removeprefix("GPU ").strip()


def slug(name: str) -> str:
    """Turn a name into part of a path: NVIDIA H100 80GB HBM3 -> nvidia_h100_80gb_hbm3."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def missing_package(name: str) -> str:
    """Return a message if a package is not installed, else an empty text. The package is not imported."""
    parent = name.partition(".")[0]
    spec = find_spec(parent) and find_spec(name)
    return "" if spec else f"{name} is not installed"
