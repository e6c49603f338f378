"""The HTML page of a test: well-formed, complete in itself, and safe for any name."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from evaluation.html_report import Misclassification, write_html_report
from evaluation.report import ClassResult, Confusion, Report
from tests.helpers.runs import evaluate, read_csv


class Page(HTMLParser):
    """Parse a page: its images and its text. Tags must be closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_needs_no_other_file_and_lists_the_most_confident_errors_first(run_dir):
    path = evaluate(run_dir) / "report.html"
    page = Page(path.read_text())
    assert not page.open and "http" not in path.read_text()
    for source in page.images:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data)[:4] == b"\x89PNG"
    errors = [row for row in read_csv(path.parent / "predictions.csv") if row["class1"] != row["label"]]
    assert len(page.images) == 2 + min(len(errors), 12) and "Most confident errors" in page.text
    first = max(errors, key=lambda row: float(row["score1"]))
    assert page.text.index(first["video"]) == min(page.text.index(row["video"]) for row in errors)
    summary = json.loads((path.parent / "summary.json").read_text())
    assert f"{100 * summary['top1']:.2f} %" in page.text and "2 clips x 3 crops" in page.text


def test_names_of_videos_and_classes_are_escaped(tmp_path):
    summary = {
        "num_clips": 1,
        "num_crops": 1,
        "videos": 1,
        "scored": 1,
        "failed": 0,
        "top1": 0.0,
        "top1_interval": (0, 0.8),
        "top5": 1.0,
        "top5_interval": (0.2, 1),
        "macro_top1": 0.0,
        "groups": [],
        "by_num_clips": [{"num_clips": 1, "top1": 0.0, "top5": 1.0}],
    }
    name = "<script>alert('x')</script>"
    report = Report(
        text="",
        summary=summary,
        per_class=[ClassResult(name, videos=1, correct=0, top1=0.0)],
        confusions=[Confusion(label=name, predicted=name, videos=1, fraction=1.0)],
        figure=("Confusion", Figure()),
    )
    errors = [Misclassification(video=name, label=name, predicted=name, prob=0.5, frames=None)]
    write_html_report(tmp_path / "page.html", name, report, [], errors)
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and Page(text).text.count(name) >= 6


@pytest.mark.figures
# A browser is no Python package; the tests above, which never skip, check that tags close and that all is inline.
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_page_is_drawn_by_a_browser_without_complaint(run_dir, tmp_path):
    page = evaluate(run_dir) / "report.html"
    flags = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --window-size=1200,2400".split()
    paths = [f"--user-data-dir={tmp_path}/profile", f"--screenshot={tmp_path}/page.png", page.as_uri()]
    done = subprocess.run(["chromium", *flags, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr[-2000:]
    image = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert image.std() > 0.05 and (image[:300] < 0.5).any(), "something must be drawn"
