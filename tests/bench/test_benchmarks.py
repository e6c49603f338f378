"""bench: it runs at toy size, what it writes has the promised shape, its arithmetic and its messages are right."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import bytes_read as bench_bytes
from bench import epoch_time, loading, multi_view, startup, train_step
from bench import index as bench_index
from bench.baselines import loaders
from bench.baselines.cases import CASES, PEERS
from bench.baselines.training_loops import Way, pictures_decoded
from bench.harness import system
from bench.harness.runner import others, spread
from bench.harness.videos import Files, coding
from bench.loading import Settings, groups, ratios
from bench.report import tables
from pipelines.decode.demuxer import Video
from pipelines.decode.encoder import encode
from pipelines.decode.frame_table import required_packets
from pipelines.decode.video_info import read_row
from pipelines.synthetic import render
from utils.cli import parse


@pytest.mark.slow
def test_toy_run_writes_the_promised_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "toy.json"
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        assert loading.main(["--dry-run", "device=cpu", f"out={out}"]) == 0
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert {"bench", "date", "environment", "peers", "settings", "cores_used_by_others", "sets"} <= set(result)
    assert result["settings"]["specs"] == ["4x2"] and result["environment"]["cores"] >= 1
    host, dali = result["sets"]
    assert (host["name"], host["decoder"], dali["name"], dali["decoder"]) == (
        "h264_bframes",
        "host",
        "vp9_gop12",
        "host",
    )
    assert {"dali_untrimmed", "dali_reader"} < dali["cases"].keys() and "dali_untrimmed" not in host["cases"]
    for measured in (host, dali):
        assert "clipline" in measured["cases"] and set(measured["cases"]) <= set(CASES)
        assert measured["files"]["files"] == 2 and measured["n"] == 1 and measured["clips_a_turn"] == 4
        for figures in measured["cases"].values():
            rates = {"clips_per_s", "cpu_ms_per_clip", "cores_used", "cores_used_by_others"}
            assert set(figures) == rates | ({"memory_mib", "gpu_mib"} if measured is host else set())
            assert measured is dali or figures["memory_mib"] > 100 and figures["gpu_mib"] == 0
            assert figures["clips_per_s"]["median"] > 0 and len(figures["clips_per_s"]["all"]) == 1
        others = set(measured["cases"]) - {"clipline"}
        assert set(measured["pictures"]) == others
        assert set(measured["ratios"]) - {"best_peer"} == others
        assert all(apart["worst_clip"] < 3 for apart in measured["pictures"].values()), measured["pictures"]
    same = {json.dumps(dali["pictures"][case]) for case in ("clipline_dali", "dali_untrimmed", "dali_reader")}
    assert len(same) == 1, "neither trimming nor who seeks changes a picture"
    shown = capsys.readouterr().out
    assert "clips/s" in shown and "dry run" in shown


def test_bytes_of_ranges_are_fewer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = "files=2 sizes=320x240 length=120 clips=3 specs=2x2,8x32 sets=vp9_gop4".split()
    assert bench_bytes.main([*toy, f"cache={tmp_path}", f"out={tmp_path}/b.json"]) == 0
    (found,) = json.loads((tmp_path / "b.json").read_text())["sets"]
    near, wide = (spec["share_of_file"] for spec in found["specs"])
    assert near["ranges"] < 0.5 < 1 <= near["whole"] and near["ranges"] < wide["ranges"] < wide["whole"]
    assert "vp9_gop4" in capsys.readouterr().out
    for wrong in ("specs=16", "sets=vp8", "sizes=64", "clips=0"):
        assert bench_bytes.main([wrong]) == 2
        assert wrong.partition("=")[0] in capsys.readouterr().err


def test_views_from_one_decode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = "files=1 sizes=96x64 length=80 clips=5 frames=4 stride=2 size=32 repeats=1 sets=h264_bframes".split()
    assert multi_view.main([*toy, f"cache={tmp_path}", f"out={tmp_path}/v.json"]) == 0
    (found,) = json.loads((tmp_path / "v.json").read_text())["sets"]
    seconds = found["seconds_a_video"]
    assert found["times_faster"]["views"]["median"] > 1 and set(seconds) == {"one", "clips", "views", "decoding"}
    assert 0 < seconds["decoding"]["median"] < seconds["views"]["median"], "ten times the pictures"
    assert "views / one" in capsys.readouterr().out
    for wrong in ("crops=2", "sets=vp8", "clips=0"):
        assert multi_view.main([wrong]) == 2


@pytest.mark.slow
def test_steps_of_ours_and_of_the_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        train_step.main(["--dry-run", "cases=ours,ours_checkpoint,peer", f"out={tmp_path}/s.json", "device=cpu"]) == 0
    )
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["timesformer_b", "vivit_b", "videomae_b"]
    for row in rows:
        ours, again, peer = row["cases"].values()
        assert abs(ours["parameters"] / peer["parameters"] - 1) < 0.001, "the same network"
        assert again["held_mib"] < ours["held_mib"] and set(row["times_faster"]) >= {"ours / peer"}
    assert "clips/s" in capsys.readouterr().out
    for wrong in ("networks=vit", "batch=0", "amp=fp8", "repeats=0", "networks=mvit_v2_s"):
        assert train_step.main([wrong, "frames=4", "size=32", "cases=peer", "device=cpu"]) == 2, wrong


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("spec=8x2", "did you mean specs=?"),
        ("size=x", "expected a whole number"),
        ("specs=8", "expected FRAMESxSTRIDE"),
        ("batch=0", "at least 1"),
        ("cases=clipline,decrod", "expected some of clipline,decord"),
        ("quick", "not a key=value"),
        ("folder=/no/such/place", "no such folder"),
        ("device=gpu", "expected auto, cuda or cpu"),
    ],
)
def test_a_wrong_key_is_one_line_and_exit_2(argument: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        assert loading.main([argument]) == 2
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
    message = capsys.readouterr().err
    assert expected in message and argument.partition("=")[0] in message and message.count("\n") == 1


def test_settings_are_typed() -> None:
    _, settings = parse(Settings, ["size=112", "--cases=clipline,decord", "folder=videos"])
    assert settings == Settings(size=112, cases=("clipline", "decord"), folder=("videos",))


def test_ratio_is_taken_within_a_round() -> None:
    rates = {"clipline": [10.0, 20.0], PEERS[0]: [5.0, 20.0], PEERS[1]: [4.0, 40.0], "pyav": [1.0, 1.0]}
    found = ratios(rates)
    assert found["best_peer"]["all"] == [2.0, 0.5]  # the naive loader is no peer
    assert found["pyav"]["median"] == 15
    assert ratios({"decord": [1.0]}) == {}
    assert "best_peer_before" not in found
    prepared = ratios({"clipline": [30.0, 60.0], PEERS[0]: [10.0, 10.0]}, before=rates)
    assert prepared["best_peer_before"]["all"] == [6.0, 1.5] and prepared["best_peer"]["all"] == [3.0, 6.0]
    assert spread([0.0244, 0.0246])["median"] == 0.0245, "small figures keep their digits"
    assert spread([1, 2, 3, 4, 5]) == {"median": 3, "p25": 2, "p75": 4, "all": [1, 2, 3, 4, 5]}


def test_files_and_what_was_prepared_of_them_take_turns() -> None:
    sets = {name: [name] for name in ("a", "b_prepared 64x48", "a_prepared", "b 64x48", "c")}
    assert [list(group) for group in groups(sets)] == [["a", "a_prepared"], ["b_prepared 64x48", "b 64x48"], ["c"]]


@pytest.mark.parametrize("peer", ["decord", "decord_whole"])
def test_a_file_that_decord_refuses_is_said(peer: str, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    (tmp_path / "v.mp4").write_bytes(b"no video")
    assert "v.mp4" in loaders.missing(peer, str(tmp_path / "v.mp4"))


def test_what_others_used_is_the_machine_without_us() -> None:
    clocks = system.Clock(wall=0, own=1, busy=2, read=0), system.Clock(wall=10, own=3, busy=9, read=0)
    assert others(*clocks) == 0.5
    assert others(clocks[0], clocks[1]._replace(own=9)) == 0, "ticks are coarse"


def test_a_batch_too_large_costs_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(name: str, batch: int, *_: object) -> dict[str, object]:
        if batch > 1:
            raise torch.OutOfMemoryError
        return {"network": name, "batch": batch}

    monkeypatch.setattr(train_step, "measure", measure)
    monkeypatch.setattr(train_step, "table", str)
    monkeypatch.setattr(train_step, "matrix_rate", lambda *_: 1e9)
    found = train_step.measure_all(
        train_step.Settings(networks=("vivit_b",), batch=("4", "1"), device="cpu", threads=1)
    )
    assert [row["batch"] for row in found["rows"]] == [1]


def test_clock_counts_the_work_of_this_process() -> None:
    before, end = system.Clock.now(), 0.0
    while end - before.own < 0.2:
        sum(range(100_000))
        end = system.own_seconds()
    after = system.Clock.now()
    assert after.own - before.own >= 0.2
    assert after.busy - before.busy >= 0.15


def test_every_row_is_the_row_before_and_one_change() -> None:
    ways = epoch_time.ways(epoch_time.Settings())
    for (name, way), (_, before) in zip(list(ways.items())[1:], ways.items(), strict=False):
        changed = {key for key, value in vars(way).items() if getattr(before, key) != value}
        assert changed == set(epoch_time.CHANGES[name][0]) and len(changed) == 1, name
    settings = epoch_time.Settings(batch=4, stride=32, workers=6)
    asked, said = epoch_time.ways(settings), epoch_time.changes(settings)
    assert (asked["prepared"].batch, asked["prepared"].stride, asked["interval_24"].stride) == (4, 32, 24)
    assert said["base"].endswith("16 clips a batch; 8 workers; 16 frames apart")
    assert said["dali_decode"].endswith("4 clips a batch; 6 workers; 32 frames apart")
    assert ";" not in epoch_time.changes(epoch_time.Settings())["dali_decode"]
    for way in ways.values():  # a turn is whole waves of batches, and enough of them
        assert epoch_time.timed(way, 100) % way.wave == 0 and epoch_time.timed(way, 100) * way.batch >= 100
    cores = len(os.sched_getaffinity(0))
    assert {way.cores for name, way in ways.items() if name != "synthetic"} == {max(1, cores - 1)}
    assert ways["synthetic"].cores == cores
    assert (ways["base"].batch, ways["base"].workers, ways["base"].stride) == (16, 8, 16)
    assert (ways["interval_24"].batch, ways["interval_24"].workers, ways["interval_24"].stride) == (8, 4, 24)


@pytest.mark.parametrize("cases", ["indices_first,trimmed", pytest.param("", marks=pytest.mark.slow)])
def test_the_epoch_time_table_runs(
    cases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "e.json"
    monkeypatch.chdir(tmp_path)
    try:
        words = ["--dry-run", f"out={out}", "device=cpu", "cache=own", *([f"cases={cases}"] if cases else [])]
        assert epoch_time.main(words) == 0
    finally:
        torch.set_num_threads(threads)
    (found,) = json.loads(out.read_text())["sets"]
    rows = {row["case"]: row for row in found["cases"]}
    assert list(rows) == (cases.split(",") if cases else list(epoch_time.CHANGES))
    assert all(row["clips_per_s"]["median"] > 0 for row in rows.values())
    assert rows["trimmed"]["pictures_per_clip"] <= rows["indices_first"]["pictures_per_clip"]
    if not cases:
        assert rows["synthetic"]["pictures_per_clip"] == 0 and rows["synthetic"]["of_ceiling"]["median"] == 1
        assert rows["base"]["pictures_per_clip"] == 200 and rows["base"]["to_base"]["median"] == 1
        assert rows["repeated_aug"]["pictures_per_clip"] * 1.5 < rows["prepared"]["pictures_per_clip"]
        assert rows["indices_first"]["pictures_per_clip"] < rows["dali_decode"]["pictures_per_clip"] < 200
    assert "of ceiling" in capsys.readouterr().out


def test_pictures_that_a_clip_costs(tmp_path: Path) -> None:
    """What PyAV decodes is what is counted; decord's seeking is never less."""
    path = tmp_path / "v.mp4"
    encode(path, render(0, 0, 0, 60, 64, 48), 30, codec="h264", gop=20, bframes=3)
    row = read_row(str(path))
    frames = np.array([5, 11, 45])

    def count(**way: object) -> int:
        return pictures_decoded(Way(**way), row, frames)  # type: ignore[arg-type]

    assert count() == 60 and count(loader="clipline") <= 49
    trimmed, whole = count(loader="clipline", trimmed=True), count(loader="decord")
    with Video(str(path)) as video:
        required = required_packets(video.frame_table, frames)[0]
        assert len(list(video.decode(video.packets(required)))) == trimmed < whole <= 13 + 9


def test_a_start_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.json"
    assert startup.main(["--dry-run", "counts=20,450", f"out={out}"]) == 0
    few, many = json.loads(out.read_text())["sets"]
    assert (few["files"], few["usable"], many["files"], many["usable"]) == (20, 20, 450, 450)
    assert many["index_mb"] > few["index_mb"] >= 0 and few["start_s"]["median"] > few["index_s"]["median"]
    assert "450 files" in capsys.readouterr().out
    assert startup.main(["sets=vp9_gop4,vp9_gop12"]) == 2
    assert "expected one set of one size" in capsys.readouterr().err


def test_the_index_of_a_file_is_timed_beside_another_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_index.main(["--dry-run", f"out={tmp_path}/i.json", f"cache={tmp_path}"]) == 0
    result = json.loads((tmp_path / "i.json").read_text())
    (found,) = result["sets"]
    assert found["ms_a_file"]["now"]["median"] > 0 and found["now_over_before"]["median"] > 0
    assert tables.index_rows(result)[0]["now / before"]
    assert "ratio" in capsys.readouterr().out
    assert bench_index.main(["--dry-run", f"before={tmp_path}", f"out={tmp_path}/n.json"]) == 2
    assert "expected a folder with a checkout" in capsys.readouterr().err
    assert not (tmp_path / "n.json").exists()
    checkout = tmp_path / "checkout/pipelines"
    checkout.mkdir(parents=True)
    (checkout / "index.py").write_text("def read_row(path): raise ValueError(f'{path}: cannot')")
    assert bench_index.main(["--dry-run", f"before={checkout.parent}", f"cache={tmp_path}"]) == 2
    assert "cannot" in capsys.readouterr().err


def test_the_driver_is_asked_how_busy_the_gpu_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nvml = SimpleNamespace(
        NVMLError=RuntimeError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=80),
        nvmlDeviceGetDecoderUtilization=lambda handle: [50, 1000],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    system.driver_library.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    with system.GpuUse(torch.device("cuda")) as use:
        time.sleep(0.3)
    assert use.shares() == {"gpu_busy": pytest.approx(0.8), "nvdec_busy": pytest.approx(0.5)} and len(use.seen) >= 2
    with system.GpuUse(torch.device("cpu")) as use:
        time.sleep(0.1)
    assert use.shares() == {}

    def missing(*_: object) -> None:
        raise RuntimeError("no libnvidia-ml.so.1")

    with monkeypatch.context() as only:
        only.setattr(nvml, "nvmlDeviceGetHandleByUUID", missing)
        with system.GpuUse(torch.device("cuda")) as use:
            time.sleep(0.1)
        assert use.shares() == {}, "the bench goes on"

    monkeypatch.setattr(nvml, "nvmlInit", missing)
    system.driver_library.cache_clear()
    with system.GpuUse(torch.device("cuda")) as use:
        pass
    assert use.shares() == {} and "no libnvidia-ml.so.1" in capsys.readouterr().out
    system.driver_library.cache_clear()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h264_bframes", {"codec": "h264", "gop": 250, "bframes": 3, "crf": 15}),
        ("vp9_gop4", {"codec": "vp9", "gop": 4, "bframes": 0, "crf": 18}),
        ("hevc_gop1", {"codec": "hevc", "gop": 1, "bframes": 0, "crf": 11}),
    ],
)
def test_sets_are_coded_as_they_are_called(name: str, expected: dict[str, object], tmp_path: Path) -> None:
    assert coding(name) == expected
    (path,) = Files(sets=(name,), sizes=("64x48",), files=1, length=24, cache=str(tmp_path)).find()[name]
    row = read_row(path)
    assert (row.codec, row.num_frames, row.width) == (expected["codec"], 24, 64)
    assert len(row.keyframes) == -(-24 // int(str(expected["gop"])))


def test_prepared_files_of_two_places_are_kept_apart(tmp_path: Path) -> None:
    words = {"sizes": ("64x48",), "files": 1, "length": 24, "cache": str(tmp_path)}
    found = Files(sets=("h264_bframes", "h264_bframes_prepared", "vp9_gop12_prepared"), **words).find()  # type: ignore[arg-type]
    first, second = found["h264_bframes_prepared"], found["vp9_gop12_prepared"]
    assert first != second and all(Path(p).exists() for p in (*first, *second))
    assert read_row(first[0]).num_frames == 24 and first != found["h264_bframes"]
