"""Say in plain text what bench.tune has found: what was tried, what limits the run, what would help, what to add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bench.harness.limits import prepared_short_side
from pipelines.tuning.search import Candidate
from pipelines.tuning.tune import Outcome

MIN_GAIN = 1.1  # of preparing, below which it is not worth the disk


def format_trials(outcome: Outcome) -> str:
    """Format what was tried as a table, the fastest first."""
    run, start = outcome.run, outcome.space.start
    lines = [f"{'decoder':8} {'share':>6} {'workers':>8} {'threads':>8} {'prefetch':>9} {'clips/s':>8} {'trials':>7}"]
    for c in sorted(run.rates, key=run.median, reverse=True):
        mark = {outcome.best: "  answer", start: "  configured"}.get(c, "") if outcome.best != start else ""
        mark = mark or ("  answer, as configured" if c == outcome.best else "")
        speed = f"{run.median(c):.1f}" if run.median(c) else "-"
        share = c.pyav_share if isinstance(c.pyav_share, str) else f"{c.pyav_share:g}"
        lines.append(
            f"{c.decoder:8} {share:>6} {c.num_workers:>8} {c.dali_threads:>8} {c.prefetch:>9} {speed:>8} "
            f"{len(run.rates[c]):>7}{mark}"
        )
    lines += [f"{' '.join(map(str, c))} does not run: {reason}" for c, reason in outcome.trials.failures.items()]
    return "\n".join(lines)


def find_limit(limits: Mapping[str, Any]) -> str:
    """Name what limits a run: the step, the bytes, decoding in the workers, or what DALI does with their output."""
    if limits.get("step", float("inf")) < limits["loader"]:
        return "the step"
    if limits["reading"] < limits["loader"]:
        return "reading"
    if limits["workers"] > 1.25 * limits["loader"]:
        return "DALI's decoder" if limits["uses_dali"] else "DALI's part (augmenting, normalizing)"
    return "reading and decoding in the workers" if limits["uses_dali"] else "decoding"


def format_answer(result: Mapping[str, Any], source: str, image_size: int) -> str:
    """Say what limits the run, what would help, and what to add to the command line."""
    limits = result["limits"]
    limit = limits["limit"]
    speeds = [f"the loader does {limits['loader']:,.0f}", f"its workers alone {limits['workers']:,.0f}"]
    if "step" in limits:
        one = " (of one clip)" if limits["step_clips"] < result["batch_size"] else ""
        step = f"{limits['step']:,.0f}" if limits["step"] >= 10 else f"{limits['step']:.2g}"
        speeds.append(f"the step alone{one} {step}")
    cold = "from the disk" if limits["reading_is_cold"] else "from the page cache"
    speeds.append(f"reading {cold} {limits['reading']:,.0f}")
    slowest = min(limits[key] for key in ("loader", "reading", "step") if key in limits)
    lines = [f"{limit} limits: {slowest:.3g} clips/s; {', '.join(speeds)}"]
    lines += what_helps(limits, limit, source, image_size)
    changes = Candidate(**result["answer"]).changes(Candidate(**result["configured"]))
    if changes:
        gain = f" ({result['speedup']:.2f} times the clips/s of the loader)" if result["speedup"] else ""
        lines += [f"add{gain}:", " ".join(f"data.{key}={value}" for key, value in changes.items())]
    else:
        lines.append("add nothing: the configured values are the fastest, or as fast")
    return "\n".join(lines)


def what_helps(limits: Mapping[str, Any], limit: str, source: str, image_size: int) -> list[str]:
    """Say what would make the run faster."""
    size = prepared_short_side(image_size)
    command = f"python -m pipelines.prepare {source} FOLDER" + (f" short_side={size}" if size != 256 else "")
    gain = limits["prepared_speedup"]["median"] if "prepared_speedup" in limits else 0.0
    lines = []
    if gain > MIN_GAIN:
        lines.append(f"prepared files: {gain:.1f} times faster for the loader: {command}")
    elif gain:
        lines.append(f"prepared files: {gain:.2f} times the speed for the loader, not worth it")
    if limit == "the step":
        lines.append("what would help: nothing in the loader, the step is the limit")
    elif limit == "reading":
        lines.append(
            f"what would help: a faster disk, more data.num_workers to wait for it, or smaller files: {command}"
        )
    elif gain > MIN_GAIN:
        lines.append("what would help: prepared files, or more CPU cores")
    else:
        lines.append(
            "what would help: more CPU cores" + ("" if torch.cuda.is_available() else ", or a GPU that decodes")
        )
    return lines


def format_sweep(result: Mapping[str, Any]) -> str:
    """Say how near the answer is to the best of all candidates."""
    fastest = " ".join(f"{key}={value}" for key, value in result["fastest"].items())
    ratio = result["answer_over_fastest"]
    return (
        f"sweep of {result['num_candidates']} candidates, {result['rounds']} rounds: fastest {fastest}; the answer "
        f"has {100 * result['answer_over_fastest_in_sweep']:.1f} % of its speed in the sweep, and "
        f"{100 * ratio['median']:.1f} % [{100 * ratio['p25']:.1f}-{100 * ratio['p75']:.1f}] in turns with it alone"
    )
