"""Compare tests of several runs over the same videos, or average tests of several splits or seeds."""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.multi_label import SEPARATOR
from evaluation.scores import mcnemar, wilson_interval

VideoKey = tuple[str, int]  # path, and which occurrence of it: a list may have a video more than once


class Outcome(NamedTuple):
    """The label of a video, and whether it was predicted."""

    label: str
    correct: bool


def read_predictions(folder: Path) -> dict[VideoKey, Outcome]:
    """Read predictions.csv of the test in a run folder or an eval folder; of several tests in a run the newest.

    Raises ValueError if there is none.
    """
    test = newest_test(folder)
    path = test / "predictions.csv"
    summary = test / "summary.json"
    several = summary.exists() and "map" in json.loads(summary.read_text())
    occurrences: Counter[str] = Counter()
    outcomes = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            occurrences[row["video"]] += 1
            labels = row["label"].split(SEPARATOR) if several else [row["label"]]  # of several any one counts
            correct = row.get("class1") in labels
            outcomes[row["video"], occurrences[row["video"]]] = Outcome(row["label"], correct)
    return outcomes


def newest_test(folder: Path) -> Path:
    """Return the newest test in a run folder, or the folder itself if it is a test. Raises ValueError for neither."""
    if (folder / "predictions.csv").exists():
        return folder
    tests = sorted(folder.glob("eval/*/predictions.csv"), key=lambda path: path.stat().st_mtime)
    if not tests:
        raise ValueError(f"{folder}: no predictions.csv in it or in its eval/*/: run eval.py first")
    return tests[-1].parent


def average_runs(folders: Sequence[Path]) -> str:
    """Return a table of the accuracies of tests, their mean and standard deviation: of several splits or seeds."""
    tests = [newest_test(folder) for folder in folders]
    width = max(len(str(test)) for test in tests)
    lines = [f"{'':{width}}   top-1    top-5  videos"]
    summaries = [json.loads((test / "summary.json").read_text()) for test in tests]
    for test, summary in zip(tests, summaries, strict=True):
        top1, top5 = (f"{100 * summary[key]:6.2f} %" for key in ("top1", "top5"))
        lines.append(f"{test!s:{width}} {top1} {top5}  {summary['videos']:6}")
    for name, statistic in (("mean", statistics.mean), ("standard deviation", statistics.stdev)):
        top1, top5 = (f"{100 * statistic(s[key] for s in summaries):6.2f} %" for key in ("top1", "top5"))
        lines.append(f"{name:{width}} {top1} {top5}")
    return "\n".join(lines)


def compare_runs(folders: Sequence[Path]) -> str:
    """Return a table of tests over the same videos: accuracy, and each test beside the first one.

    "only here" and "only first" count the videos that one of the two alone gets right; McNemar's exact p is the chance
    of so uneven a split if both were equally good. Raises ValueError for tests of other videos or labels.
    """
    tests = [read_predictions(folder) for folder in folders]
    for folder, test in zip(folders[1:], tests[1:], strict=True):
        _check_same_videos(folders[0], tests[0], folder, test)
    width = max(len(str(folder)) for folder in folders)
    lines = [f"{'':{width}}  top-1             95 %    only here  only first  McNemar's p"]
    for folder, test in zip(folders, tests, strict=True):
        correct, n = sum(outcome.correct for outcome in test.values()), len(test)
        low, high = (100 * bound for bound in wilson_interval(correct, n))
        line = f"{folder!s:{width}}  {100 * correct / n:5.2f} %  {low:5.1f} to {high:5.1f}"
        if test is not tests[0]:
            only_here = sum(test[video].correct and not tests[0][video].correct for video in test)
            only_first = sum(tests[0][video].correct and not test[video].correct for video in test)
            line += f"  {only_here:9}  {only_first:10}  {mcnemar(only_here, only_first):11.4f}"
        lines.append(line)
    return "\n".join(lines)


def _check_same_videos(
    first_folder: Path, first: Mapping[VideoKey, Outcome], folder: Path, test: Mapping[VideoKey, Outcome]
) -> None:
    if test.keys() != first.keys():
        both = len(test.keys() & first.keys())
        raise ValueError(f"{folder}: other videos than {first_folder} ({both} of {len(test)} are in both)")
    if any(test[video].label != first[video].label for video in test):
        raise ValueError(f"{folder}: other labels than {first_folder}")
