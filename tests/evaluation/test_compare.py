"""Comparing tests of the same videos."""

from __future__ import annotations

import csv
import json
import shutil

import eval as eval_command
from evaluation.compare import average_runs, compare_runs, read_predictions
from evaluation.scores import mcnemar
from tests.helpers.runs import evaluate, read_csv


def num_correct(rows: list[dict[str, str]]) -> int:
    return sum(row["class1"] == row["label"] for row in rows)


def test_comparison_counts_what_only_one_run_gets_right(run_dir, tmp_path, capsys):
    test_dir = evaluate(run_dir)
    other_dir = tmp_path / "b"
    shutil.copytree(run_dir / "eval", other_dir / "eval")
    path = next(other_dir.glob("eval/*/predictions.csv"))
    rows = read_csv(path)
    for row in rows[:6]:  # the other run gets these right
        row["class1"] = row["label"]
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    correct, other_correct = num_correct(read_csv(test_dir / "predictions.csv")), num_correct(rows)
    capsys.readouterr()
    assert eval_command.main(["--compare", str(run_dir), str(other_dir)]) == 0
    line, other_line = capsys.readouterr().out.splitlines()[1:]
    assert f"{100 * correct / 13:.2f} %" in line and f"{100 * other_correct / 13:.2f} %" in other_line
    only_other = other_correct - correct
    assert other_line.split()[-3:] == [str(only_other), "0", f"{mcnemar(only_other, 0):.4f}"]
    assert "0.0000" not in compare_runs([run_dir, run_dir]) and compare_runs([run_dir, run_dir]).endswith("1.0000")

    content = path.read_text()
    path.write_text(content + content.splitlines()[1] + "\n")
    assert len(read_predictions(path.parent)) == 14, "a video that is listed twice counts twice"
    path.write_text(content.replace("1.mp4", "one.mp4"))
    assert eval_command.main(["--compare", str(run_dir), str(other_dir)]) == 2
    assert "other videos than" in capsys.readouterr().err


def test_comparison_needs_two_tests(run_dir, tmp_path, capsys):
    evaluate(run_dir)
    for arguments, message in (
        ([str(run_dir)], "two or more"),
        ([str(run_dir), str(tmp_path)], "no predictions.csv"),
    ):
        assert eval_command.main(["--compare", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_average_is_that_of_the_newest_tests(run_dir, tmp_path, capsys):
    evaluate(run_dir)
    for name, top1 in (("b", 0.5), ("c", 1.0)):
        folder = tmp_path / name / "eval" / "2x3"
        folder.mkdir(parents=True)
        (folder / "predictions.csv").write_text("")
        (folder / "summary.json").write_text(json.dumps({"top1": top1, "top5": 1.0, "videos": 7}))
    capsys.readouterr()
    assert eval_command.main(["--average", str(tmp_path / "b"), str(tmp_path / "c")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-4] for line in lines[3:]] == ["75.00", "35.36"] and "50.00 % 100.00 %       7" in lines[1]
    assert "13" in average_runs([run_dir, tmp_path / "b"]).splitlines()[1]
    assert eval_command.main(["--average", str(run_dir)]) == 2
    assert "--average: expected two or more run folders" in capsys.readouterr().err
