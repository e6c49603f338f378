"""Run the tests that need a GPU, and write down which of them failed.

    python -m bench.gpu_tests [out=PATH] [--dry-run]

    out=PATH    the result (default bench/results/gpu_tests.json); pytest's JUnit XML is written beside it

With a GPU, a test that is skipped because it finds none counts as failed; without a GPU all are skipped. The exit
status is 1 if a test failed.
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

from bench.harness.runner import run_bench

ROOT = Path(__file__).parents[1]
MAX_LINES = 12  # of a failure


@dataclass(frozen=True)
class Settings:
    """The settings of this command; the module's help explains them."""

    out: str = "bench/results/gpu_tests.json"
    dry_run_args: ClassVar[str] = ""


def run_tests(settings: Settings) -> dict[str, Any]:
    """Run pytest, and return the counts and the failures. Raises ValueError if pytest writes no report."""
    report = Path(settings.out).with_suffix(".xml").absolute()
    report.unlink(missing_ok=True)
    require_gpu = {"REQUIRE_GPU": "1"} if torch.cuda.is_available() else {}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    status = subprocess.run(command, cwd=ROOT, env=os.environ | require_gpu).returncode
    if not report.exists():
        raise ValueError(f"pytest ended with status {status} and without a report: see its output above")
    return {"exit_status": status, **read_report(report)}


def read_report(report: Path) -> dict[str, Any]:
    """Return the counts of a JUnit XML, the seconds of each test, and each failure with its last lines."""
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    failures, seconds = [], {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        seconds[name] = float(case.get("time") or 0)
        elements = {kind: case.find(kind) for kind in ("failure", "error", "skipped")}
        failure = elements["failure"] if elements["failure"] is not None else elements["error"]
        if failure is not None:
            text = (failure.text or "").strip().splitlines()
            message = (failure.get("message") or "no message").splitlines()
            failures.append({"test": name, "message": message[0], "last_lines": text[-MAX_LINES:]})
        kind = next((kind for kind, element in elements.items() if element is not None), "passed")
        counts[{"failure": "failed", "error": "errors"}.get(kind, kind)] += 1
    return {"counts": counts, "failures": failures, "seconds": seconds}


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    failures: list[dict[str, Any]] = []

    def measure(settings: Settings) -> dict[str, Any]:
        result = run_tests(settings)
        failures.extend(result["failures"])
        return result

    status = run_bench("gpu_tests", __doc__, Settings, measure, argv)
    if failures:
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        print(f"bench.gpu_tests: {failures[0]['test']}: {failures[0]['message']}{more}")
    return status or int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
