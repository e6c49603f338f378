"""The tests that need a GPU, and what came of them.

    python -m bench.gpu_tests [out=PATH] [--dry-run]

    out=PATH    the result (default bench/results/tests.json); pytest's own is beside it, as JUnit's XML

With a GPU a test that is skipped for want of one is a failure; without one they all are skipped. The exit status is 1
if a test failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from bench.harness.runner import command

ROOT = Path(__file__).parents[1]
SHOWN_LINES = 12  # of a failure


@dataclass(frozen=True)
class Settings:
    out: str = "bench/results/tests.json"
    toy: ClassVar[str] = ""


def measure_all(s: Settings) -> dict[str, Any]:
    """Run pytest, and return the counts and the failures. Raises ValueError if no test was collected."""
    report = Path(s.out).with_suffix(".xml").absolute()
    report.unlink(missing_ok=True)
    required = {"REQUIRE_GPU": "1"} if torch.cuda.is_available() else {}
    words = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    status = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=os.environ | required).returncode
    if not report.exists():
        raise ValueError(f"pytest ended with status {status} and without a report: what it printed says why")
    return {"exit_status": status, **read_report(report)}


def read_report(report: Path) -> dict[str, Any]:
    """Return the counts of JUnit's XML, the seconds of each test, and each failure with its first lines."""
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    failures, seconds = [], {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        seconds[name] = float(case.get("time") or 0)
        found = {kind: case.find(kind) for kind in ("failure", "error", "skipped")}
        bad = found["failure"] if found["failure"] is not None else found["error"]
        if bad is not None:
            text = (bad.text or "").strip().splitlines()
            message = (bad.get("message") or "it gave no message").splitlines()
            failures.append({"test": name, "message": message[0], "last_lines": text[-SHOWN_LINES:]})
        kind = next((kind for kind, element in found.items() if element is not None), "passed")
        counts[{"failure": "failed", "error": "errors"}.get(kind, kind)] += 1
    return {"counts": counts, "failures": failures, "seconds": seconds}


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    failures: list[dict[str, Any]] = []

    def measure(s: Settings) -> dict[str, Any]:
        result = measure_all(s)
        failures.extend(result["failures"])
        return result

    status = command("gpu_tests", __doc__, Settings, measure, arguments)
    if failures:
        others = f", and {len(failures) - 1} others" if len(failures) > 1 else ""
        print(f"bench.gpu_tests: {failures[0]['test']}: {failures[0]['message']}{others}")
    return status or int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
