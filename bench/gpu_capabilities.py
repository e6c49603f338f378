"""What a GPU and its driver say of themselves, and what the video decoder can, beside what is believed of Hopper.

    python -m bench.gpu_capabilities [out=PATH] [--dry-run]

    out=PATH    the result (default bench/results/card.json)

Without a GPU, or where the driver cannot be asked, it says so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.harness.runner import command
from utils.environment import environment

PEERS = (
    "torchcodec",
    "PyNvVideoCodec",
    "pynvvideocodec",
    "spdl_io",
    "spdl_core",
    "decord",
    "transformers",
    "torchvision",
)
Table = Mapping[tuple[str, str, int], Any]


@dataclass(frozen=True)
class Settings:
    out: str = "bench/results/card.json"
    toy: ClassVar[str] = ""


def measure_all(s: Settings) -> dict[str, Any]:
    found = {"card": card(), "driver": environment()["driver"], "nvidia_smi": nvidia_smi(), "decoder": decoder()}
    print(f"{(found['card'] or {}).get('name', 'no GPU')}, driver {found['driver'] or 'unknown'}")
    print(found["decoder"]["note"])
    for line in found["decoder"]["differences"]:
        print(f"  {line}")
    return found


def card() -> dict[str, Any] | None:
    """Return what torch says of the GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    return {
        "name": about.name, "compute_capability": f"{about.major}.{about.minor}", "cuda": torch.version.cuda,
        "memory_gib": round(about.total_memory / 2**30, 1), "multiprocessors": about.multi_processor_count,
    }  # fmt: skip


def nvidia_smi() -> str:
    """Return what nvidia-smi lists; empty without it."""
    if not (program := shutil.which("nvidia-smi")):
        return ""
    try:
        return subprocess.run([program], capture_output=True, text=True, timeout=10).stdout
    except subprocess.TimeoutExpired:
        return "nvidia-smi did not answer within 10 s"


def decoder() -> dict[str, Any]:
    """Return what the driver says of the video decoder, what is believed of Hopper, and where they differ."""
    try:
        from pipelines.decode.nvdec import HOPPER, query_capabilities
    except ModuleNotFoundError as error:
        return {"note": f"the decoder was not asked: {error}", "asked": None, "believed": None, "differences": []}
    asked = query_capabilities() if torch.cuda.is_available() else None
    if asked is None:
        note = "the driver cannot be asked what the decoder can: needs a GPU and the driver's video capability"
    else:
        note = f"the decoder can {len(asked)} formats, of Hopper {len(HOPPER)} are believed"
    return {
        "note": note, "asked": None if asked is None else plain(asked), "believed": plain(HOPPER),
        "differences": [] if asked is None else differences(asked, HOPPER),
    }  # fmt: skip


def format_name(key: tuple[str, str, int]) -> str:
    """("h264", "4:2:0", 8) -> h264 4:2:0 8 bit"""
    codec, chroma, depth = key
    return f"{codec} {chroma} {depth} bit"


def plain(table: Table) -> dict[str, dict[str, int]]:
    return {format_name(key): limits._asdict() for key, limits in sorted(table.items())}


def differences(asked: Table, believed: Table) -> list[str]:
    """Return a line for each format that only one has, and for each limit that is another."""
    lines = []
    for key in sorted(set(asked) | set(believed)):
        if key not in believed:
            lines.append(f"{format_name(key)}: the card decodes it, and it was believed that it does not")
        elif key not in asked:
            lines.append(f"{format_name(key)}: the card does not decode it, and it was believed that it does")
        else:
            theirs = believed[key]._asdict()
            for name, value in asked[key]._asdict().items():
                if value != theirs.get(name):
                    lines.append(f"{format_name(key)}: {name} is {value}, {theirs.get(name)} was believed")
    return lines


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("card", __doc__, Settings, measure_all, arguments, PEERS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
