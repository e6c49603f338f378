"""Tests of trained networks: the arithmetic of reports, going on after an interruption, comparing runs."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eval as eval_command
import train as train_command
from configs import loading
from evaluation import evaluate as evaluate_module
from evaluation.compare import compare, read_predictions
from evaluation.html_report import Mistake, write_page
from evaluation.partial import test_name as name_of_test
from evaluation.report import Report, write_report
from evaluation.scores import Scores, confusion, interval, mcnemar
from pipelines.decode.encoder import encode
from pipelines.loader import build_loader
from tests.helpers.runs import ROOT
from utils.distributed import World
from utils.plotting import draw_confusion


@pytest.fixture
def trained(arguments, tmp_path) -> Path:
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    return tmp_path / "a"


def predictions(folder: Path) -> list[dict]:
    return list(csv.DictReader(open(folder / "predictions.csv")))


def made_up(n: int = 8, classes: int = 3) -> Scores:
    probability = torch.softmax(torch.randn(n, classes, generator=torch.Generator().manual_seed(0)), 1)
    scored = torch.ones(n, dtype=torch.bool)
    scored[-1] = False
    return Scores(probability, torch.arange(n) % classes, scored, {n - 1: "no such file"}, 0, torch.zeros(n, 2, 2) > 0)


def test_intervals_of_wilson():
    assert interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4) and interval(0, 0) == (0, 1)
    low, high = interval(15000, 19796)
    assert high - low < 0.013


@given(st.integers(0, 60), st.integers(1, 60))
def test_an_interval_holds_its_share(hits, more):
    low, high = interval(hits, hits + more)
    assert 0 <= low <= hits / (hits + more) <= high <= 1


def test_mcnemars_p():
    assert mcnemar(1, 9) == pytest.approx(22 / 1024) and mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1 and mcnemar(0, 1) == 1 and mcnemar(0, 20) < 1e-5


def test_what_is_written_adds_up(tmp_path):
    scores = made_up()
    clips = [(f"{n}.mp4", n % 3) for n in range(8)]
    report = write_report(tmp_path, scores, clips, ["a", "b", "c"], {"views": "2x3"})
    matrix = confusion(scores, 3)
    assert matrix.sum() == 7 and matrix.diagonal().sum() == round(scores.topk(1) * 8)
    confused = list(csv.DictReader(open(tmp_path / "confusions.csv")))
    assert sum(int(row["videos"]) for row in confused) == int(matrix.sum() - matrix.diagonal().sum())
    assert [int(row["videos"]) for row in confused] == sorted((int(row["videos"]) for row in confused), reverse=True)
    per_class = list(csv.DictReader(open(tmp_path / "per_class.csv")))
    assert [int(row["videos"]) for row in per_class] == [3, 3, 2], "one that failed counts for its class"
    summary = json.loads((tmp_path / "summary.json").read_text())
    low, high = summary["top1_interval"]
    assert low < summary["top1"] < high and summary["failed"] == 1 and len(summary["by_clips"]) == 2
    assert "7.mp4: no such file" in report.text and "most confused: " in report.text
    assert (tmp_path / "confusion.png").stat().st_size > 5000


def test_names_are_no_mathematics(tmp_path):
    clips = [(f"{n}.mp4", n % 3) for n in range(8)]
    write_report(tmp_path, made_up(), clips, ["a$x^$", "b $\\q$", "$"], {"views": "1x1"})
    assert (tmp_path / "summary.json").exists()


def test_of_many_classes_the_confused_are_drawn():
    matrix = torch.diag(torch.full((400,), 50))
    matrix[17, 399], matrix[200, 17] = 30, 20
    axes = draw_confusion(matrix, [f"class {n}" for n in range(400)]).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 30 and {"class 17", "class 200", "class 399"} <= set(names)
    assert "the 30 most confused of 400 classes" in axes.get_title()


def test_comparing_runs(trained, tmp_path, capsys):
    assert eval_command.main([str(trained)]) == 0
    other = tmp_path / "b"
    shutil.copytree(trained / "eval", other / "eval")
    path = next(other.glob("eval/*/predictions.csv"))
    rows = predictions(path.parent)
    for row in rows[:6]:  # now right
        row["class1"] = row["label"]
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    before = sum(row["class1"] == row["label"] for row in predictions(next(trained.glob("eval/*"))))
    after = sum(row["class1"] == row["label"] for row in rows)
    capsys.readouterr()
    assert eval_command.main(["--compare", str(trained), str(other)]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert f"{100 * before / 13:.2f} %" in first and f"{100 * after / 13:.2f} %" in second
    assert second.split()[-3:] == [str(after - before), "0", f"{mcnemar(after - before, 0):.4f}"]
    assert "0.0000" not in compare([trained, trained]) and compare([trained, trained]).endswith("1.0000")
    for wrong, message in (([str(trained)], "two or more"), ([str(trained), str(tmp_path)], "no predictions.csv")):
        assert eval_command.main(["--compare", *wrong]) == 2
        assert message in capsys.readouterr().err
    again = path.read_text()
    path.write_text(again + again.splitlines()[1] + "\n")
    assert len(read_predictions(path.parent)) == 14, "a video that is there twice counts twice"
    path.write_text(again.replace("1.mp4", "one.mp4"))
    assert eval_command.main(["--compare", str(trained), str(other)]) == 2
    assert "other videos than" in capsys.readouterr().err


def test_an_interrupted_test_goes_on(trained, monkeypatch, capsys):
    assert eval_command.main([str(trained)]) == 0
    folder = trained / "eval" / "2x3"
    whole = (folder / "predictions.csv").read_bytes(), json.loads((folder / "summary.json").read_text())
    shutil.rmtree(folder)
    real, calls = evaluate_module.rearrange, []

    def interrupted(*values, **axes):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*values, **axes)

    monkeypatch.setattr(evaluate_module, "rearrange", interrupted)
    assert eval_command.main([str(trained)]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    (left,) = folder.iterdir()
    assert re.fullmatch(r"so_far_[0-9a-f]{8}_0_of_1\.pt", left.name)
    assert eval_command.main([str(trained)]) == 0
    assert len(calls) == 4 + 7 - 3, "three of seven batches were done, the fourth is done again"
    assert (folder / "predictions.csv").read_bytes() == whole[0]
    assert json.loads((folder / "summary.json").read_text()) == whole[1]
    assert not list(folder.glob("so_far*"))

    calls.clear()
    assert eval_command.main([str(trained)]) == 130
    os.utime(trained / "best" / "model.safetensors", (1, 1))
    assert eval_command.main([str(trained)]) == 0 and len(calls) == 4 + 7, "other weights: from the beginning"
    calls.clear()
    assert eval_command.main([str(trained)]) == 130
    next(folder.glob("so_far*")).write_bytes(b"half")
    assert eval_command.main([str(trained)]) == 0 and len(calls) == 4 + 7, "unreadable: from the beginning"

    lists = trained.parent / "data" / "list.txt"
    for change in (lambda lines: lines[::-1], lambda lines: [*lines, lines[0]], lambda lines: lines[2:]):
        calls.clear()
        assert eval_command.main([str(trained)]) == 130
        lists.write_text("\n".join(change(lists.read_text().splitlines())) + "\n")
        assert eval_command.main([str(trained)]) == 0 and len(calls) >= 4 + 6, "another list: from the beginning"
        found = predictions(folder)
        assert [row["label"] for row in found] == [line.split()[1] for line in lists.read_text().splitlines()]


@pytest.mark.slow
def test_results_do_not_depend_on_batch_or_ranks(trained):
    results = []
    for batch in (1, 4, 7):
        assert eval_command.main([str(trained), f"eval.batch={batch}"]) == 0
        results.append(predictions(trained / "eval" / "2x3"))
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "eval.py",
                    str(trained), "eval.batch=3"], cwd=ROOT, check=True, capture_output=True, timeout=200)  # fmt: skip
    results.append(predictions(trained / "eval" / "2x3"))
    assert all(result == results[0] for result in results[1:])


def test_logits_or_probabilities_are_averaged(trained, arguments):
    torch.manual_seed(0)
    table = torch.randn(13, 2, 3, 6)  # of each video, clip, crop

    class Known(torch.nn.Module):
        def forward(self, video):
            rows = video[:, 0, 0, 0, 0].long()
            return table.flatten(1, 2)[rows, torch.arange(len(rows)) % 6]

    for average in ("probability", "logits"):
        cfg = loading.load(None, [*arguments, f"eval.average={average}"])
        loader = build_loader(cfg, "test", [str(i) for i in range(6)], World(), torch.device("cpu"))
        real = loader.decoder.decode

        def numbered(step, real=real):
            decoded = real(step)
            row = decoded.numbers[:, 1].clamp_min(0)[:, None, None, None, None, None]
            return decoded._replace(video=row.expand(-1, 6, 3, 4, 2, 2).float())

        loader.decoder.decode = numbered  # type: ignore[method-assign]
        scores = evaluate_module.evaluate(Known(), loader, World(), average=average)
        views = table.softmax(-1) if average == "probability" else table
        mean = views.mean((1, 2))
        expected = mean if average == "probability" else mean.softmax(-1)
        assert torch.allclose(scores.probability, expected, atol=1e-6)
        first = views[:, 0].mean(1)
        right = torch.stack([first.argmax(-1) == scores.label, mean.argmax(-1) == scores.label], 1)
        assert torch.equal(scores.hits[..., 0], right)


@pytest.mark.parametrize("decoder", ["dali", "host"])
@pytest.mark.parametrize(("width", "height"), [(128, 64), (64, 128), (96, 96)])
def test_views_reach_every_border(tmp_path, arguments, decoder, width, height):
    """A red, green, blue and white bar along each border: the first crop holds one end, the last the other."""
    frames = np.full((30, height, width, 3), 90, np.uint8)
    bar = 8
    frames[:, :, :bar], frames[:, :, -bar:] = (255, 0, 0), (0, 0, 255)
    frames[:, :bar, bar:-bar], frames[:, -bar:, bar:-bar] = (0, 255, 0), (255, 255, 255)
    encode(tmp_path / "x.mp4", frames, Fraction(30), "vp9", 12)
    (tmp_path / "one.txt").write_text("x.mp4 0\n")
    words = [f"data.val={tmp_path}/one.txt", f"data.decoder={decoder}", "data.size=64", "eval.clips=1", "eval.batch=1",
             "data.mean=0,0,0", "data.std=1,1,1"]  # fmt: skip
    cfg = loading.load(None, [*arguments, *words])
    loader = build_loader(cfg, "test", ["a"], World(), torch.device("cpu"))
    first, _, last = (255 * next(iter(loader)).video[0, :, :, 0]).round()
    ends = {"left": (first[:, 32, 2], (255, 0, 0)), "right": (last[:, 32, -3], (0, 0, 255)),
            "top": (first[:, 2, 32], (0, 255, 0)), "bottom": (last[:, -3, 32], (255, 255, 255))}  # fmt: skip
    for name, (pixel, colour) in ends.items():
        assert (pixel - torch.tensor(colour)).abs().max() < 40, (name, pixel)


@pytest.mark.parametrize("show", ["attention", "rollout"])
def test_what_the_network_looks_at(trained, show):
    assert eval_command.main([str(trained), f"eval.show={show}"]) == 0
    picture = matplotlib.image.imread(trained / "eval" / "2x3" / "attention.png")[..., :3]
    assert picture.shape[0] > 8 * 60 and (picture.max(-1) - picture.min(-1)).mean() > 0.05, "eight rows, coloured"


class Page(HTMLParser):
    """What is open is closed in order; pictures are within."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else(trained, tmp_path):
    assert eval_command.main([str(trained)]) == 0
    path = trained / "eval" / "2x3" / "report.html"
    page = Page()
    page.feed(path.read_text())
    assert not page.open and "http" not in path.read_text()
    for source in page.images:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data)[:4] == b"\x89PNG"
    wrong = [row for row in predictions(path.parent) if row["class1"] != row["label"]]
    assert len(page.images) == 2 + min(len(wrong), 12) and "Most confident mistakes" in page.text
    surest = max(wrong, key=lambda row: float(row["score1"]))
    assert page.text.index(surest["video"]) == min(page.text.index(row["video"]) for row in wrong)
    summary = json.loads((path.parent / "summary.json").read_text())
    assert f"{100 * summary['top1']:.2f} %" in page.text and "2 clips x 3 crops" in page.text


def test_names_of_videos_and_classes_are_no_markup(tmp_path):
    summary = {"views": "1x1", "videos": 1, "scored": 1, "failed": 0, "top1": 0.0, "top1_interval": (0, 0.8),
               "top5": 1.0, "top5_interval": (0.2, 1),
               "by_clips": [{"clips": 1, "top1": 0.0, "top5": 1.0}]}  # fmt: skip
    evil = "<script>alert('x')</script>"
    report = Report("", summary, [(evil, 1, 0, 0.0)], [(evil, evil, 1, 1.0)])
    write_page(tmp_path / "p.html", evil, report, [], [Mistake(evil, evil, evil, 0.5, None)])
    page = Page()
    page.feed((tmp_path / "p.html").read_text())
    assert "<script" not in (tmp_path / "p.html").read_text() and page.text.count(evil) >= 6


# A browser is no package of Python's; that tags close and all is inline is held by the tests above, which never skip.
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_the_page_in_a_browser(trained, tmp_path):
    """A headless Chromium lays it out and complains of nothing."""
    assert eval_command.main([str(trained)]) == 0
    page = trained / "eval" / "2x3" / "report.html"
    flags = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --window-size=1200,2400".split()
    places = [f"--user-data-dir={tmp_path}/profile", f"--screenshot={tmp_path}/page.png", page.as_uri()]
    done = subprocess.run(["chromium", *flags, *places], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr[-2000:]
    picture = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert picture.std() > 0.05 and (picture[:300] < 0.5).any(), "something is drawn"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["eval.preset=mvit"], "mvit"),
        (["eval.preset=mvit", "eval.crops=3"], "5x3_short_side-1"),
        (["eval.clips=2", "eval.crops=1", "eval.place=centre", "eval.average=logits"], "2x1_centre_logits"),
        (["eval.clips=2", "eval.crops=1", "data.val=lists/other.txt"], "2x1_other"),
        (["eval.clips=2", "eval.crops=1", "data.stride=6", "data.mean=0.5,0.5,0.5"], "2x1_stride6_mean-0.5-0.5-0.5"),
        (["eval.clips=2", "eval.crops=1", "eval.short_side=256"], "2x1_short_side256"),
    ],
)
def test_names_of_tests(words, name, tmp_path):
    (tmp_path / "config.yaml").write_text("data: {val: lists/own.txt}\n")
    own = [] if any(word.startswith("data.val") for word in words) else ["data.val=lists/own.txt"]
    assert name_of_test(loading.load(None, [*own, *words]), tmp_path) == name
