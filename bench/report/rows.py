"""Turn the result of each benchmark into rows of text, by the heads of their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.report.formats import format_median, format_number, format_percent, format_quartiles, set_title
from bench.report.network_rows import adapters_rows, fine_tuning_rows, masking_rows, run_length_rows

Result = Mapping[str, Any]
Rows = list[dict[str, str]]


DECODERS = {"decord": "decord", "pyav": "PyAV", "dali": "DALI", "both": "PyAV and DALI", "none": ""}
OTHER_LOADERS = {
    "pyav": "PyAV",
    "clipline_pyav": "Clipline with PyAV",
    "clipline_dali": "Clipline with DALI's decoder",
    "dali_untrimmed": "Clipline with DALI's decoder, untrimmed",
    "dali_reader": "DALI's reader",
    "torchcodec_cuda": "torchcodec on the GPU",
    "pynvvideocodec": "PyNvVideoCodec",
    "decord2": "decord2",
    "video_reader_rs": "video-reader-rs",
    "spdl_window": "SPDL",
    "spdl_sample": "SPDL, sampled",
    "spdl_cuda": "SPDL on the GPU",
}


def loading_rows(result: Result) -> Rows:
    """Return a row for each set, spec and number of workers and threads."""
    rows = []
    # Results without this key have the memory of a process that had done other work before.
    has_memory = "cores_used_by_others" in result
    for table in result["sets"]:
        rates = {case: figures["clips_per_s"] for case, figures in table["cases"].items()}
        seek_modes = [case for case in ("torchcodec", "torchcodec_approx") if case in rates]
        torchcodec = max(seek_modes, key=lambda case: rates[case]["median"], default="")
        memory = [
            f"{table['cases'][case]['memory_mib']}"
            for case in ("clipline", "decord2" if "decord2" in rates else "decord", torchcodec)
            if has_memory and "memory_mib" in table["cases"].get(case, {})
        ]
        speedups = table["speedups"]
        rows.append(
            {
                "files": set_title(table["name"]),
                "clip": table["spec"],
                "workers": str(table["num_workers"]),
                "DALI threads": str(table.get("dali_threads", "")),
                "Clipline's decoder": DECODERS[table["decoder"]],
                "Clipline, clips/s": format_median(rates.get("clipline")),
                "decord, clips/s": format_median(rates.get("decord")),
                "torchcodec, clips/s": format_median(rates.get(torchcodec)),
                **{f"{name}, clips/s": format_median(rates.get(case)) for case, name in OTHER_LOADERS.items()},
                "speed-up over best baseline (quartiles)": format_quartiles(speedups.get("best_baseline")),
                "speed-up over best baseline on the original files (quartiles)": format_quartiles(
                    speedups.get("best_baseline_unprepared")
                ),
                "memory in MiB: Clipline, decord or decord2, torchcodec": ", ".join(memory),
                "kbit/s of the files": format_number(table["files"]["mean_kbit_per_s"]),
            }
        )
    return rows


def epoch_time_rows(result: Result) -> Rows:
    """Return a row for each case of each set."""
    rows = []
    unit = "machine" if result["device"] == "cpu" else "GPU"
    for table in result["sets"]:
        for case in table["cases"]:
            row = {
                "files": set_title(table["name"]) if len(result["sets"]) > 1 else "",
                "row": f"`{case['case']}`",
                "change": case["change"],
                "decoder": DECODERS[case["decoder"]],
                "clips/s": format_median(case["clips_per_s"]),
                "seconds per step": format_median(case["s_per_step"]),
                "waiting for data": format_percent(case["data_time_frac"]),
                "computing": format_percent(case["compute_frac"]),
                "GPU busy": format_percent(case.get("gpu_busy")),
                "NVDEC busy": format_percent(case.get("nvdec_busy")),
                "frames decoded per clip": format_number(case["frames_decoded_per_clip"]),
                "kB read per clip": format_number(max(case["bytes_per_clip"]["median"], 0) / 1000),
                f"epoch, 1 {unit}": f"{case['epoch_minutes_1']['median'] / 60:.1f} h",
                f"epoch, 8 {unit}s": f"{case['epoch_minutes_8']['median'] / 60:.2f} h",
                "published epoch, 8 GPUs": case.get("published", ""),
                "speed-up over `base` (quartiles)": format_quartiles(case.get("speedup_over_base")),
                "percent of the ceiling": format_percent(case.get("fraction_of_ceiling")),
            }
            rows.append(row)
    return rows


def train_step_rows(result: Result) -> Rows:
    """Return a row for each network and batch size."""
    rows = []
    for network in result["networks"]:
        cases, speedups = network["cases"], network["speedups"]
        row = {
            "network": f"{network['network']} {'x'.join(map(str, network['input_shape'][1:]))}",
            "clips per step": str(network["batch_size"]),
            "precision": result["precision"].replace("float32", "fp32").replace("bfloat16", "bf16"),
        }
        for case in ("clipline", "baseline", "clipline_compiled", "baseline_compiled"):
            row[f"{_case_title(case)}, clips/s"] = format_median(cases[case]["clips_per_s"]) if case in cases else ""
        for case, other in (
            ("clipline", "baseline"),
            ("clipline_compiled", "baseline"),
            ("clipline_compiled", "baseline_compiled"),
        ):
            head = f"{_case_title(case)} / {_case_title(other)} (quartiles)"
            row[head] = format_quartiles(speedups.get(f"{case} / {other}"))
        row["utilization: Clipline, compiled"] = ", ".join(
            format_percent(cases[case]["utilization"]) for case in ("clipline", "clipline_compiled") if case in cases
        )
        for key, head in (("saved_for_backward_mib", "saved for backward in MiB"), ("peak_mib", "peak memory in MiB")):
            row[f"{head}: Clipline, baseline, Clipline with recomputation"] = ", ".join(
                format_number(cases[case][key])
                for case in ("clipline", "baseline", "clipline_checkpoint")
                if key in cases.get(case, {})
            )
        rows.append(row)
    return rows


def _case_title(case: str) -> str:
    return case.replace("clipline", "Clipline").replace("_", " ")


def multi_view_rows(result: Result) -> Rows:
    """Return a row for each set."""
    return [
        {
            "files": set_title(table["name"]),
            "one decode, seconds per video": format_median(table["seconds_per_video"]["one_decode"]),
            "of which decoding": format_median(table["seconds_per_video"].get("decoding")),
            "one decode per clip": format_median(table["seconds_per_video"]["per_clip"]),
            "one decode per view": format_median(table["seconds_per_video"]["per_view"]),
            "speed-up over one decode per clip (quartiles)": format_quartiles(table["speedups"]["per_clip"]),
            "speed-up over one decode per view (quartiles)": format_quartiles(table["speedups"]["per_view"]),
        }
        for table in result["sets"]
    ]


def bytes_read_rows(result: Result) -> Rows:
    """Return a row for each set."""
    heads = {"whole_file": "whole file", "ranges": "ranges", "fsspec": "ranges through fsspec"}
    rows = []
    for table in result["sets"]:
        row = {"files": set_title(table["name"])}
        for spec in table["specs"]:
            for key, fraction in spec["fraction_of_file"].items():
                row[f"{spec['spec']} clips, {heads[key]}"] = f"{100 * fraction:.0f} %"
        rows.append(row)
    return rows


def startup_rows(result: Result) -> Rows:
    """Return a row for each number of files."""
    return [
        {
            "files": f"{table['files']:,}",
            "seconds to build the index": format_number(table["index_build_s"]) if "index_build_s" in table else "",
            "index in MB": format_number(table["index_mb"]),
            "seconds to the first batch (quartiles)": format_quartiles(table["start_s"]),
            "of which reading the list": format_median(table["list_s"]),
            "of which checking the index": format_median(table["index_s"]),
            "memory of all processes in MiB": format_number(table["memory_mib"]),
        }
        for table in result["sets"]
    ]


def index_rows(result: Result) -> Rows:
    """Return a row for each set."""
    return [
        {
            "files": set_title(table["name"]),
            "ms per file": format_median(table["ms_per_file"]["now"]),
            "ms per file before": format_median(table["ms_per_file"].get("before")),
            "now / before (quartiles)": format_quartiles(table.get("now_over_before")),
        }
        for table in result["sets"]
    ]


def own_loop_rows(result: Result) -> Rows:
    """Return a row for each set."""
    return [
        {
            "files": set_title(table["name"]),
            "loop of ten lines, clips/s": format_median(table["clips_per_s"]["own_loop"]),
            "train.py, clips/s": format_median(table["clips_per_s"]["train"]),
            "loop / train.py (quartiles)": format_quartiles(table["own_loop_over_train"]),
        }
        for table in result["sets"]
    ]


def tune_rows(result: Result) -> Rows:
    """Return a row for each set."""
    rows = []
    for table in result["sets"]:
        limits, sweep = table.get("limits", {}), table.get("sweep", {})
        changes = {key: value for key, value in table["answer"].items() if value != table["configured"][key]}
        rows.append(
            {
                "files": set_title(table["name"]),
                "clips": table["spec"],
                "as configured, clips/s": format_median(table["clips_per_s"]["configured"]),
                "tuned, clips/s": format_median(table["clips_per_s"]["answer"]),
                "answer": ", ".join(f"`{key}={value}`" for key, value in changes.items()) or "as configured",
                "candidates": f"{table['num_candidates']}",
                "answer / best of a sweep (quartiles)": format_quartiles(sweep.get("answer_over_fastest")),
                "slowest / best of the sweep": format_number(sweep["slowest_over_fastest"]) if sweep else "",
                "limit": limits.get("limit", ""),
                "prepared files / these (quartiles)": format_quartiles(limits.get("prepared_speedup")),
            }
        )
    return rows


def probes_rows(result: Result) -> Rows:
    """Return one row: a step of one probe and of many, on clips and on stored features."""
    settings, ratios = result["settings"], result["cost_over_one"]
    depth = f", {settings['depth']} blocks" if settings["depth"] else ""
    return [
        {
            "encoder": f"{settings['network']}{depth}",
            "probes": f"{settings['num_probes']} {settings['kind']}",
            "precision": result["precision"],
            "one probe, s per step": format_median(result["seconds"]["one"]),
            "all / one (quartiles)": format_quartiles(ratios["many"]),
            "poolers of transformers / one": format_quartiles(ratios.get("transformers")),
            "clips / stored features (quartiles)": format_quartiles(result["speedup_of_features"]),
        }
    ]


ROWS: dict[str, Callable[[Result], Rows]] = {
    "loading": loading_rows,
    "epoch_time": epoch_time_rows,
    "train_step": train_step_rows,
    "multi_view": multi_view_rows,
    "bytes_read": bytes_read_rows,
    "startup": startup_rows,
    "index": index_rows,
    "own_loop": own_loop_rows,
    "tune": tune_rows,
    "probes": probes_rows,
    "run_length": run_length_rows,
    "masking": masking_rows,
    "adapters": adapters_rows,
    "fine_tuning": fine_tuning_rows,
}
