"""Draw charts of results: clips/s beside the baselines or over the GOP length, and the time per clip of an epoch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.harness.result_file import cpu_description, read_result

COLORS = {
    "clipline": "#0969da",
    "decord": "#8c959f",
    "decord2": "#8c959f",
    "torchcodec": "#bf8700",
    "torchcodec_approx": "#e2b54a",
    "video_reader_rs": "#57606a",
    "pyav": "#d0d7de",
    "spdl_window": "#1a7f37",
    "spdl_sample": "#4ac26b",
    "clipline_pyav": "#54aeff",
    "clipline_dali": "#218bff",
    "dali_untrimmed": "#a475f9",
    "dali_reader": "#6639ba",
}
LABELS = {
    "clipline": "Clipline",
    "torchcodec_approx": "torchcodec, approximate",
    "video_reader_rs": "video-reader-rs",
    "pyav": "PyAV",
    "spdl_window": "SPDL",
    "spdl_sample": "SPDL, sampled",
    "clipline_dali": "Clipline with DALI's decoder",
    "clipline_pyav": "Clipline with PyAV",
    "dali_untrimmed": "DALI's decoder, untrimmed",
    "dali_reader": "DALI's reader",
}
TIMES = {  # key, color and label of the parts of a bar
    "compute_frac": ("#0969da", "computing"),
    "data_time_frac": ("#cf222e", "waiting for data"),
    "other_frac": ("#8c959f", "other"),
}
Result = Mapping[str, Any]


def draw_all(folder: Path) -> Iterator[Path]:
    """Write a PNG beside each result that has a chart, and yield its path."""
    for path in sorted(folder.glob("*.json")):
        result = read_result(path)
        if draw := CHARTS.get(str(result.get("bench"))):
            draw(result).savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})
            yield path.with_suffix(".png")


def machine_name(result: Result) -> str:
    """Name the cores and the GPU of a result."""
    return f"{cpu_description(result)}, {result['environment']['gpu'] or 'no GPU'}"


def draw_loading(result: Result) -> Figure:
    """Draw lines over the GOP length if the sets differ in nothing else, and bars otherwise."""
    tables = result["sets"]
    matches = [re.fullmatch(r"(\w+)_gop(\d+)", table["name"]) for table in tables]
    settings = {
        (match[1] if match else "", table["spec"], table["num_workers"], table.get("dali_threads"))
        for match, table in zip(matches, tables, strict=True)
    }
    gops = [int(match[2]) for match in matches if match]
    differ_in_gop = len(gops) == len(matches) > 2 and len(settings) == 1
    return draw_gops(result, gops) if differ_in_gop else draw_bars(result)


def draw_bars(result: Result) -> Figure:
    """Draw the clips/s of every case of every set as bars, with quartiles."""
    tables = result["sets"]
    cases = [case for case in COLORS if any(case in table["cases"] for table in tables)]
    figure = Figure(figsize=(2.5 + 1.5 * len(tables), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(cases)
    for number, case in enumerate(cases):
        rates = {i: t["cases"][case]["clips_per_s"] for i, t in enumerate(tables) if case in t["cases"]}
        errors = [(rate["median"] - rate["p25"], rate["p75"] - rate["median"]) for rate in rates.values()]
        axes.bar(
            [i + (number - (len(cases) - 1) / 2) * width for i in rates],
            [rate["median"] for rate in rates.values()],
            width,
            yerr=np.array(errors).T,
            color=COLORS[case],
            label=LABELS.get(case, case),
            error_kw={"linewidth": 0.8},
        )
    axes.set_xticks(range(len(tables)), bar_labels(tables), fontsize=8)
    by_dali = ", Clipline with DALI's decoder" if all(table["decoder"] == "dali" for table in tables) else ""
    axes.set(ylabel="clips/s", title=f"Whole loader, {machine_name(result)}{by_dali}", ylim=(0, None))
    axes.grid(axis="y", alpha=0.3)
    columns = min(4, len(tables) + 1)  # as many as fit the width
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8)  # inside, it would hide a bar
    return figure


def bar_labels(tables: list[dict[str, Any]]) -> list[str]:
    """Return the label of each set: its name, the clips, and the settings in which the sets differ."""
    words = {"num_workers": "workers", "dali_threads": "threads"}
    varied = {key: word for key, word in words.items() if len({table.get(key) for table in tables}) > 1}
    return [
        table["name"].replace("_", " ").replace(" prepared", "\nprepared")
        + f"\n{table['spec']}"
        + "".join(f", {table.get(key)} {word}" for key, word in varied.items())
        for table in tables
    ]


def draw_gops(result: Result, gops: list[int]) -> Figure:
    """Draw clips/s over the distance between key frames."""
    tables = [result["sets"][i] for i in np.argsort(gops)]
    gops = sorted(gops)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for case in (case for case in COLORS if all(case in table["cases"] for table in tables)):
        rates = [table["cases"][case]["clips_per_s"] for table in tables]
        low, median, high = ([rate[key] for rate in rates] for key in ("p25", "median", "p75"))
        axes.plot(gops, median, marker="o", color=COLORS[case], label=LABELS.get(case, case))
        axes.fill_between(gops, low, high, color=COLORS[case], alpha=0.2)
    axes.set_xscale("log")
    axes.set_xticks(gops, [str(gop) for gop in gops])
    axes.minorticks_off()
    codec = tables[0]["name"].partition("_")[0].upper()
    title = f"{codec}, {tables[0]['spec']} clips, {machine_name(result)}"
    axes.set(xlabel="frames between key frames", ylabel="clips/s", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_epoch_time(result: Result) -> Figure:
    """Draw the milliseconds per clip of each row: computing, waiting for data, other."""
    tables = result["sets"]
    figure = Figure(figsize=(9, 0.9 + 3.6 * len(tables)), layout="constrained")
    for axes, table in zip(figure.subplots(len(tables), squeeze=False)[:, 0], tables, strict=True):
        cases = table["cases"]
        ms_per_clip = np.array([1000 / case["clips_per_s"]["median"] for case in cases])
        left = np.zeros(len(cases))
        for key, (color, label) in TIMES.items():
            lengths = ms_per_clip * np.array([case[key]["median"] for case in cases])
            axes.barh([case["case"] for case in cases], lengths, left=left, color=color, label=label)
            left += lengths
        for i, case in enumerate(cases):
            axes.text(left[i], i, f" {case['clips_per_s']['median']:.1f} clips/s", va="center", fontsize=8)
        axes.invert_yaxis()
        title = f"Training, row by row: {table['name']}, {machine_name(result)}"
        axes.set(xlabel="ms per clip", title=title, xlim=(0, 1.18 * left.max()))
        axes.legend(fontsize=8, loc="lower right")
        axes.grid(axis="x", alpha=0.3)
    return figure


CHARTS: dict[str, Callable[[Result], Figure]] = {"loading": draw_loading, "epoch_time": draw_epoch_time}
