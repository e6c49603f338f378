"""Make Markdown tables of result files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.harness.runner import processors

RESULTS = Path(__file__).parents[1] / "results"
Rows = list[dict[str, str]]


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def middle(s: dict[str, float] | None) -> str:
    return number(s["median"]) if s else ""


def quartiles(s: dict[str, float] | None) -> str:
    return f"{s['median']:.2f} ({s['p25']:.2f}-{s['p75']:.2f})" if s else ""


def percent(s: dict[str, float] | None) -> str:
    return f"{100 * s['median']:.0f} %" if s else ""


def set_name(name: str) -> str:
    """h264_gop12_prepared 352x256 -> H.264, GOP 12, prepared, 352x256"""
    coded, _, size = name.partition(" ")
    match = re.fullmatch(r"(h264|hevc|vp9)_(bframes|gop(\d+))(_prepared)?", coded)
    if not match:
        return {"av1": "AV1", "mpeg4": "MPEG-4 part 2", "vp8": "VP8", "mjpeg": "MJPEG"}.get(name, name)
    codec, kind, gop, prepared = match.groups()
    structure = f"GOP {gop}" if gop else "B-frames, GOP 250"
    parts = [{"h264": "H.264", "hevc": "HEVC", "vp9": "VP9"}[codec], structure, prepared and "prepared", size]
    return ", ".join(part for part in parts if part)


DECODERS = {"decord": "decord", "host": "PyAV", "dali": "DALI", "none": ""}
OTHERS = {"pyav": "PyAV", "clipline_host": "Clipline on the host", "clipline_dali": "Clipline, DALI's decoder",
          "dali_untrimmed": "DALI's decoder, untrimmed", "dali_reader": "DALI's reader",
          "torchcodec_cuda": "torchcodec on the GPU", "pynvvideocodec": "PyNvVideoCodec", "spdl": "SPDL",
          "spdl_cuda": "SPDL on the GPU"}  # fmt: skip


def decode_rows(result: dict[str, Any]) -> Rows:
    rows = []
    fresh = "cores_used_by_others" in result  # older results have the memory of a process that had done other things
    for s in result["sets"]:
        rate = {case: figures["clips_per_s"] for case, figures in s["cases"].items()}
        codecs = [case for case in ("torchcodec", "torchcodec_approx") if case in rate]
        best = max(codecs, key=lambda case: rate[case]["median"], default="")
        row = {"files": set_name(s["name"]), "clip": s["spec"], "workers": str(s["workers"]),
               "threads": str(s.get("threads", "")), "decoder": DECODERS[s["decoder"]],
               "Clipline": middle(rate.get("clipline")), "decord": middle(rate.get("decord")),
               "torchcodec": middle(rate.get(best))}  # fmt: skip
        row |= {name: middle(rate.get(case)) for case, name in OTHERS.items()}
        row |= {"Clipline / best peer": quartiles(s["ratios"].get("best_peer")),
                "prepared / best peer before": quartiles(s["ratios"].get("best_peer_before")),
                "MiB: Clipline, decord, torchcodec": ", ".join(
                    f"{s['cases'][case]['memory_mib']}" for case in ("clipline", "decord", best)
                    if fresh and "memory_mib" in s["cases"].get(case, {})),
                "kbit/s": number(s["files"]["mean_kbit_per_s"])}  # fmt: skip
        rows.append(row)
    return rows


def epoch_rows(result: dict[str, Any]) -> Rows:
    rows = []
    on = "machines" if result["device"] == "cpu" else "GPUs"
    for s in result["sets"]:
        for c in s["cases"]:
            minutes = {n: c[f"epoch_minutes_{n}"]["median"] for n in (1, 8)}
            row = {"files": set_name(s["name"]) if len(result["sets"]) > 1 else "", "row": f"`{c['case']}`",
                   "what changes": c["what"], "decoder": DECODERS[c["decoder"]], "clips/s": middle(c["clips_per_s"]),
                   "s a step": middle(c["s_per_step"]), "waiting for data": percent(c["waiting"]),
                   "computing": percent(c["computing"])}  # fmt: skip
            if "gpu_busy" in c:
                row |= {"GPU busy": percent(c["gpu_busy"]), "NVDEC busy": percent(c["nvdec_busy"])}
            rows.append(row | {
                "pictures decoded a clip": number(c["pictures_per_clip"]),
                "kB read a clip": number(max(c["bytes_per_clip"]["median"], 0) / 1000),
                f"an epoch on 1, 8 {on}": f"{minutes[1] / 60:.1f}, {minutes[8] / 60:.2f} h",
                "published, 8 GPUs": c.get("published", ""),
                "x base": quartiles(c.get("to_base")), "of the ceiling": percent(c.get("of_ceiling")),
            })  # fmt: skip
    return rows


def step_rows(result: dict[str, Any]) -> Rows:
    rows = []
    for r in result["rows"]:
        cases, ratio = r["cases"], r["times_faster"]
        row = {"network": f"{r['network']} {'x'.join(map(str, r['clip'][1:]))}", "clips a step": str(r["batch"]),
               "precision": result["precision"].replace("float32", "fp32").replace("bfloat16", "bf16")}  # fmt: skip
        for case in ("ours", "peer", "ours_compiled", "peer_compiled"):
            row[case.replace("_", " ")] = middle(cases[case]["clips_per_s"]) if case in cases else ""
        for key in ("ours / peer", "ours_compiled / peer", "ours_compiled / peer_compiled"):
            row[key.replace("_", " ")] = quartiles(ratio.get(key))
        row["of the matrix rate"] = ", ".join(
            percent(cases[c]["utilisation"]) for c in ("ours", "ours_compiled") if c in cases
        )
        for key, name in (("held_mib", "MiB held"), ("peak_mib", "MiB at most")):
            row[name] = ", ".join(
                number(cases[c][key]) for c in ("ours", "peer", "ours_checkpoint") if key in cases.get(c, {})
            )
        rows.append(row)
    return rows


def views_rows(result: dict[str, Any]) -> Rows:
    return [
        {"files": set_name(s["name"]), "one decode, s": middle(s["seconds_a_video"]["one"]),
         "of which decoding": middle(s["seconds_a_video"].get("decoding")),
         "clip by clip": middle(s["seconds_a_video"]["clips"]), "view by view": middle(s["seconds_a_video"]["views"]),
         "times faster than clip by clip": quartiles(s["times_faster"]["clips"]),
         "than view by view": quartiles(s["times_faster"]["views"])} for s in result["sets"]
    ]  # fmt: skip


def bytes_rows(result: dict[str, Any]) -> Rows:
    rows = []
    for s in result["sets"]:
        row = {"files": set_name(s["name"])}
        for spec in s["specs"]:
            for way, share in spec["share_of_file"].items():
                row[f"{spec['spec']}, {way}"] = f"{100 * share:.0f} %"
        rows.append(row)
    return rows


def start_rows(result: dict[str, Any]) -> Rows:
    return [
        {"files": f"{s['files']:,}", "index built, s": number(s["index_build_s"]) if "index_build_s" in s else "",
         "index, MB": number(s["index_mb"]),
         "first batch after, s": quartiles(s["start_s"]), "of which the list, s": middle(s["list_s"]),
         "the index, s": middle(s["index_s"]), "MiB of all processes": number(s["memory_mib"])} for s in result["sets"]
    ]  # fmt: skip


def index_rows(result: dict[str, Any]) -> Rows:
    rows = []
    for s in result["sets"]:
        ms = s["ms_a_file"]
        rows.append({"files": set_name(s["name"]), "ms per file": middle(ms["now"]), "before": middle(ms.get("before")),
                     "now / before": quartiles(s.get("now_over_before"))})  # fmt: skip
    return rows


TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "decode": decode_rows, "epoch_time": epoch_rows, "step": step_rows, "views": views_rows, "bytes": bytes_rows,
    "start": start_rows, "index": index_rows,
}  # fmt: skip


def machine(result: dict[str, Any]) -> str:
    gpu = result["environment"]["gpu"]
    return ", ".join(filter(None, (gpu, processors(result))))


def caption(result: dict[str, Any]) -> str:
    """The circumstances, in a line, but for the file."""
    e, peers = result["environment"], {key: value for key, value in result.get("peers", {}).items() if key != "av"}
    versions = {"torch": e["packages"]["torch"], "DALI": e["packages"]["nvidia-dali-cuda120"],
                "PyAV": e["packages"]["av"], "driver": e.get("driver"), **peers}  # fmt: skip
    turns = result["settings"].get("repeats")
    again = f"medians of {turns} turns (quartiles); " if turns else ""
    listed = ", ".join(f"{key} {value}" for key, value in versions.items() if value)
    network = " ".join(word.removeprefix("model.") for word in result.get("network", ()) if word.startswith("model."))
    network = network and f"network {network}; "
    return f"{again}{network}{machine(result)}; {listed}; {result['date'][:10]}, commit {e['commit']}"


def markdown(names: Sequence[str], folder: Path = RESULTS) -> str:
    """The table of result files of one bench. Raises ValueError for a file that is missing or of another bench."""
    results = {}
    for name in names:
        try:
            results[name] = json.loads((folder / name).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / name}: not readable as a result: {error}") from None
    kinds = {result.get("bench") for result in results.values()}
    if len(kinds) > 1 or not kinds <= TABLES.keys():
        raise ValueError(f"{' '.join(names)}: expected results of one bench of {', '.join(TABLES)}, got {kinds}")
    (kind,) = kinds
    machines = {name: machine(result) for name, result in results.items()}
    rows: Rows = []
    for name, result in results.items():
        on = {"on": machines[name]} if len(set(machines.values())) > 1 else {}
        rows += [on | row for row in TABLES[kind](result)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [key for key in columns if any(row.get(key) for row in rows)]
    for key in ("workers", "threads", "decoder"):
        if len({row.get(key) for row in rows}) == 1 and key in columns:
            columns.remove(key)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(key, "") for key in columns) + " |" for row in rows]
    captions: dict[str, list[str]] = {}
    for name, result in results.items():
        beside = result.get("cores_used_by_others")
        others = "" if beside is None else f" ({beside:.2f} cores used by others)"
        captions.setdefault(caption(result), []).append(f"`bench/results/{name}`{others}")
    return "\n".join(
        [*lines, "", *(f"<sub>{said}; {', '.join(where)}</sub>  " for said, where in captions.items()), ""]
    )
