"""The figures of bench.gpu's summary: each part's results in a line. `results` are by the names of the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, dict[str, Any]]


def rate(case: dict[str, Any]) -> float:
    return case["clips_per_s"]["median"]


def tables(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of bench.loading, with the task that each is of."""
    for name, result in results.items():
        for table in result["sets"]:
            yield name, table


def card(results: Results) -> str:
    found = results["card"]
    name = (found["card"] or {}).get("name", "no GPU")
    decoder = found["decoder"]
    otherwise = f", {len(decoder['differences'])} differences" if decoder["asked"] is not None else ""
    return f"{name}, driver {found['driver'] or 'unknown'}; {decoder['note']}{otherwise}"


def tests(results: Results) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in results["tests"]["counts"].items())


def decode(results: Results) -> str:
    """The best of each decoder, as downloaded and prepared; of NVDEC with how many threads."""
    best: dict[tuple[str, str], tuple[float, int]] = {}
    for task, table in tables(results):
        kind = "prepared" if "_prepared" in table["name"] else "as downloaded"
        key = task.removeprefix("decode_"), kind
        best[key] = max(best.get(key, (0.0, 0)), (rate(table["cases"]["clipline"]), table["threads"]))
    words = []
    for (decoder, kind), (clips, threads) in best.items():
        said = f" with {threads} threads" if decoder.startswith("nvdec") else ""
        words.append(f"{decoder} {clips:.0f} clips/s {kind}{said}")
    return "; ".join(words)


def loader(results: Results) -> str:
    """Clipline's rate through each peer's, measured in the same process."""
    words = []
    for _, table in tables(results):
        rivals = [case for case in table["cases"] if case != "clipline"]
        ratios = [f"{table['ratios'][case]['median']:.2f} x {case}" for case in rivals]
        kind = "prepared" if "_prepared" in table["name"] else "as downloaded"
        words.append(
            f"{kind}: {rate(table['cases']['clipline']):.0f} clips/s{', ' if ratios else ''}{', '.join(ratios)}"
        )
    return "; ".join(words)


def step(results: Results) -> str:
    words = []
    for result in results.values():
        for row in result["rows"]:
            case = "ours_compiled" if "ours_compiled" in row["cases"] else "ours"
            ratio = row["times_faster"].get(f"{case} / {case.replace('ours', 'peer')}")
            over = f", {ratio['median']:.2f} x its peer" if ratio else ""
            words.append(f"{row['network']} {rate(row['cases'][case]):.0f} clips/s{over}")
    return "; ".join(words)


def epoch_rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["case"]: row for row in result["sets"][0]["cases"]}


def data_over_synthetic(results: Results) -> str:
    words = []
    for task, result in results.items():
        row = epoch_rows(result)["prepared"]
        share = f"{100 * row['of_ceiling']['median']:.0f} % of {rate(epoch_rows(result)['synthetic']):.0f} clips/s"
        words.append(f"{task.removeprefix('over_synthetic_')} {share}, waiting {100 * row['waiting']['median']:.0f} %")
    return "; ".join(words)


def epoch_time(results: Results) -> str:
    rows = list(epoch_rows(results["epoch_time"]).values())
    first = rows[0]
    best = max((row for row in rows if row["case"] != "synthetic"), key=rate)
    faster = rate(best) / rate(first)
    return f"{first['case']} {rate(first):.0f} clips/s, {best['case']} {rate(best):.0f}: {faster:.1f} times as many"


def hog(results: Results) -> str:
    found = results["hog"]
    words = [f"{case} {times['median']:.2f} ms a clip" for case, times in found["ms_a_clip"].items()]
    if "step" in found:
        words.append(f"the targets are {found['step']['share_percent']['median']:.1f} % of a step")
    return ", ".join(words)


def prepare(results: Results) -> str:
    found = results["prepare"]
    words = []
    for each in found["sets"]:
        for encoder, figures in each["encoders"].items():
            files, before, after = (
                figures[key]["median"] for key in ("files_per_s", "clips_per_s_before", "clips_per_s_after")
            )
            words.append(f"{encoder} {files:.1f} files/s, then {after:.0f} clips/s a core, {before:.0f} before")
    return "; ".join([*words, *(f"{encoder} left out: {reason}" for encoder, reason in found["left_out"].items())])
