"""Format the main figures of each part of bench.gpu in one line. `results` are by task name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, dict[str, Any]]


def clips_per_s(figures: Mapping[str, Any]) -> float:
    """Return the median clips/s of a case."""
    return figures["clips_per_s"]["median"]


def iterate_tables(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of bench.loading with the names of their tasks."""
    for name, result in results.items():
        for table in result["sets"]:
            yield name, table


def files_kind(table: Mapping[str, Any]) -> str:
    """Tell whether the files of a table were prepared."""
    return "prepared" if "_prepared" in table["name"] else "as downloaded"


def capabilities(results: Results) -> str:
    """Name the GPU and the driver, and say whether NVDEC is as expected."""
    result = results["capabilities"]
    name = (result["gpu"] or {}).get("name", "no GPU")
    decoder = result["decoder"]
    differences = f", {len(decoder['differences'])} differences" if decoder["reported"] is not None else ""
    return f"{name}, driver {result['driver'] or 'unknown'}; {decoder['note']}{differences}"


def tests(results: Results) -> str:
    """Count the tests by outcome."""
    return ", ".join(f"{number} {outcome}" for outcome, number in results["tests"]["counts"].items())


def decoders(results: Results) -> str:
    """Give the best clips/s of each decoder on original and prepared files, for NVDEC with the number of threads."""
    best: dict[tuple[str, str], tuple[float, int]] = {}
    for task, table in iterate_tables(results):
        key = task.removeprefix("decoders_"), files_kind(table)
        best[key] = max(best.get(key, (0.0, 0)), (clips_per_s(table["cases"]["clipline"]), table["dali_threads"]))
    parts = []
    for (decoder, kind), (rate, threads) in best.items():
        with_threads = f" with {threads} threads" if decoder.startswith("nvdec") else ""
        parts.append(f"{decoder} {rate:.0f} clips/s {kind}{with_threads}")
    return "; ".join(parts)


def loaders(results: Results) -> str:
    """Give Clipline's clips/s and its speed-up over each baseline measured in the same process."""
    parts = []
    for _, table in iterate_tables(results):
        speedups = [
            f"{table['speedups'][case]['median']:.2f} x {case}" for case in table["cases"] if case != "clipline"
        ]
        rate = f"{files_kind(table)}: {clips_per_s(table['cases']['clipline']):.0f} clips/s"
        parts.append(", ".join([rate, *speedups]))
    return "; ".join(parts)


def train_step(results: Results) -> str:
    """Give the clips/s of each network, compiled if measured, and the speed-up over its baseline."""
    parts = []
    for result in results.values():
        for network in result["networks"]:
            case = "clipline_compiled" if "clipline_compiled" in network["cases"] else "clipline"
            speedup = network["speedups"].get(f"{case} / {case.replace('clipline', 'baseline')}")
            over = f", {speedup['median']:.2f} x its baseline" if speedup else ""
            parts.append(f"{network['network']} {clips_per_s(network['cases'][case]):.0f} clips/s{over}")
    return "; ".join(parts)


def epoch_rows(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of bench.epoch_time by case."""
    return {row["case"]: row for row in result["sets"][0]["cases"]}


def data_over_synthetic(results: Results) -> str:
    """Give the fraction of the synthetic clips/s that training on files reaches, for each network."""
    parts = []
    for task, result in results.items():
        rows = epoch_rows(result)
        row, ceiling = rows["prepared"], clips_per_s(rows["synthetic"])
        fraction = f"{100 * row['fraction_of_ceiling']['median']:.0f} % of {ceiling:.0f} clips/s"
        waiting = f"waiting for data {100 * row['data_time_frac']['median']:.0f} %"
        parts.append(f"{task.removeprefix('over_synthetic_')} {fraction}, {waiting}")
    return "; ".join(parts)


def epoch_time(results: Results) -> str:
    """Give the clips/s of the first row and of the best one, and their ratio."""
    rows = list(epoch_rows(results["epoch_time"]).values())
    first = rows[0]
    best = max((row for row in rows if row["case"] != "synthetic"), key=clips_per_s)
    ratio = clips_per_s(best) / clips_per_s(first)
    return f"{first['case']} {clips_per_s(first):.0f} clips/s, {best['case']} {clips_per_s(best):.0f}: {ratio:.1f} x"


def hog(results: Results) -> str:
    """Give the milliseconds per clip of each case, and the share of the targets in a step."""
    result = results["hog"]
    parts = [f"{case} {times['median']:.2f} ms per clip" for case, times in result["ms_per_clip"].items()]
    if "step" in result:
        parts.append(f"the targets are {result['step']['share_percent']['median']:.1f} % of a step")
    return ", ".join(parts)


def masking(results: Results) -> str:
    """Give the clips/s of each mask ratio, and how many times as fast as fine-tuning that is."""
    cases = results["masking"]["cases"].items()
    return "; ".join(f"{case} {clips_per_s(row):.0f} clips/s, {row['speedup']['median']:.1f} x" for case, row in cases)


def prepare(results: Results) -> str:
    """Give the files/s of each encoder, and the clips/s of the files before and after."""
    result = results["prepare"]
    parts = []
    for table in result["sets"]:
        for encoder, figures in table["encoders"].items():
            files, before, after = (
                figures[key]["median"] for key in ("files_per_s", "clips_per_s_before", "clips_per_s_after")
            )
            parts.append(f"{encoder} {files:.1f} files/s, then {after:.0f} clips/s per core, {before:.0f} before")
    return "; ".join([*parts, *(f"{encoder} left out: {reason}" for encoder, reason in result["left_out"].items())])
