"""Turn the results of the benchmarks of networks alone into rows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.report.formats import format_median, format_number, format_quartiles

Result = Mapping[str, Any]
Rows = list[dict[str, str]]


def run_length_rows(result: Result) -> Rows:
    """Return a row for each threshold."""
    return [
        {
            "files": result["files"],
            "network": result["settings"]["network"],
            "threshold": f"{row['threshold']:g}",
            "patches kept": f"{100 * row['kept']:.0f} %",
            "clips/s": format_number(row["clips_per_s"]),
            "over the dense network (quartiles)": f"{row['speedup']:.2f} ({row['low']:.2f}-{row['high']:.2f})",
        }
        for row in result["thresholds"]
    ]


def fine_tuning_rows(result: Result) -> Rows:
    """Return a row for each way to train."""
    names = {
        "full": "all weights",
        "lora": "LoRA",
        "bias": "biases",
        "head": "the head",
        "alone": "small network alone",
        "logits": "small network, probabilities of a teacher",
        "features": "small network, features of a teacher",
    }
    return [
        {
            "trained": names[case],
            "top-1, %": ", ".join(f"{100 * value:.1f}" for value in values),
            "mean": f"{100 * sum(values) / len(values):.1f}",
        }
        for case, values in result["top1"].items()
    ]


def masking_rows(result: Result) -> Rows:
    """Return a row for each case."""
    return [
        {
            "network": result["network"],
            "patches": case,
            "clips/s": format_median(figures["clips_per_s"]),
            "times fine-tuning (quartiles)": format_quartiles(figures["speedup"]),
            "MiB saved for backward": f"{figures['saved_for_backward_mib']:.0f}",
            "peak beyond the weights, MiB": format_number(figures["peak_mib"]) if "peak_mib" in figures else "",
            "loaders": f"{figures['loaders']['median']:.3f}" if figures["loaders"] else "",
        }
        for case, figures in result["cases"].items()
    ]


def adapters_rows(result: Result) -> Rows:
    """Return a row for each adapter."""
    return [
        {
            "network": result["network"],
            "trained": {"none": "everything"}.get(name, name),
            "weights, M": f"{figures['trained_m']:.2f} of {figures['parameters_m']:.1f}",
            "file, MiB": f"{figures['file_mib']:.1f}",
            "gradients and optimizer, MiB": f"{figures['state_mib']:.0f}",
            "MiB saved for backward": f"{figures['saved_for_backward_mib']:.0f}",
            "peak beyond the weights, MiB": format_number(figures["peak_mib"]) if "peak_mib" in figures else "",
            "speed, times full fine-tuning (quartiles)": format_quartiles(figures["speedup"]),
        }
        for name, figures in result["cases"].items()
    ]
