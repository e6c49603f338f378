"""Report the GPU, its driver and the formats that its video decoder supports, beside those expected of Hopper.

    python -m bench.gpu_capabilities [out=PATH] [--dry-run]

    out=PATH    the result (default bench/results/gpu_capabilities.json)

Without a GPU, or if the driver reports nothing, a note says so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.harness.runner import run_bench
from utils.environment import environment

PACKAGES = (
    "torchcodec",
    "PyNvVideoCodec",
    "pynvvideocodec",
    "spdl_io",
    "spdl_core",
    "decord",
    "decord2",
    "video_reader-rs",
    "transformers",
    "torchvision",
)
Capabilities = Mapping[tuple[str, str, int], Any]  # limits by codec, chroma format and bit depth


@dataclass(frozen=True)
class Settings:
    """The settings of this command; the module's help explains them."""

    out: str = "bench/results/gpu_capabilities.json"
    dry_run_args: ClassVar[str] = ""


def measure_all(settings: Settings) -> dict[str, Any]:
    """Query GPU, driver and decoder."""
    result = {
        "gpu": gpu_properties(),
        "driver": environment()["driver"],
        "nvidia_smi": nvidia_smi(),
        "decoder": decoder_capabilities(),
    }
    print(f"{(result['gpu'] or {}).get('name', 'no GPU')}, driver {result['driver'] or 'unknown'}")
    print(result["decoder"]["note"])
    for line in result["decoder"]["differences"]:
        print(f"  {line}")
    return result


def gpu_properties() -> dict[str, Any] | None:
    """Return what torch reports about the GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
    }


def nvidia_smi() -> str:
    """Return the output of nvidia-smi; empty without it."""
    if not (program := shutil.which("nvidia-smi")):
        return ""
    try:
        return subprocess.run([program], capture_output=True, text=True, timeout=10).stdout
    except subprocess.TimeoutExpired:
        return "nvidia-smi did not answer within 10 s"


def decoder_capabilities() -> dict[str, Any]:
    """Return the formats that the driver reports, those expected of Hopper, and where they differ."""
    try:
        from pipelines.decode.nvdec import HOPPER, query_capabilities
    except ModuleNotFoundError as error:
        note = f"the decoder was not queried: {error}"
        return {"note": note, "reported": None, "expected": None, "differences": []}
    reported = query_capabilities() if torch.cuda.is_available() else None
    if reported is None:
        note = "the driver cannot be queried: that needs a GPU and the driver's video capability"
    else:
        note = f"the decoder supports {len(reported)} formats, {len(HOPPER)} are expected of Hopper"
    return {
        "note": note,
        "reported": None if reported is None else as_json(reported),
        "expected": as_json(HOPPER),
        "differences": [] if reported is None else list_differences(reported, HOPPER),
    }


def format_name(key: tuple[str, str, int]) -> str:
    """Name a format: ("h264", "4:2:0", 8) -> h264 4:2:0 8 bit."""
    codec, chroma, depth = key
    return f"{codec} {chroma} {depth} bit"


def as_json(capabilities: Capabilities) -> dict[str, dict[str, int]]:
    """Return the limits of each format by its name."""
    return {format_name(key): limits._asdict() for key, limits in sorted(capabilities.items())}


def list_differences(reported: Capabilities, expected: Capabilities) -> list[str]:
    """List each format that only one of them has, and each limit that differs."""
    lines = []
    for key in sorted(set(reported) | set(expected)):
        name = format_name(key)
        if key not in expected:
            lines.append(f"{name}: the GPU decodes it, which was not expected")
        elif key not in reported:
            lines.append(f"{name}: the GPU does not decode it, which was expected")
        else:
            expected_limits = expected[key]._asdict()
            for limit, value in reported[key]._asdict().items():
                if value != expected_limits.get(limit):
                    lines.append(f"{name}: {limit} is {value}, expected {expected_limits.get(limit)}")
    return lines


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("gpu_capabilities", __doc__, Settings, measure_all, argv, PACKAGES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
