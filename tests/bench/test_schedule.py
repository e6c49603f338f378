"""Test the schedule of bench.gpu: what is left out, and what a limit, a failure and a kill cost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from bench.harness.schedule import RESERVE_S, SUMMARIES, Part, Progress, Task, allowance, marked_processes, run_parts
from tests.helpers import ROOT

FAKES = {
    "fake_good": "import sys; open(sys.argv[1].removeprefix('out='), 'w').write('{\"clips\": 7}')",
    "fake_bad": "print('so far so good')\nraise ValueError('no such thing\\nas this')",
    "fake_refusal": "import sys; print('bench.loading: data.decoder=both: expected auto'); sys.exit(2)",
    "fake_crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    # The child has a session of its own, as torch's compiling processes may have, and outlives its parent.
    "fake_hang": "import subprocess, sys, time; "
    "child = subprocess.Popen(['sleep', '300'], start_new_session=True); "
    "open(sys.argv[1].removeprefix('out='), 'w').write('{\"clips\": 3}'); print('child', child.pid, flush=True); "
    "time.sleep(300)",
}


@pytest.fixture
def fakes(tmp_path: Path) -> dict[str, str]:
    """Write modules that run instead of benchmarks, and return the environment that finds them."""
    for name, source in FAKES.items():
        (tmp_path / f"{name}.py").write_text(source)
    return dict(os.environ, PYTHONPATH=str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder for the results."""
    results = tmp_path / "results"
    results.mkdir()
    return results


def fake_part(folder: Path, name: str, *modules: str, limit_s: float = 30.0, **options: object) -> Part:
    tasks = [
        Task(f"{name}_{m}", (f"fake_{m}", f"out={folder}/{name}_{m}.json"), limit_s, min_s=1, **options)  # type: ignore[arg-type]
        for m in modules
    ]
    return Part(name, 60, tuple(tasks), lambda results: f"clips {[r['clips'] for r in results.values()]}")


def read_summary(folder: Path) -> dict[str, dict]:
    return {part["part"]: part for part in json.loads((folder / "summary.json").read_text())["parts"]}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int, seconds: float = 10) -> bool:
    """Wait until a process has ended: one that was killed may still be ending."""
    limit = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < limit:
        time.sleep(0.01)
    return not is_alive(pid)


@pytest.mark.parametrize(
    ("spent", "remaining", "seconds", "reason"),
    [
        (0, 500, 60, ""),  # the task's own limit
        (65, 500, 35, ""),  # what the part has left
        (0, 40 + RESERVE_S, 40, ""),  # what the budget has left
        (80, 500, 0, "20 s are left of the 100 s of decode, and it needs at least 30 s"),
        (0, 25 + RESERVE_S, 0, "25 s are left of the budget, and it needs at least 30 s"),
        (0, -5, 0, "0 s are left of the budget, and it needs at least 30 s"),
    ],
)
def test_allowance_is_the_smallest_limit(spent: float, remaining: float, seconds: float, reason: str) -> None:
    task = Task("one", ("bench.loading",), limit_s=60, min_s=30)
    assert allowance(task, Part("decode", 100, (task,)), spent, remaining) == (seconds, reason)


def test_allowance_is_0_for_an_unavailable_task() -> None:
    task = Task("one", ("bench.loading",), limit_s=60, unavailable="spdl.io is not installed")
    assert allowance(task, Part("loader", 100, (task,)), 0, 500) == (0, "spdl.io is not installed")


def test_failed_tasks_cost_only_their_own_figures(
    folder: Path, fakes: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        fake_part(folder, "a", "bad", "good"),
        fake_part(folder, "b", "refusal", optional=True),
        fake_part(folder, "c", "crash"),
        fake_part(folder, "d", "refusal"),
        fake_part(folder, "e", "good"),
    ]
    progress = Progress("a card", parts, folder, 60)
    run_parts(progress, fakes)
    summary = read_summary(folder)
    states = {name: part["status"] for name, part in summary.items()}
    assert states == {"a": "failed", "b": "left out", "c": "failed", "d": "failed", "e": "done"}
    assert summary["a"]["reasons"] == ["a_bad failed: ValueError: no such thing"]
    assert summary["a"]["headline"] == "clips [7]"
    assert summary["b"]["reasons"] == ["bench.loading: data.decoder=both: expected auto"]
    assert summary["c"]["reasons"][0].startswith("killed by SIGSEGV")
    assert not progress.succeeded
    assert "so far so good" in (folder / "a_bad.log").read_text()
    assert set(zipfile.ZipFile(folder / "results.zip").namelist()) >= {"a_good.json", "a_bad.log", "summary.txt"}
    assert "e                    done" in capsys.readouterr().out


def test_hanging_task_is_killed_with_its_children(folder: Path, fakes: dict[str, str]) -> None:
    parts = [fake_part(folder, "a", "hang", limit_s=3), fake_part(folder, "b", "good")]
    progress = Progress("a card", parts, folder, 60)
    run_parts(progress, fakes)
    summary = read_summary(folder)
    child = int((folder / "a_hang.log").read_text().split()[1])
    assert summary["a"]["status"] == "timed out" and f"child {child}" in summary["a"]["reasons"][0]
    assert summary["a"]["headline"] == "clips [3]", "what it had written is there"
    assert summary["b"]["status"] == "done" and not progress.succeeded and ends(child)


def test_result_of_an_earlier_run_is_not_summarized(folder: Path, fakes: dict[str, str]) -> None:
    for name in ("a_refusal", "b_good"):
        (folder / f"{name}.json").write_text('{"clips": 1}')
    parts = [fake_part(folder, "a", "refusal", optional=True), fake_part(folder, "b", "good", unavailable="no GPU")]
    run_parts(Progress("a card", parts, folder, 60), fakes)
    assert [part["headline"] for part in read_summary(folder).values()] == ["", ""]
    assert (folder / "b_good.json").exists(), "what was not measured again stays"


def test_used_up_budget_leaves_out_the_rest(folder: Path, fakes: dict[str, str]) -> None:
    parts = [fake_part(folder, "a", "hang"), fake_part(folder, "b", "good")]
    progress = Progress("a card", parts, folder, RESERVE_S + 3)
    run_parts(progress, fakes)
    summary = read_summary(folder)
    assert summary["a"]["seconds"] < 10 and summary["b"]["status"] == "left out"
    assert "left of the budget" in summary["b"]["reasons"][0]
    assert "left of the budget" in (folder / "summary.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_kill_keeps_what_is_finished(
    number: signal.Signals, folder: Path, tmp_path: Path, fakes: dict[str, str]
) -> None:
    copies = tmp_path / "handed_back"
    copies.mkdir()
    script = (  # imports neither torch nor DALI
        "import os, pathlib, sys\n"
        "from bench.harness.schedule import Part, Progress, Task, run_parts\n"
        "folder, copies = map(pathlib.Path, sys.argv[1:])\n"
        "def part(name, module):\n"
        "    task = Task(f'{name}_{module}', (f'fake_{module}', f'out={folder}/{name}_{module}.json'), 30, min_s=1)\n"
        "    return Part(name, 60, (task,), lambda results: f'clips {[r[\"clips\"] for r in results.values()]}')\n"
        "parts = [part('a', 'good'), part('b', 'hang'), part('c', 'good')]\n"
        "run_parts(Progress('a card', parts, folder, 60, copy_folder=copies), dict(os.environ))\n"
    )
    path = f"{fakes['PYTHONPATH']}{os.pathsep}{ROOT}"
    command = [sys.executable, "-c", script, str(folder), str(copies)]
    process = subprocess.Popen(command, env={**fakes, "PYTHONPATH": path}, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        log, end = folder / "b_hang.log", time.monotonic() + 60
        while not (log.exists() and log.read_text().endswith("\n")) and time.monotonic() < end:
            time.sleep(0.1)
        child = int(log.read_text().split()[1])
        parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        process.send_signal(number)
        process.wait(30)
    finally:
        process.kill()
    summary = read_summary(folder)
    assert summary["a"]["status"] == "done" and summary["a"]["headline"] == "clips [7]"
    assert summary["b"]["status"] == ("running" if number == signal.SIGKILL else "cut")
    assert summary["c"]["status"] == "waiting"
    assert {path.name for path in copies.iterdir()} == set(SUMMARIES)
    assert "a_good.json" in zipfile.ZipFile(copies / "results.zip").namelist()
    assert ends(parent)
    if number == signal.SIGKILL:  # the child has its own session, and nothing is left to kill it
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    else:
        assert ends(child)


def test_marked_processes_finds_the_mark_in_the_environment() -> None:
    process = subprocess.Popen(["sleep", "60"], env={"CLIPLINE_TASK": "a-mark"})
    try:
        assert marked_processes("a-mark") == [process.pid] and marked_processes("another") == []
    finally:
        process.kill()
        process.wait()
