"""Two results of a bench beside each other: the ratio of every figure, and whether it is more than noise.

    python -m bench.report.compare BEFORE.json AFTER.json [least=0]

Every figure that was measured several times is listed by where it stands, with AFTER's median through BEFORE's and the
range that the quartiles of both allow; `=` says that it holds 1, so that nothing can be said. `least=0.05` lists only
what differs by at least so much. Both have to be of the same bench; other machines, settings, versions are named first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import parse

_NAMES = ("name", "network", "case", "spec", "workers", "threads", "batch", "files")  # what tells rows of a list apart


@dataclass(frozen=True)
class Settings:
    least: float = 0.0


def figures(result: Any, place: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Where each spread of a result stands, and the spread."""
    if isinstance(result, dict):
        if "median" in result and "p25" in result:
            yield place, result
            return
        for key, value in result.items():
            yield from figures(value, f"{place}/{key}" if place else key)
    elif isinstance(result, list):
        for entry in result:
            if isinstance(entry, dict):
                named = " ".join(str(entry[key]) for key in _NAMES if isinstance(entry.get(key), str | int))
                yield from figures(entry, f"{place}/{named}" if place else named)


def ratio(before: dict[str, float], after: dict[str, float]) -> tuple[float, float, float]:
    """Of the medians, the least and the most that the quartiles allow; infinite where BEFORE is 0 and AFTER is not."""
    pairs = [(after[a], before[b]) for a, b in (("median", "median"), ("p25", "p75"), ("p75", "p25"))]
    middle, low, high = (a / b if b else float("inf") if a else 1.0 for a, b in pairs)
    return middle, low, high


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What else differs: machine, versions, settings."""
    found = []
    for part in ("environment", "peers", "settings"):
        one, other = (_flat(result.get(part, {})) for result in (before, after))
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key) and key not in ("commit", "out", "cache"):
                found.append(f"{part}.{key}: {one.get(key)} -> {other.get(key)}")
    return found


def _flat(values: dict[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": value}
    return flat


def compare(before: dict[str, Any], after: dict[str, Any], least: float = 0.0) -> str:
    """The table. Raises ValueError if the results are of different benches or have no figure in common."""
    if before.get("bench") != after.get("bench"):
        raise ValueError(f"{after.get('bench')}: expected a result of bench.{before.get('bench')}, as the first")
    one, other = dict(figures(before)), dict(figures(after))
    both = [place for place in one if place in other]
    if not both:
        raise ValueError("the results have no figure in common")
    lines = [f"differs: {line}" for line in differences(before, after)]
    width = max(map(len, both))
    lines.append(f"{'':{width}}  {'before':>10} {'after':>10}  after / before")
    for place in both:
        middle, low, high = ratio(one[place], other[place])
        if abs(middle - 1) >= least:
            same = " =" if low <= 1 <= high else ""
            lines.append(f"{place:{width}}  {one[place]['median']:>10.3f} {other[place]['median']:>10.3f}  "
                         f"{middle:.3f} [{low:.3f}-{high:.3f}]{same}")  # fmt: skip
    for what, left in (("first", one.keys() - other.keys()), ("second", other.keys() - one.keys())):
        if left:
            lines.append(f"only in the {what}: {', '.join(sorted(left))}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        paths, settings = parse(Settings, arguments, ["BEFORE.json", "AFTER.json"])
        results = []
        for path in paths:
            try:
                results.append(json.loads(Path(path).read_text()))
            except (ValueError, OSError) as error:
                raise ValueError(f"{path}: not readable as a result: {error}") from None
        print(compare(results[0], results[1], settings.least))
    except ValueError as error:
        print(f"bench.report.compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
