"""Run a benchmark as a command, and check its settings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench.harness.result_file import result_metadata, write_result
from bench.harness.system import Usage, cpu_used_by_others
from utils.cli import parse_args, run_command
from utils.device import choose_device, choose_dtype

SettingsT = TypeVar("SettingsT")
Measurement = dict[str, Any] | Iterator[dict[str, Any]]


def run_bench(
    name: str,
    doc: str | None,
    settings_class: type[SettingsT],
    measure: Callable[[SettingsT], Measurement],
    argv: Sequence[str],
    packages: Sequence[str] = (),
) -> int:
    """Run a benchmark as a command and return its exit status.

    `settings_class` has the field `out`, the path of the result, and `dry_run_args`, the settings of --dry-run, whose
    figures mean nothing. `measure` prints as it goes and returns the result without its metadata, or yields it whenever
    it has grown: the file is rewritten each time, so that a kill costs only the measurement that is under way.
    """

    def work(argv: Sequence[str]) -> int:
        arguments = [argument for argument in argv if argument != "--dry-run"]
        dry_run = len(arguments) < len(argv)
        with tempfile.TemporaryDirectory(prefix="clipline-dry-run-") as folder:
            if dry_run:
                arguments = [*_dry_run_arguments(name, settings_class, folder), *arguments]
            _, settings = parse_args(settings_class, arguments)
            _measure_into_file(name, settings, measure, packages)
        out = settings.out  # type: ignore[attr-defined]
        print("dry run: everything runs; the figures mean nothing" if dry_run else f"written: {out}")
        return 0

    return run_command(f"bench.{name}", doc or "", work, argv, needs_arguments=False)


def _dry_run_arguments(name: str, settings_class: type[Any], folder: str) -> list[str]:
    cache = [f"cache={folder}"] if hasattr(settings_class, "cache") else []
    return [*settings_class.dry_run_args.split(), *cache, f"out={folder}/{name}.json"]


def _measure_into_file(
    name: str, settings: Any, measure: Callable[[Any], Measurement], packages: Sequence[str]
) -> None:
    result = result_metadata(name, settings, packages)
    before = Usage.now()
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    measurement = measure(settings)
    for part in [measurement] if isinstance(measurement, dict) else measurement:
        result |= part
        write_result(out, result | {"unfinished": True})
    result["cores_used_by_others"] = cpu_used_by_others(before, Usage.now())
    write_result(out, result)


def set_up_torch(settings: Any) -> tuple[torch.device, torch.dtype]:
    """Return what device= and precision= ask for, and give torch cpu_threads= threads (0: one per core)."""
    device = choose_device(settings.device)
    torch.set_num_threads(settings.cpu_threads or len(os.sched_getaffinity(0)))
    return device, choose_dtype(settings.precision, device)


def check_choices(settings: Any, **choices: Iterable[str]) -> None:
    """Raise ValueError for a setting, or a part of a tuple, that is not one of its choices."""
    for key, words in choices.items():
        value = getattr(settings, key)
        for part in value if isinstance(value, tuple) else [value]:
            if part not in words:
                raise ValueError(f"{key}={part}: expected some of {','.join(words)}")


def check_minimum(settings: Any, **bounds: int) -> None:
    """Raise ValueError for a setting, or a part of a tuple, that is no whole number or below its bound."""
    for key, minimum in bounds.items():
        value = getattr(settings, key)
        for part in value if isinstance(value, tuple) else [value]:
            if not str(part).removeprefix("-").isdecimal() or int(part) < minimum:
                raise ValueError(f"{key}={part}: expected a whole number of at least {minimum}")
