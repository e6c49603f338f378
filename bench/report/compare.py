"""Compare two results of a benchmark: the ratio of every figure, and whether it is more than noise.

    python -m bench.report.compare BEFORE.json AFTER.json [min_change=0]

Every figure that was measured in several rounds is listed by its keys, with AFTER's median divided by BEFORE's and the
range that the quartiles of both allow; `=` marks a range that includes 1, where nothing can be concluded.
`min_change=0.05` lists only figures that differ by at least that fraction. Both results must be of the same benchmark;
differences of machine, settings and versions are listed first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.result_file import is_summary, read_result
from utils.cli import parse_args, run_command

# Keys by which the entries of a list are told apart.
_NAMES = ("name", "network", "case", "spec", "num_workers", "dali_threads", "batch_size", "files")
_IGNORED = ("commit",)  # it always differs


@dataclass(frozen=True)
class Settings:
    """The settings of this command; the module's help explains them."""

    min_change: float = 0.0


def find_summaries(result: Any, path: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each summary of a result with the path of its keys."""
    if isinstance(result, dict):
        if is_summary(result):
            yield path, result
            return
        for key, value in result.items():
            yield from find_summaries(value, f"{path}/{key}" if path else key)
    elif isinstance(result, list):
        for entry in result:
            if isinstance(entry, dict):
                name = " ".join(str(entry[key]) for key in _NAMES if isinstance(entry.get(key), str | int))
                yield from find_summaries(entry, f"{path}/{name}" if path else name)


def ratio(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, float, float]:
    """Return the ratio of the medians, and the smallest and largest that the quartiles allow.

    It is infinite where only BEFORE is 0, and 1 where both are.
    """
    pairs = [(after[a], before[b]) for a, b in (("median", "median"), ("p25", "p75"), ("p75", "p25"))]
    middle, low, high = (a / b if b else float("inf") if a else 1.0 for a, b in pairs)
    return middle, low, high


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List what else differs: machine, versions, settings."""
    lines = []
    for part in ("environment", "packages", "settings"):
        old, new = (_flatten(result.get(part, {})) for result in (before, after))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and key not in _IGNORED:
                lines.append(f"{part}.{key}: {old.get(key)} -> {new.get(key)}")
    return lines


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def format_comparison(before: Mapping[str, Any], after: Mapping[str, Any], min_change: float = 0.0) -> str:
    """Format the comparison. Raises ValueError for results of different benchmarks or without a common figure."""
    if before.get("bench") != after.get("bench"):
        raise ValueError(f"{after.get('bench')}: expected a result of bench.{before.get('bench')}, like the first one")
    old, new = (dict(find_summaries(dict(result))) for result in (before, after))
    common = [path for path in old if path in new]
    if not common:
        raise ValueError("the results have no figure in common")
    lines = [f"differs: {line}" for line in differences(before, after)]
    width = max(map(len, common))
    lines.append(f"{'':{width}}  {'before':>10} {'after':>10}  after / before")
    for path in common:
        middle, low, high = ratio(old[path], new[path])
        if abs(middle - 1) >= min_change:
            mark = " =" if low <= 1 <= high else ""
            lines.append(
                f"{path:{width}}  {old[path]['median']:>10.3f} {new[path]['median']:>10.3f}  "
                f"{middle:.3f} [{low:.3f}-{high:.3f}]{mark}"
            )
    for which, paths in (("first", old.keys() - new.keys()), ("second", new.keys() - old.keys())):
        if paths:
            lines.append(f"only in the {which}: {', '.join(sorted(paths))}")
    return "\n".join(lines)


def work(argv: Sequence[str]) -> int:
    """Print the comparison of the two files."""
    paths, settings = parse_args(Settings, argv, ["BEFORE.json", "AFTER.json"])
    before, after = (read_result(Path(path)) for path in paths)
    print(format_comparison(before, after, settings.min_change))
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_command("bench.report.compare", __doc__, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
