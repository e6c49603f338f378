"""Tasks that run one after another, each in a process of its own with a time limit, their results kept at once.

A part is what a summary has a line for; it is made of tasks, a process each. What a task writes and prints stays in the
folder whatever happens to the tasks after it, and the summary is rewritten whenever a task begins or ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from utils.files import replace_text, replacing

ROOT = Path(__file__).parents[1]
RESERVE_S = 4.0  # kept of the budget, to end the last task and to write the summary
REFUSED = 2  # the exit status of a bench that says that it cannot do what it was asked for
MARK = "CLIPLINE_TASK"  # the environment variable that names the task to all its processes
SUMMARIES = ("summary.txt", "summary.json", "results.zip")
_PR_SET_PDEATHSIG = 1  # Linux
_LIBC = ctypes.CDLL(None)  # loaded here, since between fork and exec nothing should be loaded


@dataclass(frozen=True)
class Task:
    """One process: `python -m` and its arguments, which write NAME.json and print into NAME.log."""

    name: str
    arguments: tuple[str, ...]
    limit: float  # seconds
    least: float = 10.0  # seconds without which it is not begun
    optional: bool = False  # a refusal is no failure: it is left out, with the reason
    unavailable: str = ""  # why it cannot run here


@dataclass(frozen=True)
class Part:
    """Tasks that have one line in the summary, and together at most `limit` seconds."""

    name: str
    limit: float
    tasks: tuple[Task, ...]
    headline: Callable[[Mapping[str, dict[str, Any]]], str] = lambda results: ""  # of results by the task's name


class Outcome(NamedTuple):
    """What became of a task: done, failed, timed out, left out, cut or running."""

    status: str
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Progress:
    """What the summary says: the outcomes so far of all tasks, by their names."""

    title: str
    parts: Sequence[Part]
    folder: Path
    budget: float  # seconds
    begun: float = field(default_factory=time.monotonic)
    copies: Path | None = None  # a second folder for SUMMARIES
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    @property
    def succeeded(self) -> bool:
        return all(outcome.status in ("done", "left out") for outcome in self.outcomes.values())


def allowance(task: Task, part: Part, spent: float, left: float) -> tuple[float, str]:
    """Decide how many seconds a task may take, `spent` seconds into its part and with `left` seconds of the budget.

    Returns 0 and the reason if that is too little to begin with.
    """
    if task.unavailable:
        return 0.0, task.unavailable
    of_part, of_budget = part.limit - spent, left - RESERVE_S
    seconds = min(task.limit, of_part, of_budget)
    if seconds >= task.least:
        return seconds, ""
    whose = "the budget" if of_budget <= of_part else f"the {part.limit:.0f} s of {part.name}"
    return 0.0, f"{max(seconds, 0):.0f} s are left of {whose}, and it needs at least {task.least:.0f} s"


def run_parts(progress: Progress, environment: Mapping[str, str]) -> None:
    """Run all tasks in order. SIGTERM, SIGHUP and Ctrl-C end the running one; KeyboardInterrupt is raised when that is
    in the summary."""
    with cut_by_signals():
        try:
            run_each(progress, environment)
        except KeyboardInterrupt:
            for name, outcome in progress.outcomes.items():
                if outcome.status == "running":
                    progress.outcomes[name] = Outcome("cut", 0.0, "interrupted from outside")
            write_summary(progress)
            raise


def run_each(progress: Progress, environment: Mapping[str, str]) -> None:
    """Run all tasks in order, those that the time is too short for left out."""
    for part in progress.parts:
        spent = 0.0
        for task in part.tasks:
            seconds, reason = allowance(task, part, spent, progress.budget - progress.elapsed)
            if reason:
                progress.outcomes[task.name] = Outcome("left out", 0.0, reason)
                continue
            progress.outcomes[task.name] = Outcome("running")
            write_summary(progress)
            print(f"{progress.elapsed:5.0f} s  {task.name}, at most {seconds:.0f} s", flush=True)
            begun = time.monotonic()
            progress.outcomes[task.name] = run_task(task, progress.folder, seconds, environment)
            spent += time.monotonic() - begun
        write_summary(progress)
        print(part_line(progress, part), flush=True)


def run_task(task: Task, folder: Path, seconds: float, environment: Mapping[str, str]) -> Outcome:
    """Run one task for at most so many seconds."""
    log = folder / f"{task.name}.log"
    (folder / f"{task.name}.json").unlink(missing_ok=True)  # of an earlier run
    begun = time.monotonic()
    status = run_process([sys.executable, "-m", *task.arguments], log, seconds, environment)
    took = time.monotonic() - begun
    if status is None:
        return Outcome("timed out", took, f"ended after {took:.0f} s; it last said: {last_line(log)}")
    if status == 0:
        return Outcome("done", took)
    if status == REFUSED and task.optional:
        return Outcome("left out", took, error_line(log))
    killed = f"killed by {signal.Signals(-status).name}; " if status < 0 else ""
    return Outcome("failed", took, f"{killed}{error_line(log)}")


def run_process(command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]) -> int | None:
    """Return the exit status of a command; None if it had to be killed, with all its children, at the limit."""
    mark = uuid.uuid4().hex
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
            env={**environment, MARK: mark}, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_all(process, mark)


def _die_with_parent() -> None:
    """Ask, in the new process, to be killed when the one that began it ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill a task's process group, and what left the group: it still has the mark in its environment."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in marked_processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not end although it was killed; the next task has it beside", flush=True)


def marked_processes(mark: str) -> list[int]:
    """Return the processes that have the mark in their environment."""
    wanted, pids = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    pids.append(int(folder.name))
    return pids


@contextlib.contextmanager
def cut_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt inside, as Ctrl-C does."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # what is cleaned up now is not to be interrupted once more
    raise KeyboardInterrupt


def error_line(log: Path) -> str:
    """Return the first line of the error that ended a task: of the last exception, or the last line printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"bench\.\w+: |[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:120] for line in reversed(lines) if line.strip()), "nothing")


def part_summary(progress: Progress, part: Part) -> dict[str, Any]:
    """Return what is known of a part: its status is that of its worst task, left out only if all of them are."""
    outcomes = {task.name: progress.outcomes[task.name] for task in part.tasks if task.name in progress.outcomes}
    states = [outcome.status for outcome in outcomes.values()]
    order = ("failed", "timed out", "cut", "running", "done", "left out")
    status = next((state for state in order if state in states), "waiting")
    if len(outcomes) < len(part.tasks) and status in ("done", "left out"):
        status = "running"
    several = len(part.tasks) > 1
    reasons = [
        f"{name} {outcome.status}: {outcome.reason}" if several else outcome.reason
        for name, outcome in outcomes.items()
        if outcome.reason
    ]
    begun = [name for name, outcome in outcomes.items() if outcome.status != "left out"]
    return {
        "part": part.name, "status": status, "seconds": round(sum(o.seconds for o in outcomes.values()), 1),
        "headline": headline(part, begun, progress.folder), "reasons": reasons,
        "tasks": {name: outcome._asdict() for name, outcome in outcomes.items()},
    }  # fmt: skip


def headline(part: Part, begun: Sequence[str], folder: Path) -> str:
    """Return a part's figures in a line, of the results that the tasks begun in this run have written so far."""
    results = {}
    for name in begun:
        with contextlib.suppress(OSError, ValueError):
            results[name] = json.loads((folder / f"{name}.json").read_text())
    try:
        return part.headline(results) if results else ""
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # a result of another shape costs its line
        return f"its results are there, but not of the expected form ({type(error).__name__}: {error})"


def part_line(progress: Progress, part: Part) -> str:
    found = part_summary(progress, part)
    lines = [f"{found['part']:20} {found['status']:9} {found['seconds']:6.0f} s  {found['headline']}".rstrip()]
    return "\n".join(lines + [f"{'':20} {reason}" for reason in found["reasons"]])


def write_summary(progress: Progress) -> None:
    """Write SUMMARIES: the table, the same as JSON, and all files of the folder in one, for a machine that hands back
    but a few files."""
    parts = [part_summary(progress, part) for part in progress.parts]
    about = {"title": progress.title, "budget_seconds": progress.budget, "seconds": round(progress.elapsed, 1)}
    replace_text(progress.folder / "summary.json", json.dumps({**about, "parts": parts}, indent=1) + "\n")
    lines = [f"{progress.title}: {progress.elapsed:.0f} of {progress.budget:.0f} s"]
    lines += [part_line(progress, part) for part in progress.parts]
    replace_text(progress.folder / "summary.txt", "\n".join(lines) + "\n")
    with replacing(progress.folder / "results.zip") as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(progress.folder.iterdir()):
                if path.suffix in (".json", ".txt", ".log", ".xml"):
                    archive.write(path, path.name)
    if progress.copies and progress.copies.resolve() != progress.folder.resolve():
        for name in SUMMARIES:
            with replacing(progress.copies / name) as temporary:
                temporary.write_bytes((progress.folder / name).read_bytes())
