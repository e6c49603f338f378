"""The report of a test: its files add up, names are shown as they are, figures of many classes stay legible."""

from __future__ import annotations

import json

import pytest
import torch

from evaluation.report import write_report
from evaluation.scores import Scores, confusion_matrix
from pipelines.data.dataset import VideoEntry
from tests.helpers.runs import read_csv
from utils.plotting import draw_confusion

VIDEOS = [VideoEntry(f"{index}.mp4", index % 3) for index in range(8)]


def random_scores(num_videos: int = 8, num_classes: int = 3) -> Scores:
    """Return random scores of videos of which the last one failed."""
    logits = torch.randn(num_videos, num_classes, generator=torch.Generator().manual_seed(0))
    scored = torch.ones(num_videos, dtype=torch.bool)
    scored[-1] = False
    return Scores(
        probs=torch.softmax(logits, 1),
        label=torch.arange(num_videos) % num_classes,
        scored=scored,
        failed={num_videos - 1: "no such file"},
        padded=0,
        correct=torch.zeros(num_videos, 2, 2) > 0,
    )


@pytest.mark.figures
def test_files_of_a_report_add_up(tmp_path):
    scores = random_scores()
    report = write_report(tmp_path, scores, VIDEOS, ["a", "b", "c"], {"num_clips": 2, "num_crops": 3})
    matrix = confusion_matrix(scores, 3)
    assert matrix.sum() == 7 and matrix.diagonal().sum() == round(scores.topk(1) * 8)
    counts = [int(row["videos"]) for row in read_csv(tmp_path / "confusions.csv")]
    assert sum(counts) == int(matrix.sum() - matrix.diagonal().sum())
    assert counts == sorted(counts, reverse=True)
    per_class = [int(row["videos"]) for row in read_csv(tmp_path / "per_class.csv")]
    assert per_class == [3, 3, 2], "a video that failed counts for its class"
    summary = json.loads((tmp_path / "summary.json").read_text())
    low, high = summary["top1_interval"]
    assert low < summary["top1"] < high
    assert summary["failed"] == 1 and len(summary["by_num_clips"]) == 2
    assert "7.mp4: no such file" in report.text and "most confused: " in report.text
    assert (tmp_path / "confusion.png").stat().st_size > 5000


@pytest.mark.figures
def test_class_names_are_not_rendered_as_math(tmp_path):
    settings = {"num_clips": 1, "num_crops": 1}
    write_report(tmp_path, random_scores(), VIDEOS, ["a$x^$", "b $\\q$", "$"], settings)
    assert (tmp_path / "summary.json").exists()


def test_confusion_figure_of_many_classes_shows_the_most_confused():
    matrix = torch.diag(torch.full((400,), 50))
    matrix[17, 399], matrix[200, 17] = 30, 20
    axes = draw_confusion(matrix, [f"class {index}" for index in range(400)]).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 30 and {"class 17", "class 200", "class 399"} <= set(names)
    assert "the 30 most confused of 400 classes" in axes.get_title()
