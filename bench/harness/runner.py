"""What every bench does: its command, the circumstances of the figures, medians with quartiles."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.harness.system import Clock
from utils.cli import parse
from utils.environment import environment
from utils.files import replace_text

Settings = TypeVar("Settings")
Measured = dict[str, Any] | Iterator[dict[str, Any]]


def command(
    name: str, doc: str | None, kind: type[Settings], measure: Callable[[Settings], Measured],
    arguments: Sequence[str], peers: Sequence[str] = (),
) -> int:  # fmt: skip
    """The command of a bench; returns its exit status. `kind` has an `out`, and its `toy` are the words of --dry-run,
    which says nothing of speed. `measure` prints as it goes and returns what the result file holds beside head(), or
    yields it as often as it has grown: each time the file is written, so that a kill costs only what is not finished.
    """
    words = [word for word in arguments if word != "--dry-run"]
    if {"-h", "--help"} & set(words):
        print(doc)
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="clipline-dry-run-") as folder:
            if dry := len(words) < len(arguments):
                caches = [f"cache={folder}"] if hasattr(kind, "cache") else []
                words = [*kind.toy.split(), *caches, f"out={folder}/{name}.json", *words]  # type: ignore[attr-defined]
            _, settings = parse(kind, words)
            result = head(name, settings, peers)
            before = Clock.now()
            out = Path(settings.out)  # type: ignore[attr-defined]
            out.parent.mkdir(parents=True, exist_ok=True)
            measured = measure(settings)
            for found in [measured] if isinstance(measured, dict) else measured:
                result |= found
                replace_text(out, json.dumps(result | {"unfinished": True}, indent=1) + "\n")
            result["cores_used_by_others"] = others(before, Clock.now())
            replace_text(out, json.dumps(result, indent=1) + "\n")
            print("dry run: everything runs; the figures mean nothing" if dry else f"written: {out}")
    except (ValueError, OSError) as error:
        print(f"bench.{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def head(bench: str, settings: Any, peers: Sequence[str]) -> dict[str, Any]:
    """The circumstances of the figures; `peers` are packages whose versions matter."""
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return {
        "bench": bench,
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "environment": environment(),
        "peers": {name: metadata.version(name) for name in peers if name in installed},
        "settings": dataclasses.asdict(settings),
    }


def others(before: Clock, after: Clock) -> float:
    """Cores that other processes of the machine used meanwhile, on average."""
    used = (after.busy - before.busy) - (after.own - before.own)
    return round(max(used, 0) / (after.wall - before.wall), 2)


def processors(result: dict[str, Any]) -> str:
    """On which cores a result was measured."""
    e = result["environment"]
    return f"{result.get('cores') or result['settings'].get('cores') or e['cores']} cores of {e['cpu']}"


def known(settings: Any, **choices: Iterable[str]) -> None:
    """ValueError for a word of a setting, or of one of its words, that is not among the choices."""
    for key, words in choices.items():
        value = getattr(settings, key)
        for word in value if isinstance(value, tuple) else [value]:
            if word not in words:
                raise ValueError(f"{key}={word}: expected some of {','.join(words)}")


def at_least(settings: Any, **bounds: int) -> None:
    """ValueError for a whole number below its bound, or one of a tuple of them."""
    for key, least in bounds.items():
        value = getattr(settings, key)
        for word in value if isinstance(value, tuple) else [value]:
            if not str(word).removeprefix("-").isdecimal() or int(word) < least:
                raise ValueError(f"{key}={word}: expected a whole number of at least {least}")


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, quartiles, and the values themselves, in their order."""
    all_values = list(values)
    p25, median, p75 = np.percentile(all_values, [25, 50, 75])
    return {"median": digits(median), "p25": digits(p25), "p75": digits(p75), "all": [digits(v) for v in all_values]}


def digits(value: float) -> float:
    """With five that count."""
    return float(f"{value:.5g}")


def shown(s: dict[str, float], digits: int) -> str:
    """A spread as text: median [quartiles]."""
    return f"{s['median']:.{digits}f} [{s['p25']:.{digits}f}-{s['p75']:.{digits}f}]"
