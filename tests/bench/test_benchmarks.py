"""Test the benchmarks: small runs, the form of their results, their arithmetic and their messages."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import bytes_read, epoch_time, loading, multi_view, own_loop, startup, train_step
from bench import index as bench_index
from bench.baselines import readers
from bench.baselines.cases import BASELINES, CASES
from bench.baselines.training_loops import Variant, count_frames_decoded
from bench.loading import Settings, group_prepared, speedups
from bench.report import rows as report_rows
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.encoder import encode_video
from pipelines.decode.frame_table import required_packets
from pipelines.decode.video_info import read_video_info
from pipelines.synthetic import render
from utils.cli import parse_args


@pytest.mark.slow
def test_loading_dry_run_writes_the_documented_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "small.json"
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        assert loading.main(["--dry-run", "device=cpu", f"out={out}"]) == 0
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert {"bench", "date", "environment", "packages", "settings", "cores_used_by_others", "sets"} <= set(result)
    assert result["settings"]["specs"] == ["4x2"] and result["environment"]["cores"] >= 1
    h264, vp9 = result["sets"]
    assert (h264["name"], h264["decoder"], vp9["name"], vp9["decoder"]) == ("h264_bframes", "pyav", "vp9_gop12", "pyav")
    assert {"dali_untrimmed", "dali_reader"} < vp9["cases"].keys() and "dali_untrimmed" not in h264["cases"]
    for table in (h264, vp9):
        assert "clipline" in table["cases"] and set(table["cases"]) <= set(CASES)
        assert table["files"]["files"] == 2 and table["rounds"] == 1 and table["clips_per_round"] == 4
        for figures in table["cases"].values():
            rates = {"clips_per_s", "cpu_ms_per_clip", "cores_used", "cores_used_by_others"}
            assert set(figures) == rates | ({"memory_mib", "gpu_mib"} if table is h264 else set())
            assert table is vp9 or figures["memory_mib"] > 100 and figures["gpu_mib"] == 0
            assert figures["clips_per_s"]["median"] > 0 and len(figures["clips_per_s"]["samples"]) == 1
        other_cases = set(table["cases"]) - {"clipline"}
        differences = table["frame_differences"]
        assert set(differences) == other_cases
        assert set(table["speedups"]) - {"best_baseline"} == other_cases
        assert all(difference["worst_clip"] < 3 for difference in differences.values()), differences
    dali_cases = ("clipline_dali", "dali_untrimmed", "dali_reader")
    dali_differences = {json.dumps(vp9["frame_differences"][case]) for case in dali_cases}
    assert len(dali_differences) == 1, "neither trimming nor who seeks changes a pixel"
    output = capsys.readouterr().out
    assert "clips/s" in output and "dry run" in output


def test_bytes_read_of_ranges_are_fewer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "files=2 sizes=320x240 length=120 clips=3 specs=2x2,8x32 sets=vp9_gop4".split()
    assert bytes_read.main([*small, f"cache={tmp_path}", f"out={tmp_path}/b.json"]) == 0
    (table,) = json.loads((tmp_path / "b.json").read_text())["sets"]
    near, wide = (spec["fraction_of_file"] for spec in table["specs"])
    assert near["ranges"] < 0.5 < 1 <= near["whole_file"] and near["ranges"] < wide["ranges"] < wide["whole_file"]
    assert "vp9_gop4" in capsys.readouterr().out
    for argument in ("specs=16", "sets=vp8", "sizes=64", "clips=0"):
        assert bytes_read.main([argument]) == 2
        assert argument.partition("=")[0] in capsys.readouterr().err


def test_multi_view_from_one_decode_is_faster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = (
        "files=1 sizes=96x64 length=80 num_clips=5 num_frames=4 frame_stride=2 image_size=32 rounds=1 sets=h264_bframes"
    )
    assert multi_view.main([*small.split(), f"cache={tmp_path}", f"out={tmp_path}/v.json"]) == 0
    (table,) = json.loads((tmp_path / "v.json").read_text())["sets"]
    seconds = table["seconds_per_video"]
    assert set(seconds) == {"one_decode", "per_clip", "per_view", "decoding"}
    assert table["speedups"]["per_view"]["median"] > 1
    assert 0 < seconds["decoding"]["median"] < seconds["per_view"]["median"], "ten times the frames"
    assert "per_view / one_decode" in capsys.readouterr().out
    for argument in ("num_crops=2", "sets=vp8", "num_clips=0"):
        assert multi_view.main([argument]) == 2


@pytest.mark.slow
def test_train_step_measures_the_same_network_as_the_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = "cases=clipline,clipline_checkpoint,baseline"
    small = "num_frames=4 depth=1 rounds=1 precision=fp32 device=cpu"
    results = []
    image_sizes = {"videoprism_b": 36, "hiera_b": 64, "dinov2_b": 28}
    for name in ("timesformer_b", "vivit_b", "videomae_b", "vjepa2_l", *image_sizes):
        image_size = image_sizes.get(name, 32)
        sizes = [f"networks={name}", f"image_size={image_size}", *small.split()]
        assert train_step.main([cases, *sizes, f"out={tmp_path}/s.json"]) == 0
        results += json.loads((tmp_path / "s.json").read_text())["networks"]
    for result in results:
        clipline, recomputing, baseline = result["cases"].values()
        assert abs(clipline["parameters"] / baseline["parameters"] - 1) < 0.001, "the same network"
        assert recomputing["saved_for_backward_mib"] < clipline["saved_for_backward_mib"]
        assert set(result["speedups"]) >= {"clipline / baseline"}
    assert "clips/s" in capsys.readouterr().out
    for argument in ("networks=vit", "batch_size=0", "precision=fp8", "rounds=0", "networks=mvit_v2_s"):
        arguments = [argument, "num_frames=4", "image_size=32", "cases=baseline", "device=cpu"]
        assert train_step.main(arguments) == 2, argument


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("spec=8x2", "did you mean specs=?"),
        ("image_size=x", "expected a whole number"),
        ("specs=8", "expected FRAMESxSTRIDE"),
        ("batch_size=0", "at least 1"),
        ("cases=clipline,decrod", "expected some of clipline,decord2"),
        ("quick", "unknown argument; expected one of folder,"),
        ("folder=/no/such/place", "no such folder"),
        ("device=gpu", "expected auto, cuda or cpu"),
    ],
)
def test_wrong_argument_prints_one_line_and_exits_with_2(
    argument: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        assert loading.main([argument]) == 2
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
    message = capsys.readouterr().err
    assert expected in message and argument.partition("=")[0] in message and message.count("\n") == 1


def test_settings_have_the_types_of_their_defaults() -> None:
    _, settings = parse_args(Settings, ["image_size=112", "--cases=clipline,decord2", "folder=videos", "memory=no"])
    assert settings == Settings(image_size=112, cases=("clipline", "decord2"), folder=("videos",), memory=False)


def test_speedups_are_ratios_within_a_round() -> None:
    rates = {
        "clipline": [10.0, 20.0],
        BASELINES[0]: [5.0, 20.0],
        BASELINES[1]: [4.0, 40.0],
        "clipline_pyav": [1.0, 1.0],
    }
    actual = speedups(rates)
    assert actual["best_baseline"]["samples"] == [2.0, 0.5]  # our own variants are no baselines
    assert actual["clipline_pyav"]["median"] == 15
    assert speedups({"decord": [1.0]}) == {}
    assert "best_baseline_unprepared" not in actual
    prepared = speedups({"clipline": [30.0, 60.0], BASELINES[0]: [10.0, 10.0]}, original=rates)
    assert prepared["best_baseline_unprepared"]["samples"] == [6.0, 1.5]
    assert prepared["best_baseline"]["samples"] == [3.0, 6.0]


def test_group_prepared_joins_sets_with_their_originals() -> None:
    sets = {name: [name] for name in ("a", "b_prepared 64x48", "a_prepared", "b 64x48", "c")}
    groups = [list(group) for group in group_prepared(sets)]
    assert groups == [["a", "a_prepared"], ["b_prepared 64x48", "b 64x48"], ["c"]]


@pytest.mark.parametrize("whole_video", [False, True])
def test_unavailable_reason_names_the_file_that_decord_refuses(whole_video: bool, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    (tmp_path / "v.mp4").write_bytes(b"no video")
    case = "decord_whole" if whole_video else readers.decord_distribution()
    assert "v.mp4" in readers.unavailable_reason(case, str(tmp_path / "v.mp4"))


def test_train_step_out_of_memory_leaves_out_one_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(name: str, batch_size: int, *_: object, **__: object) -> dict[str, object]:
        if batch_size > 1:
            raise torch.OutOfMemoryError
        return {"network": name, "batch_size": batch_size}

    monkeypatch.setattr(train_step, "measure", measure)
    monkeypatch.setattr(train_step, "format_table", str)
    monkeypatch.setattr(train_step, "matrix_rate", lambda *_: 1e9)
    settings = train_step.Settings(networks=("vivit_b",), batch_size=("4", "1"), device="cpu", cpu_threads=1)
    assert [result["batch_size"] for result in train_step.measure_all(settings)["networks"]] == [1]


def test_variants_differ_from_the_one_before_by_one_change() -> None:
    variants = epoch_time.variants(epoch_time.Settings())
    for (name, variant), (_, before) in zip(list(variants.items())[1:], variants.items(), strict=False):
        changed = {key for key, value in vars(variant).items() if getattr(before, key) != value}
        assert changed == set(epoch_time.CHANGES[name][0]) and len(changed) == 1, name
    cores = len(os.sched_getaffinity(0))
    assert {v.compute_cores for name, v in variants.items() if name != "synthetic"} == {max(1, cores - 1)}
    assert variants["synthetic"].compute_cores == cores
    base, interval = variants["base"], variants["interval_24"]
    assert (base.batch_size, base.num_workers, base.frame_stride) == (16, 8, 16)
    assert (interval.batch_size, interval.num_workers, interval.frame_stride) == (8, 4, 24)


def test_variants_have_the_sizes_of_the_settings_from_dali_decode_on() -> None:
    settings = epoch_time.Settings(batch_size=4, frame_stride=32, num_workers=6)
    variants, descriptions = epoch_time.variants(settings), epoch_time.describe_changes(settings)
    assert (variants["prepared"].batch_size, variants["prepared"].frame_stride) == (4, 32)
    assert variants["interval_24"].frame_stride == 24
    assert descriptions["base"].endswith("16 clips per batch; 8 workers; 16 frames apart")
    assert descriptions["dali_decode"].endswith("4 clips per batch; 6 workers; 32 frames apart")
    assert ";" not in epoch_time.describe_changes(epoch_time.Settings())["dali_decode"]


def test_batches_per_round_are_whole_multiples_of_those_in_flight() -> None:
    settings = epoch_time.Settings(clips_per_round=100)
    for variant in epoch_time.variants(settings).values():
        batches = settings.batches_per_round(variant, torch.device("cpu"))
        assert batches % variant.batches_in_flight == 0 and batches * variant.batch_size >= 100


@pytest.mark.parametrize(
    "cases", ["trimmed", *(pytest.param(cases, marks=pytest.mark.slow) for cases in ("indices_first,trimmed", ""))]
)
def test_epoch_time_dry_run_measures_the_chosen_cases(
    cases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "e.json"
    monkeypatch.chdir(tmp_path)
    try:
        arguments = ["--dry-run", f"out={out}", "device=cpu", "cache=own", *([f"cases={cases}"] if cases else [])]
        assert epoch_time.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    (table,) = json.loads(out.read_text())["sets"]
    rows = {row["case"]: row for row in table["cases"]}
    frames = {case: row["frames_decoded_per_clip"] for case, row in rows.items()}
    assert list(rows) == (cases.split(",") if cases else list(epoch_time.CHANGES))
    assert all(row["clips_per_s"]["median"] > 0 for row in rows.values())
    if cases != "trimmed":
        assert frames["trimmed"] <= frames["indices_first"]
    if not cases:
        assert frames["synthetic"] == 0 and rows["synthetic"]["fraction_of_ceiling"]["median"] == 1
        assert frames["base"] == 200 and rows["base"]["speedup_over_base"]["median"] == 1
        assert frames["repeated_aug"] * 1.5 < frames["prepared"]
        assert frames["indices_first"] < frames["dali_decode"] < 200
    assert "of ceiling" in capsys.readouterr().out


def test_count_frames_decoded_equals_what_pyav_decodes(tmp_path: Path) -> None:
    """decord's seeking never decodes fewer frames than trimming."""
    path = tmp_path / "v.mp4"
    encode_video(path, render(0, 0, 0, 60, 64, 48), 30, codec="h264", gop=20, bframes=3)
    info = read_video_info(str(path))
    frames = np.array([5, 11, 45])

    def count(**options: object) -> int:
        return count_frames_decoded(Variant(**options), info, frames)  # type: ignore[arg-type]

    assert count() == 60 and count(loader="clipline") <= 49
    trimmed, decord = count(loader="clipline", trimmed=True), count(loader="decord")
    with VideoDemuxer(str(path)) as video:
        required = required_packets(video.frame_table, frames)[0]
        assert len(list(video.decode(video.packets(required)))) == trimmed < decord <= 13 + 9


def test_startup_is_timed_for_each_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.json"
    assert startup.main(["--dry-run", "counts=20,450", f"out={out}"]) == 0
    few, many = json.loads(out.read_text())["sets"]
    assert (few["files"], few["usable"], many["files"], many["usable"]) == (20, 20, 450, 450)
    assert many["index_mb"] > few["index_mb"] >= 0 and few["start_s"]["median"] > few["index_s"]["median"]
    assert "450 files" in capsys.readouterr().out
    assert startup.main(["sets=vp9_gop4,vp9_gop12"]) == 2
    assert "expected one set of one size" in capsys.readouterr().err


def test_index_is_timed_beside_another_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_index.main(["--dry-run", f"out={tmp_path}/i.json", f"cache={tmp_path}"]) == 0
    result = json.loads((tmp_path / "i.json").read_text())
    (table,) = result["sets"]
    assert table["ms_per_file"]["now"]["median"] > 0 and table["now_over_before"]["median"] > 0
    assert report_rows.index_rows(result)[0]["now / before (quartiles)"]
    assert "ratio" in capsys.readouterr().out
    assert bench_index.main(["--dry-run", f"before={tmp_path}", f"out={tmp_path}/n.json"]) == 2
    assert "expected a folder with a checkout" in capsys.readouterr().err
    assert not (tmp_path / "n.json").exists()
    checkout = tmp_path / "checkout/pipelines/decode"
    checkout.mkdir(parents=True)
    (checkout / "video_info.py").write_text("def read_video_info(path): raise ValueError(f'{path}: cannot')")
    assert bench_index.main(["--dry-run", f"before={checkout.parents[1]}", f"cache={tmp_path}"]) == 2
    assert "cannot" in capsys.readouterr().err


@pytest.mark.slow
def test_own_loop_and_train_are_timed_over_the_same_clips(tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    assert own_loop.main(["--dry-run", "device=cpu", f"out={out}", "network=vivit_tiny"]) == 0
    result = json.loads(out.read_text())
    (table,) = result["sets"]
    rates = {name: rate["median"] for name, rate in table["clips_per_s"].items()}
    assert table["own_loop_over_train"]["median"] == pytest.approx(rates["own_loop"] / rates["train"], rel=0.01)
    assert report_rows.own_loop_rows(result)[0]["loop / train.py (quartiles)"]
