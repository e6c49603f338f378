"""Result files: figures with the circumstances they were measured in, as JSON with one line per summary."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from utils.environment import environment
from utils.files import atomic_write_text

_LINE_WIDTH = 120
_CHANGE_NO_FIGURE = ("out", "cache")  # settings that are left out


def result_metadata(bench: str, settings: Any, packages: Sequence[str]) -> dict[str, Any]:
    """Describe the circumstances of a measurement; `packages` are those whose versions matter beside our own."""
    installed = {distribution.metadata["Name"] for distribution in metadata.distributions()}
    values = dataclasses.asdict(settings)
    return {
        "bench": bench,
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "environment": environment(),
        "packages": {name: metadata.version(name) for name in packages if name in installed},
        "settings": {key: without_folders(value) for key, value in values.items() if key not in _CHANGE_NO_FIGURE},
    }


def without_folders(value: Any) -> Any:
    """Return the value of a setting; of absolute paths in it, which are those of one machine, only the names."""
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def cpu_description(result: Mapping[str, Any]) -> str:
    """Name the CPU of a result and the number of cores that it used."""
    env = result["environment"]
    return f"{result.get('cores') or result['settings'].get('cores') or env['cores']} cores of {env['cpu']}"


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ValueError with the path if that fails."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as a result: {error}") from None


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file; an interruption leaves the previous one."""
    atomic_write_text(path, format_result(result) + "\n")


def format_result(value: Any, indent: str = "") -> str:
    """Format a result as JSON. Summaries, lists of plain values and whatever fits are one line each."""
    line = json.dumps(value)
    if not isinstance(value, dict | list) or _is_one_line(value) or len(indent) + len(line) <= _LINE_WIDTH:
        return line
    inner = indent + " "
    if isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {format_result(entry, inner)}" for key, entry in value.items()]
    else:
        entries = [format_result(entry, inner) for entry in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = ",\n".join(inner + entry for entry in entries)
    return f"{opening}\n{lines}\n{indent}{closing}"


def _is_one_line(value: dict[str, Any] | list[Any]) -> bool:
    if isinstance(value, dict):
        return is_summary(value)
    return not any(isinstance(entry, dict | list) for entry in value)


def is_summary(value: Mapping[str, Any]) -> bool:
    """Tell whether a part of a result is what summarize() returns."""
    return "median" in value and "p25" in value


def summarize(values: Iterable[float]) -> dict[str, Any]:
    """Return median, quartiles and the samples themselves, in their order."""
    samples = list(values)
    p25, median, p75 = np.percentile(samples, [25, 50, 75])
    return {
        "median": round_sig(median),
        "p25": round_sig(p25),
        "p75": round_sig(p75),
        "samples": [round_sig(sample) for sample in samples],
    }


def round_sig(value: float) -> float:
    """Round to five significant digits."""
    return float(f"{value:.5g}")


def format_iqr(summary: Mapping[str, float], digits: int) -> str:
    """Format a summary as text: median [quartiles]."""
    return f"{summary['median']:.{digits}f} [{summary['p25']:.{digits}f}-{summary['p75']:.{digits}f}]"
