"""Profile a few steps: a trace for Perfetto or chrome://tracing, and the most expensive operators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WAIT, WARM_UP = 3, 2  # steps before: for compilation, and for the start of the profiler


@contextlib.contextmanager
def profile_steps(steps: int, folder: Path | None, log: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step.

    After `steps` profiled steps, folder/{trace.json.gz,operators.txt} are written, and the ten operators with the most
    time of their own are logged. With 0 steps or without a folder nothing is profiled.
    """
    if not steps or folder is None:
        yield lambda: None
        return

    def write(prof: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        prof.export_chrome_trace(str(folder / "trace.json.gz"))
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = prof.key_averages().table(sort_by=by, row_limit=10, max_name_column_width=48)
        (folder / "operators.txt").write_text(table + "\n")
        log(f"{table}\nwritten: {folder}/{{trace.json.gz,operators.txt}} ({steps} steps; open the trace in Perfetto)")

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(wait=WAIT, warmup=WARM_UP, active=steps, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write, profile_memory=True) as prof:
        yield prof.step
