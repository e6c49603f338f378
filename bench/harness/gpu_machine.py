"""What a machine with a GPU has, asked without torch, DALI or CUDA in this process."""

from __future__ import annotations

import ctypes.util
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ASK_TORCH = "import torch; print('GPU', torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


def card_name(seconds: float = 90.0) -> str:
    """Return the name of the GPU that torch sees; empty if there is none. Raises ValueError if torch does not say."""
    try:
        asked = subprocess.run([sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"torch did not say within {seconds:.0f} s which GPU there is: is the driver all right?"
        ) from None
    line = next((line for line in asked.stdout.splitlines() if line.startswith("GPU ")), None)
    if line is None:
        said = (asked.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ValueError(f"torch could not be asked which GPU there is: it said {said}")
    return line.removeprefix("GPU ").strip()


def slug(name: str) -> str:
    """NVIDIA H100 80GB HBM3 -> nvidia_h100_80gb_hbm3"""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def missing_package(name: str) -> str:
    """Return that a package is not installed, in words; empty if it is. It is not imported."""
    parent = name.partition(".")[0]
    there = find_spec(parent) and find_spec(name)
    return "" if there else f"{name} is not installed"


def ffmpeg_libraries(folder: Path) -> list[str]:
    """Return folders for LD_LIBRARY_PATH in which torchcodec and SPDL find FFmpeg where the system has none: PyAV's own
    libraries, linked in `folder` under the names they look for. Empty where the system has FFmpeg, or PyAV brings
    none."""
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
