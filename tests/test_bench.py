"""bench: it runs at toy size, what it writes has the promised shape, its arithmetic and its messages are right."""

import json
import os
from pathlib import Path

import pytest
import torch

from bench import bytes as bench_bytes
from bench import decode, machine, step, views
from bench.common import spread
from bench.decode import CASES, PEERS, Settings, ratios
from configs.words import parse


@pytest.mark.slow
def test_toy_run_writes_the_promised_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "toy.json"
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        assert decode.main(["--dry-run", f"out={out}"]) == 0
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert {"bench", "date", "environment", "peers", "settings", "load_before", "load_after", "sets"} <= set(result)
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
            assert set(figures) == rates | {"memory_mib"}
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
    assert views.main([*toy, f"cache={tmp_path}", f"out={tmp_path}/v.json"]) == 0
    (found,) = json.loads((tmp_path / "v.json").read_text())["sets"]
    assert found["times_faster"]["views"]["median"] > 1 and set(found["seconds_a_video"]) == {"one", "clips", "views"}
    assert "views / one" in capsys.readouterr().out
    for wrong in ("crops=2", "sets=vp8", "clips=0"):
        assert views.main([wrong]) == 2


@pytest.mark.slow
def test_steps_of_ours_and_of_the_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(["--dry-run", "cases=ours,ours_checkpoint,peer", f"out={tmp_path}/s.json", "device=cpu"]) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["timesformer_b", "vivit_b", "videomae_b"]
    for row in rows:
        ours, again, peer = row["cases"].values()
        assert abs(ours["parameters"] / peer["parameters"] - 1) < 0.001, "the same network"
        assert again["held_mib"] < ours["held_mib"] and set(row["times_faster"]) >= {"ours / peer"}
    assert "clips/s" in capsys.readouterr().out
    for wrong in ("networks=vit", "batch=0", "amp=fp8", "repeats=0", "networks=mvit_v2_s"):
        assert step.main([wrong, "frames=4", "size=32", "cases=peer", "device=cpu"]) == 2, wrong


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
    ],
)
def test_a_wrong_key_is_one_line_and_exit_2(argument: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        assert decode.main([argument]) == 2
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
    assert spread([1, 2, 3, 4, 5]) == {"median": 3, "p25": 2, "p75": 4, "all": [1, 2, 3, 4, 5]}


def test_clock_counts_the_work_of_this_process() -> None:
    before, end = machine.Clock.now(), 0.0
    while end - before.own < 0.2:
        sum(range(100_000))
        end = machine.own_seconds()
    after = machine.Clock.now()
    assert after.own - before.own >= 0.2
    assert after.busy - before.busy >= 0.15
