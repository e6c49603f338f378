"""bench.report: what the README says is what the result files hold; machines are not mixed up."""

import copy
import json
from pathlib import Path

import matplotlib.image
import pytest

from bench.harness.runner import spread
from bench.report import charts, compare, tables

RESULTS = sorted(tables.RESULTS.glob("*.json"))


def made_up(rate: float = 50.0, cpu: str = "A", gpu: str | None = None) -> dict:
    packages = {"torch": "2", "nvidia-dali-cuda120": "2", "av": "1"}
    cases = {
        "clipline": {"clips_per_s": spread([rate, rate + 1, rate + 2]), "memory_mib": 7},
        "decord": {"clips_per_s": spread([20.0, 25.0, 30.0]), "memory_mib": 7},
        "torchcodec": {"clips_per_s": spread([10.0, 10.0, 10.0]), "memory_mib": 8},
        "torchcodec_approx": {"clips_per_s": spread([31.0, 31.0, 31.0]), "memory_mib": 7},
    }
    sets = [{"name": "h264_bframes_prepared", "spec": "16x4", "workers": 2, "decoder": "host", "cases": cases,
             "files": {"mean_kbit_per_s": 412.3},
             "ratios": {"best_peer": spread([rate / 31, (rate + 1) / 31, (rate + 2) / 31]),
                        "best_peer_before": spread([4.0, 4.1, 4.2])}}]  # fmt: skip
    return {"bench": "decode", "date": "2026-01-02 03:04:05 UTC", "sets": sets, "peers": {"decord": "0.6"},
            "environment": {"cpu": cpu, "cores": 2, "gpu": gpu, "commit": "abc", "packages": packages},
            "settings": {"repeats": 3, "clips": 8}, "cores_used_by_others": 0.25}  # fmt: skip


def write(folder: Path, **results: dict) -> None:
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result))


def test_the_readme_says_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out
    assert "<!-- table: " in (tables.RESULTS.parent.parent / "README.md").read_text()


def test_a_table_is_made_of_its_file(tmp_path: Path) -> None:
    write(tmp_path, a=made_up())
    page = "before\n<!-- table: a.json -->\nold\n<!-- end -->\nafter\n"
    new = tables.rewritten(page, tmp_path)
    assert new == tables.rewritten(new, tmp_path), "again, nothing changes"
    assert new.startswith("before\n<!-- table: a.json -->\n| files |") and new.endswith("<!-- end -->\nafter\n")
    figures = "51.0 | 25.0 | 31.0 | 1.65 (1.63-1.66) | 4.10 (4.05-4.15) | 7, 7, 7 | 412"
    assert f"| H.264, B-frames, GOP 250, prepared | 16x4 | {figures} |" in new
    assert "`bench/results/a.json` (0.25 cores used by others)" in new
    assert "medians of 3 turns" in new and "2 cores of A" in new and "commit abc" in new and "decord 0.6" in new
    assert "old" not in new and " on |" not in new


def test_machines_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, a=made_up(), b=made_up(90, gpu="H200"), c=made_up(70, cpu="C"))
    table = tables.markdown(["a.json", "b.json", "c.json"], tmp_path)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == [
        "2 cores of A", "H200, 2 cores of A", "2 cores of C"]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "message"),
    [(["no.json"], "no.json: not readable"), (["a.json", "s.json"], "of one bench"), (["x.json"], "of one bench")],
)
def test_what_makes_no_table_is_said(names: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path, a=made_up(), s=made_up() | {"bench": "step"}, x={})
    with pytest.raises(ValueError, match=message):
        tables.markdown(names, tmp_path)
    with pytest.raises(ValueError, match="has no <!-- end -->"):
        tables.rewritten("<!-- table: a.json -->\n| a |\n", tmp_path)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_says_where_it_is_from(path: Path) -> None:
    result = json.loads(path.read_text())
    if result["bench"] in tables.TABLES:
        assert {"date", "environment", "settings"} <= result.keys()
        assert tables.markdown([path.name]).count("\n|") >= 2


def test_pictures(tmp_path: Path) -> None:
    write(tmp_path, bars=made_up(), text={"bench": "demo"})
    gops = made_up()
    gops["sets"] = [copy.deepcopy(gops["sets"][0]) | {"name": f"h264_gop{n}"} for n in (250, 1, 12)]
    write(tmp_path, gops=gops)
    assert [path.name for path in charts.draw_all(tmp_path)] == ["bars.png", "gops.png"]
    for name in ("bars", "gops"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert charts.draw_decode(gops).axes[0].get_xscale() == "log" and len(charts.draw_decode(made_up()).axes[0].patches)
    (line, *_) = charts.draw_decode(gops).axes[0].lines
    assert line.get_xdata().tolist() == [1, 12, 250]


def test_comparing_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, a=made_up(), b=made_up(100, cpu="B"), c=made_up() | {"bench": "step"}, d={"bench": "decode"})
    files = {name: str(tmp_path / f"{name}.json") for name in "abcd"}
    assert compare.main([files["a"], files["b"]]) == 0
    shown = capsys.readouterr().out
    assert "differs: environment.cpu: A -> B" in shown
    (ours,) = [line for line in shown.splitlines() if "clipline/clips_per_s" in line]
    assert ours.split()[-2].startswith("1.980") and not ours.endswith("=")
    (theirs,) = [line for line in shown.splitlines() if "decord/clips_per_s" in line]
    assert theirs.endswith("=") and "1.000" in theirs
    assert compare.main([files["a"], files["b"], "least=0.1"]) == 0
    assert "decord/clips_per_s" not in capsys.readouterr().out
    for words, message in (
        ([files["a"], files["c"]], "expected a result of bench.loading"),
        ([files["a"], files["d"]], "no figure in common"),
        ([files["a"], str(tmp_path / "e.json")], "e.json: not readable"),
        ([files["a"]], "expected BEFORE.json AFTER.json"),
        ([files["a"], files["b"], "most=1"], "expected one of least"),
    ):
        assert compare.main(words) == 2
        assert message in capsys.readouterr().err


def test_noise_is_called_noise() -> None:
    before = spread([9.0, 10.0, 11.0])
    _, low, high = compare.ratio(before, spread([10.0, 10.4, 11.0]))
    assert low <= 1 <= high
    _, low, high = compare.ratio(before, spread([19.0, 20.0, 21.0]))
    assert low > 1
    assert compare.ratio(spread([0.0]), before)[0] == float("inf")
    assert compare.ratio(spread([0.0]), spread([0.0])) == (1.0, 1.0, 1.0)
