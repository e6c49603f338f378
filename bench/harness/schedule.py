"""Run tasks one after another, each in its own process with a time limit, and keep every result at once.

A part has one line in the summary and consists of tasks, one process each. What a task writes and prints stays in the
folder whatever happens to later tasks, and the summary is rewritten whenever a task starts or ends.
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

from utils.files import atomic_path, atomic_write_text

ROOT = Path(__file__).parents[2]
RESERVE_S = 4.0  # part of the budget that is reserved for ending the last task and writing the summary
REFUSED = 2  # exit status of a benchmark that cannot run with its settings on this machine
MARK = "CLIPLINE_TASK"  # environment variable by which all processes of a task are found
SUMMARIES = ("summary.txt", "summary.json", "results.zip")
_PR_SET_PDEATHSIG = 1  # Linux
_LIBC = ctypes.CDLL(None)  # loaded here, because nothing should be loaded between fork and exec


@dataclass(frozen=True)
class Task:
    """One process, `python -m ARGUMENTS`, which writes NAME.json; its output goes to NAME.log."""

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    min_s: float = 10.0  # with less time left the task is not started
    optional: bool = False  # exit status 2 means left out, with the reason, and not failed
    unavailable: str = ""  # the reason why it cannot run here


@dataclass(frozen=True)
class Part:
    """Tasks that share one line of the summary and a time limit."""

    name: str
    limit_s: float
    tasks: tuple[Task, ...]
    headline: Callable[[Mapping[str, dict[str, Any]]], str] = lambda results: ""  # takes the results by task name


class Outcome(NamedTuple):
    """The state of a task: done, failed, timed out, left out, cut or running."""

    status: str
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Progress:
    """The content of the summary: the outcomes of all tasks so far, by task name."""

    title: str
    parts: Sequence[Part]
    folder: Path
    budget_s: float
    started: float = field(default_factory=time.monotonic)
    copy_folder: Path | None = None  # a second folder for SUMMARIES
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started

    @property
    def succeeded(self) -> bool:
        """Tell whether every task that was started succeeded."""
        return all(outcome.status in ("done", "left out") for outcome in self.outcomes.values())


def allowance(task: Task, part: Part, spent: float, remaining: float) -> tuple[float, str]:
    """Return the seconds that a task may take; 0 and the reason if that is too little to start it.

    `spent` are the seconds that the part has used, `remaining` those left of the whole budget.
    """
    if task.unavailable:
        return 0.0, task.unavailable
    part_s, budget_s = part.limit_s - spent, remaining - RESERVE_S
    seconds = min(task.limit_s, part_s, budget_s)
    if seconds >= task.min_s:
        return seconds, ""
    limit = "the budget" if budget_s <= part_s else f"the {part.limit_s:.0f} s of {part.name}"
    return 0.0, f"{max(seconds, 0):.0f} s are left of {limit}, and it needs at least {task.min_s:.0f} s"


def run_parts(progress: Progress, environment: Mapping[str, str]) -> None:
    """Run all tasks in order.

    SIGTERM, SIGHUP and Ctrl-C end the running task; KeyboardInterrupt is raised once that is in the summary.
    """
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
    """Run all tasks in order, except those for which too little time is left."""
    for part in progress.parts:
        spent = 0.0
        for task in part.tasks:
            seconds, reason = allowance(task, part, spent, progress.budget_s - progress.elapsed)
            if reason:
                progress.outcomes[task.name] = Outcome("left out", 0.0, reason)
                continue
            progress.outcomes[task.name] = Outcome("running")
            write_summary(progress)
            print(f"{progress.elapsed:5.0f} s  {task.name}, at most {seconds:.0f} s", flush=True)
            started = time.monotonic()
            progress.outcomes[task.name] = run_task(task, progress.folder, seconds, environment)
            spent += time.monotonic() - started
        write_summary(progress)
        print(part_line(progress, part), flush=True)


def run_task(task: Task, folder: Path, limit_s: float, environment: Mapping[str, str]) -> Outcome:
    """Run one task for at most `limit_s` seconds."""
    log = folder / f"{task.name}.log"
    (folder / f"{task.name}.json").unlink(missing_ok=True)  # left by an earlier run
    started = time.monotonic()
    status = run_process([sys.executable, "-m", *task.arguments], log, limit_s, environment)
    seconds = time.monotonic() - started
    if status is None:
        return Outcome("timed out", seconds, f"ended after {seconds:.0f} s; its last output: {last_line(log)}")
    if status == 0:
        return Outcome("done", seconds)
    if status == REFUSED and task.optional:
        return Outcome("left out", seconds, error_line(log))
    killed = f"killed by {signal.Signals(-status).name}; " if status < 0 else ""
    return Outcome("failed", seconds, f"{killed}{error_line(log)}")


def run_process(command: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str]) -> int | None:
    """Return the exit status of a command; None if it was killed, with all its children, after `limit_s` seconds."""
    mark = uuid.uuid4().hex
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**environment, MARK: mark},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_all(process, mark)


def _die_with_parent() -> None:
    """Have the kernel kill the new process when its parent ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill a task's process group, and processes that left it, which still have the mark in their environment."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in marked_processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        print(
            f"warning: process {process.pid} was killed and still runs; the next measurement may be affected",
            flush=True,
        )


def marked_processes(mark: str) -> list[int]:
    """List the processes that have the mark in their environment."""
    variable, pids = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to another user
                if variable in (folder / "environ").read_bytes().split(b"\0"):
                    pids.append(int(folder.name))
    return pids


@contextlib.contextmanager
def cut_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt inside, as Ctrl-C does."""
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the clean-up that follows must not be interrupted
    raise KeyboardInterrupt


def error_line(log: Path) -> str:
    """Return the first line of the error that ended a task: that of the last exception, or else its last output."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"bench\.\w+: |[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["it printed nothing"])[-1][:300]


def last_line(log: Path) -> str:
    """Return the last line that a task printed."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:120] for line in reversed(lines) if line.strip()), "nothing")


def part_summary(progress: Progress, part: Part) -> dict[str, Any]:
    """Summarize a part: its status is the worst of its tasks, and left out only if all of them are."""
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
    started = [name for name, outcome in outcomes.items() if outcome.status != "left out"]
    return {
        "part": part.name,
        "status": status,
        "seconds": round(sum(outcome.seconds for outcome in outcomes.values()), 1),
        "headline": headline(part, started, progress.folder),
        "reasons": reasons,
        "tasks": {name: outcome._asdict() for name, outcome in outcomes.items()},
    }


def headline(part: Part, started: Sequence[str], folder: Path) -> str:
    """Return the main figures of a part in one line, from what the started tasks have written so far."""
    results = {}
    for name in started:
        with contextlib.suppress(OSError, ValueError):
            results[name] = json.loads((folder / f"{name}.json").read_text())
    try:
        return part.headline(results) if results else ""
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # an unexpected result costs its line only
        return f"the results do not have the expected form ({type(error).__name__}: {error})"


def part_line(progress: Progress, part: Part) -> str:
    """Format the summary of a part: one line, and one for each reason."""
    summary = part_summary(progress, part)
    lines = [f"{summary['part']:20} {summary['status']:9} {summary['seconds']:6.0f} s  {summary['headline']}".rstrip()]
    return "\n".join(lines + [f"{'':20} {reason}" for reason in summary["reasons"]])


def write_summary(progress: Progress) -> None:
    """Write SUMMARIES: the table, the same as JSON, and all files of the folder in one archive.

    The archive is for rented machines, which return only a few files.
    """
    parts = [part_summary(progress, part) for part in progress.parts]
    summary = {
        "title": progress.title,
        "budget_seconds": progress.budget_s,
        "seconds": round(progress.elapsed, 1),
        "parts": parts,
    }
    atomic_write_text(progress.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    lines = [f"{progress.title}: {progress.elapsed:.0f} of {progress.budget_s:.0f} s"]
    lines += [part_line(progress, part) for part in progress.parts]
    atomic_write_text(progress.folder / "summary.txt", "\n".join(lines) + "\n")
    with atomic_path(progress.folder / "results.zip") as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(progress.folder.iterdir()):
                if path.suffix in (".json", ".txt", ".log", ".xml"):
                    archive.write(path, path.name)
    if progress.copy_folder and progress.copy_folder.resolve() != progress.folder.resolve():
        for name in SUMMARIES:
            with atomic_path(progress.copy_folder / name) as temporary:
                temporary.write_bytes((progress.folder / name).read_bytes())
