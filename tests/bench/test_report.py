"""Test bench.report: the pages show what the result files contain, and machines are told apart."""

import copy
import json
from pathlib import Path

import matplotlib.image
import pytest

from bench.harness.result_file import format_result, is_summary, summarize, write_result
from bench.report import __main__ as report_command
from bench.report import charts, compare, rows, tables
from bench.report.tables import TableSpec, make_table, parse_spec
from tests.helpers import ROOT

RESULTS = sorted(tables.RESULTS.glob("*.json"))


def made_up(rate: float = 50.0, cpu: str = "A", gpu: str | None = None) -> dict:
    packages = {"torch": "2", "nvidia-dali-cuda120": "2", "av": "1"}
    cases = {
        "clipline": {"clips_per_s": summarize([rate, rate + 1, rate + 2]), "memory_mib": 7},
        "decord": {"clips_per_s": summarize([20.0, 25.0, 30.0]), "memory_mib": 7},
        "torchcodec": {"clips_per_s": summarize([10.0, 10.0, 10.0]), "memory_mib": 8},
        "torchcodec_approx": {"clips_per_s": summarize([31.0, 31.0, 31.0]), "memory_mib": 7},
    }
    sets = [
        {
            "name": "h264_bframes_prepared",
            "spec": "16x4",
            "num_workers": 2,
            "decoder": "pyav",
            "cases": cases,
            "files": {"mean_kbit_per_s": 412.3},
            "speedups": {
                "best_baseline": summarize([rate / 31, (rate + 1) / 31, (rate + 2) / 31]),
                "best_baseline_unprepared": summarize([4.0, 4.1, 4.2]),
            },
        }
    ]
    return {
        "bench": "loading",
        "date": "2026-01-02 03:04:05 UTC",
        "sets": sets,
        "packages": {"decord": "0.6"},
        "environment": {"cpu": cpu, "cores": 2, "gpu": gpu, "commit": "abc", "packages": packages},
        "settings": {"rounds": 3, "clips_per_round": 8},
        "cores_used_by_others": 0.25,
    }


def write(folder: Path, **results: dict) -> None:
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result))


@pytest.mark.parametrize("page", report_command.PAGES, ids=lambda page: page.name)
def test_page_equals_the_results(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_command.main([str(page), "--check"]) == 0, capsys.readouterr()
    assert "<!-- table: " in page.read_text()


def test_pages_are_readme_and_benchmarks() -> None:
    assert report_command.PAGES == (ROOT / "README.md", ROOT / "docs/benchmarks.md")


def test_check_reports_a_stale_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    results = [path for path in RESULTS if json.loads(path.read_text())["bench"] in rows.ROWS]
    page.write_text(f"<!-- table: {results[0].name} -->\n| old |\n<!-- end -->\n")
    before = page.read_text()
    assert report_command.main([str(page), "--check"]) == 1
    assert "differs from the results" in capsys.readouterr().out and page.read_text() == before
    assert report_command.main([str(tmp_path / "page.txt")]) == 2
    assert "page.txt: expected a Markdown file" in capsys.readouterr().err


def test_update_tables_replaces_only_the_table(tmp_path: Path) -> None:
    write(tmp_path, a=made_up())
    page = "before\n<!-- table: a.json -->\nold\n<!-- end -->\nafter\n"
    new = report_command.update_tables(page, tmp_path)
    assert new == report_command.update_tables(new, tmp_path), "a second update changes nothing"
    assert new.startswith("before\n<!-- table: a.json -->\n| files |") and new.endswith("<!-- end -->\nafter\n")
    figures = "51.0 | 25.0 | 31.0 | 1.65 (1.63-1.66) | 4.10 (4.05-4.15) | 7, 7, 7 | 412"
    assert f"| H.264, B-frames, GOP 250, prepared | 16x4 | {figures} |" in new
    assert "`bench/results/a.json` (0.25 cores used by other processes)" in new
    assert "medians of 3 rounds" in new and "2 cores of A" in new and "commit abc" in new and "decord 0.6" in new
    assert "old" not in new and " machine |" not in new


def test_marker_selects_rows_and_columns(tmp_path: Path) -> None:
    result = made_up()
    result["sets"] = [copy.deepcopy(result["sets"][0]) | {"name": name} for name in ("vp9_gop4", "vp9_gop12", "mine")]
    write(tmp_path, a=result)
    page = "<!-- table: a.json | rows: mine; VP9, GOP 4, 16x4 | columns: decord, clips/s; files -->\n<!-- end -->"
    lines = report_command.update_tables(page, tmp_path).splitlines()
    assert lines[1:5] == ["| decord, clips/s | files |", "|---|---|", "| 25.0 | mine |", "| 25.0 | VP9, GOP 4 |"]
    for text, message in (
        ("a.json | rows: VP8", "rows: VP8: expected one of VP9, GOP 4; VP9, GOP 12; mine"),
        ("a.json | columns: fps", "columns: fps: expected one of files; clip"),
        ("a.json | heads: files", "heads: files: expected rows: A; B or columns: A; B"),
    ):
        with pytest.raises(ValueError, match=message):
            report_command.update_tables(f"<!-- table: {text} -->\n<!-- end -->", tmp_path)


def test_make_table_names_the_machines_if_they_differ(tmp_path: Path) -> None:
    write(tmp_path, a=made_up(), b=made_up(90, gpu="H200"), c=made_up(70, cpu="C"))
    table = make_table(TableSpec(("a.json", "b.json", "c.json")), tmp_path)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == [
        "2 cores of A",
        "H200, 2 cores of A",
        "2 cores of C",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["no.json"], "no.json: not readable"), (["a.json", "s.json"], "of one of"), (["x.json"], "of one of")],
)
def test_make_table_refuses_other_files(names: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path, a=made_up(), s=made_up() | {"bench": "train_step"}, x={})
    with pytest.raises(ValueError, match=message):
        make_table(TableSpec(tuple(names)), tmp_path)
    with pytest.raises(ValueError, match="has no <!-- end -->"):
        report_command.update_tables("<!-- table: a.json -->\n| a |\n", tmp_path)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_result_makes_a_table(path: Path) -> None:
    result = json.loads(path.read_text())
    if result["bench"] in rows.ROWS:
        assert path.stem.startswith(result["bench"]), "results are named after the module"
        assert {"date", "environment", "settings"} <= result.keys()
        assert make_table(parse_spec(path.name)).count("\n|") >= 2


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_result_is_in_the_compact_format(path: Path) -> None:
    text = path.read_text()
    assert text == format_result(json.loads(text)) + "\n"


def test_format_result_has_a_summary_per_line(tmp_path: Path) -> None:
    result = {"cases": {f"case_{n}": {"clips_per_s": summarize(range(200)), "n": n} for n in range(3)}, "empty": {}}
    write_result(tmp_path / "r.json", result)
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == result
    summaries = [line for line in text.splitlines() if '"median"' in line]
    assert len(summaries) == 3 and all(line.count("]") == line.count("[") == 1 for line in summaries)
    assert text.count("\n") == 3 * 4 + 5
    assert is_summary(summarize([1.0])) and not is_summary(result)


@pytest.mark.figures
def test_draw_all_chooses_bars_or_lines(tmp_path: Path) -> None:
    write(tmp_path, bars=made_up(), text={"bench": "demo"})
    gops = made_up()
    gops["sets"] = [copy.deepcopy(gops["sets"][0]) | {"name": f"h264_gop{n}"} for n in (250, 1, 12)]
    write(tmp_path, gops=gops)
    assert [path.name for path in charts.draw_all(tmp_path)] == ["bars.png", "gops.png"]
    for name in ("bars", "gops"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3].std() > 0.05
    over_gop, bars = charts.draw_loading(gops).axes[0], charts.draw_loading(made_up()).axes[0]
    assert over_gop.get_xscale() == "log" and len(bars.patches)
    (line, *_) = over_gop.lines
    assert line.get_xdata().tolist() == [1, 12, 250]


def test_compare_lists_ratios_and_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_bench, empty = made_up() | {"bench": "train_step"}, {"bench": "loading"}
    write(tmp_path, a=made_up(), b=made_up(100, cpu="B"), c=other_bench, d=empty)
    files = {name: str(tmp_path / f"{name}.json") for name in "abcd"}
    assert compare.main([files["a"], files["b"]]) == 0
    output = capsys.readouterr().out
    assert "differs: environment.cpu: A -> B" in output
    (clipline,) = [line for line in output.splitlines() if "clipline/clips_per_s" in line]
    assert clipline.split()[-2].startswith("1.980") and not clipline.endswith("=")
    (decord,) = [line for line in output.splitlines() if "decord/clips_per_s" in line]
    assert decord.endswith("=") and "1.000" in decord
    assert compare.main([files["a"], files["b"], "min_change=0.1"]) == 0
    assert "decord/clips_per_s" not in capsys.readouterr().out
    for arguments, message in (
        ([files["a"], files["c"]], "expected a result of bench.loading"),
        ([files["a"], files["d"]], "no figure in common"),
        ([files["a"], str(tmp_path / "e.json")], "e.json: not readable"),
        ([files["a"]], "expected BEFORE.json AFTER.json"),
        ([files["a"], files["b"], "most=1"], "expected one of min_change"),
    ):
        assert compare.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_ratio_includes_1_for_noise() -> None:
    before = summarize([9.0, 10.0, 11.0])
    _, low, high = compare.ratio(before, summarize([10.0, 10.4, 11.0]))
    assert low <= 1 <= high
    _, low, high = compare.ratio(before, summarize([19.0, 20.0, 21.0]))
    assert low > 1
    assert compare.ratio(summarize([0.0]), before)[0] == float("inf")
    assert compare.ratio(summarize([0.0]), summarize([0.0])) == (1.0, 1.0, 1.0)
