"""Describe the machine, the versions and the commit that a result was made with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "nvidia-dali-cuda120", "av", "timm", "einops", "kornia", "numpy")


def environment() -> dict[str, Any]:
    """Return machine, versions and commit, for env.json and result files."""
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
        "driver": _driver(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _driver() -> str | None:
    """Return the version of NVIDIA's kernel driver, or None if there is none."""
    try:
        match = re.search(r"Module\s+(\d[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return match[1] if match else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
