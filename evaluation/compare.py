"""Compare runs over the same videos."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evaluation.scores import interval, mcnemar


def read_predictions(folder: Path) -> dict[tuple[str, int], tuple[str, bool]]:
    """(video, its how many-th time) -> (label, whether it was the best), of the test that a run or eval folder holds.

    A run folder with several tests is taken at its newest. Raises ValueError if there is none.
    """
    found = sorted(folder.glob("eval/*/predictions.csv"), key=lambda path: path.stat().st_mtime)
    path = folder / "predictions.csv" if (folder / "predictions.csv").exists() else found[-1] if found else None
    if path is None:
        raise ValueError(f"{folder}: no predictions.csv in it or in its eval/*/; run eval.py first")
    times: Counter[str] = Counter()  # a list may hold a video more than once
    test = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            times[row["video"]] += 1
            test[row["video"], times[row["video"]]] = row["label"], row.get("class1") == row["label"]
    return test


def compare(folders: Sequence[Path]) -> str:
    """A table of tests over the same videos, the first beside each other one: what only one of them gets right, and
    McNemar's exact p of so uneven a split if both were equally good."""
    tests = [read_predictions(folder) for folder in folders]
    for folder, test in zip(folders[1:], tests[1:], strict=True):
        if test.keys() != tests[0].keys():
            both = len(test.keys() & tests[0].keys())
            raise ValueError(f"{folder}: other videos than {folders[0]} ({both} of {len(test)} are in both)")
        if any(test[video][0] != tests[0][video][0] for video in test):
            raise ValueError(f"{folder}: other labels than {folders[0]}")
    width = max(len(str(folder)) for folder in folders)
    lines = [f"{'':{width}}  top-1             95 %    only here  only first  McNemar's p"]
    for folder, test in zip(folders, tests, strict=True):
        hits, n = sum(right for _, right in test.values()), len(test)
        low, high = (100 * bound for bound in interval(hits, n))
        line = f"{folder!s:{width}}  {100 * hits / n:5.2f} %  {low:5.1f} to {high:5.1f}"
        if test is not tests[0]:
            here = sum(test[video][1] and not tests[0][video][1] for video in test)
            first = sum(tests[0][video][1] and not test[video][1] for video in test)
            line += f"  {here:9}  {first:10}  {mcnemar(here, first):11.4f}"
        lines.append(line)
    return "\n".join(lines)
