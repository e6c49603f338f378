"""Pictures of results: throughput beside the peers, the time of a step in the epoch-time table, clips/s over GOP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.harness.runner import processors

COLOURS = {"clipline": "#0969da", "decord": "#8c959f", "torchcodec": "#bf8700", "torchcodec_approx": "#e2b54a",
           "pyav": "#d0d7de", "clipline_host": "#54aeff", "clipline_dali": "#218bff", "dali_untrimmed": "#a475f9",
           "dali_reader": "#6639ba"}  # fmt: skip
NAMES = {"clipline": "Clipline", "torchcodec_approx": "torchcodec, approximate", "pyav": "PyAV",
         "clipline_dali": "Clipline, DALI's decoder", "clipline_host": "Clipline, host",
         "dali_untrimmed": "DALI untrimmed", "dali_reader": "DALI's reader"}  # fmt: skip


def draw_all(folder: Path) -> Iterator[Path]:
    """A PNG beside each result that there is a picture for."""
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if figure := FIGURES.get(str(result.get("bench")), lambda result: None)(result):
            figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})
            yield path.with_suffix(".png")


def place(result: dict[str, Any]) -> str:
    return f"{processors(result)}, {result['environment']['gpu'] or 'no GPU'}"


def draw_decode(result: dict[str, Any]) -> Figure:
    """Over GOP if that is all that differs between the sets, else bars."""
    gops = [re.fullmatch(r"(\w+)_gop(\d+)", s["name"]) for s in result["sets"]]
    same = {
        (m[1] if m else "", s["spec"], s["workers"], s.get("threads"))
        for m, s in zip(gops, result["sets"], strict=True)
    }
    found = [int(m[2]) for m in gops if m]
    over_gop = len(found) == len(gops) > 2 and len(same) == 1
    return draw_gops(result, found) if over_gop else draw_bars(result)


def draw_bars(result: dict[str, Any]) -> Figure:
    """Clips/s of every case of every set, with quartiles."""
    sets = result["sets"]
    cases = [case for case in COLOURS if any(case in s["cases"] for s in sets)]
    figure = Figure(figsize=(2.5 + 1.5 * len(sets), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(cases)
    for number, case in enumerate(cases):
        has = [(at, s["cases"][case]["clips_per_s"]) for at, s in enumerate(sets) if case in s["cases"]]
        middles = np.array([rate["median"] for _, rate in has])
        bounds = np.array([[rate["median"] - rate["p25"], rate["p75"] - rate["median"]] for _, rate in has]).T
        axes.bar([at + (number - (len(cases) - 1) / 2) * width for at, _ in has], middles, width, yerr=bounds,
                 color=COLOURS[case], label=NAMES.get(case, case), error_kw={"linewidth": 0.8})  # fmt: skip
    differ = [key for key in ("workers", "threads") if len({s.get(key) for s in sets}) > 1]
    labels = [s["name"].replace("_", " ").replace(" prepared", "\nprepared") + f"\n{s['spec']}"
              + "".join(f", {s.get(key)} {key}" for key in differ) for s in sets]  # fmt: skip
    axes.set_xticks(range(len(sets)), labels, fontsize=8)
    by_dali = ", Clipline with DALI's decoder" if all(s["decoder"] == "dali" for s in sets) else ""
    axes.set(ylabel="clips/s", title=f"Whole loader, {place(result)}{by_dali}", ylim=(0, None))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)  # inside, it would hide a bar
    return figure


def draw_gops(result: dict[str, Any], gops: list[int]) -> Figure:
    """Clips/s over the distance of key frames."""
    sets = [result["sets"][n] for n in np.argsort(gops)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for case in (case for case in COLOURS if all(case in s["cases"] for s in sets)):
        rates = [s["cases"][case]["clips_per_s"] for s in sets]
        axes.plot(
            sorted(gops), [r["median"] for r in rates], marker="o", color=COLOURS[case], label=NAMES.get(case, case)
        )
        axes.fill_between(
            sorted(gops), [r["p25"] for r in rates], [r["p75"] for r in rates], color=COLOURS[case], alpha=0.2
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(gops), [str(gop) for gop in sorted(gops)])
    axes.minorticks_off()
    codec = sets[0]["name"].partition("_")[0].upper()
    title = f"{codec}, {sets[0]['spec']} clips, {place(result)}"
    axes.set(xlabel="frames between key frames", ylabel="clips/s", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_epoch_time(result: dict[str, Any]) -> Figure:
    """Milliseconds a clip of each row: waiting for data, computing, other."""
    figure = Figure(figsize=(9, 0.9 + 3.6 * len(result["sets"])), layout="constrained")
    parts = {"computing": "#0969da", "waiting": "#cf222e", "other": "#8c959f"}
    for axes, s in zip(figure.subplots(len(result["sets"]), squeeze=False)[:, 0], result["sets"], strict=True):
        names = [c["case"] for c in s["cases"]]
        whole = np.array([1000 / c["clips_per_s"]["median"] for c in s["cases"]])
        left = np.zeros(len(names))
        for part, colour in parts.items():
            share = np.array([c[part]["median"] for c in s["cases"]])
            axes.barh(
                names, whole * share, left=left, color=colour, label=part if part != "waiting" else "waiting for data"
            )
            left += whole * share
        for at, c in enumerate(s["cases"]):
            axes.text(left[at], at, f" {c['clips_per_s']['median']:.1f} clips/s", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set(
            xlabel="ms a clip", title=f"Training, row by row: {s['name']}, {place(result)}", xlim=(0, 1.18 * left.max())
        )
        axes.legend(fontsize=8, loc="lower right")
        axes.grid(axis="x", alpha=0.3)
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {"decode": draw_decode, "epoch_time": draw_epoch_time}
