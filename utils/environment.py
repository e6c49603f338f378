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
        "driver": _driver(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _driver() -> str | None:
    """NVIDIA's, as the kernel has it."""
    try:
        found = re.search(r"Module\s+(\d[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found[1] if found else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
