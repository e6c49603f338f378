"""Average precision and F1 against scikit-learn; the files of a test with several labels; how views are combined."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from evaluation.compare import compare_runs
from evaluation.evaluate import ViewScorer, is_correct
from evaluation.html_report import write_html_report
from evaluation.multi_label import average_precision, rate_classes, summarize_labels
from evaluation.report import write_report
from evaluation.scores import Scores
from pipelines.data.dataset import VideoEntry
from tests.helpers.runs import read_csv

CLASSES = [f"class {index}" for index in range(6)]
SETTINGS = {"num_clips": 2, "num_crops": 3}


def random_scores(n: int = 40, seed: int = 0, ties: bool = False) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(n, 6, generator=generator) < 0.3).float()
    label[:, 5] = 0  # a class that no video has
    label[3] = 0  # a video without a label
    probs = (torch.rand(n, 6, generator=generator) + 0.5 * label) / 1.5
    probs = (probs * 4).round() / 4 if ties else probs
    scored = torch.ones(n, dtype=torch.bool)
    scored[7], probs[7] = False, 0
    correct = torch.zeros(n, 2, 2, dtype=torch.bool)
    return Scores(probs, label, scored, failed={7: "no such file"}, padded=0, correct=correct)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_those_of_scikit_learn(seed, ties):
    scores = random_scores(seed=seed, ties=ties)
    target, probs = scores.label.numpy(), scores.probs.double().numpy()
    results = rate_classes(scores, CLASSES)
    assert [result.name for result in results] == CLASSES[:5]
    expected = average_precision_score(target[:, :5], probs[:, :5], average=None)
    assert [result.ap for result in results] == pytest.approx(expected.tolist(), abs=1e-9)
    summary = summarize_labels(scores, results)
    assert summary["map"] == pytest.approx(average_precision_score(target[:, :5], probs[:, :5], average="macro"))
    predicted = probs > 0.5
    precision, recall, f1, _ = precision_recall_fscore_support(target[:, :5], predicted[:, :5], zero_division=0)
    for values, name in ((precision, "precision"), (recall, "recall"), (f1, "f1")):
        assert [getattr(result, name) for result in results] == pytest.approx(values.tolist(), abs=1e-9)
    assert summary["macro_f1"] == pytest.approx(f1.mean())
    assert summary["micro_f1"] == pytest.approx(f1_score(target, predicted, average="micro"))
    best = probs.argsort(1)[:, ::-1]
    hits = [target[row, best[row, 0]] > 0 and row != 7 for row in range(len(target))]
    if not ties:
        assert summary["top1"] == pytest.approx(np.mean(hits))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30).filter(
        lambda r: any(y for _, y in r)
    )
)
def test_average_precision_equals_that_of_scikit_learn_with_any_ties(rows):
    scores, target = (np.array(values) for values in zip(*rows, strict=True))
    expected = average_precision_score(target, scores)
    assert average_precision(torch.tensor(scores / 5), torch.tensor(target)) == pytest.approx(expected)


def test_class_without_a_video_has_no_average_precision():
    assert np.isnan(average_precision(torch.rand(4), torch.zeros(4)))


class Lookup(torch.nn.Module):
    """Take the first pixels of a clip as its logits."""

    def forward(self, clips):
        return clips[:, 0, 0, 0, :3]


@pytest.mark.parametrize("average", ["probs", "logits", "max"])
def test_views_of_several_labels_are_combined_by_class(average):
    video = torch.randn(2, 6, 1, 1, 1, 3)  # three clips, two crops
    logits = video[:, :, 0, 0, 0].double()
    scorer = ViewScorer(Lookup(), num_clips=3, dtype=torch.float32, average=average, multi_label=True)
    expected = {
        "probs": logits.sigmoid().mean(1),
        "logits": logits.mean(1).sigmoid(),
        "max": logits.sigmoid().amax(1),
    }[average]
    torch.testing.assert_close(scorer(video).double(), expected, rtol=1e-5, atol=1e-6)
    after = scorer.after_clips(video)
    first = {
        "probs": logits.sigmoid()[:, :2].mean(1),
        "logits": logits[:, :2].mean(1),
        "max": logits.sigmoid()[:, :2].amax(1),
    }
    torch.testing.assert_close(after[:, 0].double(), first[average], rtol=1e-5, atol=1e-6)


def test_clip_is_right_if_its_best_class_is_one_of_the_labels():
    after = torch.tensor([[[0.1, 0.9, 0.3, 0.2, 0.0, 0.05]], [[0.9, 0.1, 0.3, 0.2, 0.0, 0.05]]])
    label = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
    assert is_correct(after, label).tolist() == [[[1, 1]], [[0, 0]]]
    assert is_correct(after, torch.tensor([1, 1])).tolist() == [[[1, 1]], [[0, 1]]]


@pytest.mark.figures
def test_report_has_the_figures_the_curves_and_every_video(tmp_path):
    scores = random_scores()
    videos = [VideoEntry(f"v{index}.mp4", index) for index in range(40)]
    counts = [500, 60, 50, 5, 3, 0]
    report = write_report(tmp_path, scores, videos, CLASSES, SETTINGS, num_train_videos=counts)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["map"] == report.summary["map"] and summary["failed"] == 1
    assert [(group["name"], group["classes"]) for group in summary["groups"]] == [
        ("head", 1),
        ("middle", 2),
        ("tail", 2),
    ]
    tail = [result.ap for result in report.per_class[3:]]
    assert summary["groups"][2]["mean"] == pytest.approx(sum(tail) / 2)
    rows = read_csv(tmp_path / "predictions.csv")
    names = [CLASSES[index] for index in scores.label[0].nonzero()[:, 0].tolist()]
    assert (
        rows[0]["label"] == " | ".join(names) and rows[3]["label"] == "" and rows[7]["status"] == "failed: no such file"
    )
    assert "mAP" in report.text and "worst classes, average precision" in report.text
    assert (tmp_path / "precision_recall.png").stat().st_size > 5000
    assert len(read_csv(tmp_path / "per_class.csv")) == 5
    write_html_report(tmp_path / "report.html", "t", report, [report.figure], errors=[])
    page = (tmp_path / "report.html").read_text()
    worst = min(report.per_class, key=lambda result: result.ap)
    figures = "".join(f'<td class="number">{100 * value:.1f}</td>' for value in worst[3:])
    assert figures in page and page.index(figures) < page.index("</tr>", page.index(f"<td>{worst.name}</td>"))
    assert "micro F1" in page and "average precision" in page and "tail: 2 of fewer than 20" in page
    assert compare_runs([tmp_path, tmp_path]).count(f" {100 * summary['top1']:.2f} %") == 2, "a hit is right"
