"""Query a machine with a GPU without importing torch, DALI or CUDA into this process."""

from __future__ import annotations

import ctypes.util
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

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


def ffmpeg_libraries(folder: Path) -> list[str]:
    """Return folders for LD_LIBRARY_PATH in which torchcodec and SPDL find FFmpeg where the system has none.

    PyAV's own libraries are linked into `folder` under the names that both look for. The list is empty where the system
    has FFmpeg or PyAV comes without libraries.
    """
    package = find_spec("av")
    if ctypes.util.find_library("avcodec") or not package or not package.origin:
        return []
    bundled = Path(package.origin).parents[1] / "av.libs"
    links = {}
    for path in bundled.glob("lib*.so.*"):
        if match := re.fullmatch(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+(\.so\.\d+)[.\d]*", path.name):
            links[match[1] + match[2]] = path
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in links.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path.resolve())
    return [str(folder), str(bundled)] if links else []
