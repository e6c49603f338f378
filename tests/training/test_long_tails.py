"""Classes of different sizes: balanced sampling, corrected losses, the mean over classes, and when a run stops."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from networks import weights
from pipelines.loader import VideoLoader
from tests.helpers.runs import (
    ONE_EPOCH,
    assert_resumed_run_is_bit_identical,
    assert_two_processes_equal_one,
    evaluate,
    losses,
    metrics,
    read_csv,
    train,
)
from training.history import is_best, score_of, validations_since_best
from training.metrics import StepMetrics

TAIL = [0] * 8 + [1] * 4 + [2]  # the classes of 13 videos


@pytest.fixture
def long_tail(arguments):
    """Return the arguments of a run over a list whose three classes have 8, 4 and 1 videos."""
    path = Path(arguments[0].removeprefix("data.train="))
    files = [line.rpartition(" ")[0] for line in path.read_text().splitlines()]
    path.write_text("".join(f"{file} {label}\n" for file, label in zip(files, TAIL, strict=True)))
    return arguments


def test_balanced_run_sees_classes_equally_often_and_other_crops_of_the_same_video(long_tail, monkeypatch):
    seen, clips = [], {}
    update = StepMetrics.update

    def note(self, out, batch):
        update(self, out, batch)
        for index, label, video, seed in zip(
            batch.sample_index.tolist(), batch.label.tolist(), batch.video, batch.seeds, strict=True
        ):
            seen.append(label)
            clips.setdefault((seed[1], index), []).append((seed, video.clone()))

    monkeypatch.setattr(StepMetrics, "update", note)
    train(long_tail, "a", "data.balance=class", "optim.epochs=3", "data.batch_size=1")
    assert all(abs(count - 13) <= 3 for count in Counter(seen).values()) and set(seen) == {0, 1, 2}
    repeated = [views for views in clips.values() if len(views) > 1]
    assert repeated
    for views in repeated:
        assert len({seed for seed, _ in views}) == len(views)
        assert not torch.equal(views[0][1], views[1][1]), "each time another clip"


def test_unreadable_video_is_replaced_by_one_of_its_class(long_tail):
    path = Path(long_tail[0].removeprefix("data.train="))
    lines = path.read_text().splitlines()
    (broken, _), (only, _) = (lines[number].split(" ") for number in (9, 12))  # one of four, and the only one
    options = {"num_frames": 4, "image_size": 32, "num_workers": 0, "max_unreadable": 0.5, "balance": "class"}
    for file in (broken, only):
        (path.parent / file).unlink()
    labels = Counter()
    with VideoLoader(path, batch_size=1, **options) as loader:
        for _ in range(3):
            for batch in loader:
                labels[batch.seeds[0][2], batch.label.item()] += 1
    assert {label for index, label in labels if index == 9} == {1}
    assert {label for index, label in labels if index == 12} <= {0, 1}, "one of any class"


@pytest.mark.parametrize("balance", ["class", "sqrt"])
def test_stopped_and_resumed_balanced_run_is_bit_identical(long_tail, balance, monkeypatch):
    keys = [f"data.balance={balance}", "data.mixup=0.4", "data.aug_repeats=3"]
    assert_resumed_run_is_bit_identical(long_tail, *keys, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [["data.balance=class"], ["task.logit_adjustment=1"], ["task.class_balance_beta=0.9"]])
def test_balanced_run_of_two_processes_equals_one(long_tail, keys):
    without = "model.args={embed_dim: 32, depth: 2, num_heads: 2}"
    assert_two_processes_equal_one(long_tail, *keys, without, parallel="ddp")


def test_corrected_losses_know_the_sizes_of_the_classes(long_tail):
    plain = train(long_tail, "plain", *ONE_EPOCH)
    for key in ("task.logit_adjustment=1", "task.class_balance_beta=0.9", "task.loss=focal", "task.loss=gce"):
        assert losses(train(long_tail, "a", *ONE_EPOCH, key, "run.resume=no")) != losses(plain)
    log = (train(long_tail, "b", *ONE_EPOCH, "data.balance=class") / "log.txt").read_text()
    assert "classes of 1 to 8 videos; data.balance=class: a video comes 0.54 to 4.3 times in an epoch" in log
    assert weights.load_network(plain / "best")[1]["num_train_videos"] == [8, 4, 1]


def test_report_has_the_mean_over_classes_and_that_of_head_middle_and_tail(long_tail, capsys):
    run_dir = train(long_tail, "a", *ONE_EPOCH, "eval.shots=2,5")
    test_dir = evaluate(run_dir)
    summary = json.loads((test_dir / "summary.json").read_text())
    per_class = {row["class"]: row for row in read_csv(test_dir / "per_class.csv")}
    assert [row["train_videos"] for row in per_class.values()] == ["8", "4", "1"]
    accuracies = [float(row["top1"]) for row in per_class.values()]
    assert summary["macro_top1"] == pytest.approx(sum(accuracies) / 3, abs=1e-4)
    assert summary["groups"] == [
        {"name": name, "train_videos": videos, "classes": 1, "mean": pytest.approx(top1, abs=1e-4)}
        for name, videos, top1 in zip(
            ("head", "middle", "tail"), ("more than 5", "2 to 5", "fewer than 2"), accuracies, strict=True
        )
    ]
    assert "; head " in capsys.readouterr().out
    assert "tail: 1 of fewer than 2 training videos" in (test_dir / "report.html").read_text()
    evaluate(run_dir, "eval.shots=50,60")
    (other,) = (run_dir / "eval").glob("2x3_shots*/summary.json")
    assert not json.loads(other.read_text())["groups"]


def rows(*scores: float, metric: str = "top1") -> list[dict]:
    return [{"kind": "val", "epoch": n, "loss": 1.0, metric: score} for n, score in enumerate(scores, 1)]


def test_validations_are_compared_by_the_metric_that_is_named():
    assert is_best({"loss": 1.0, "top1": 0.5}, rows(0.4, 0.5)) and not is_best({"loss": 1.0, "top1": 0.4}, rows(0.5))
    assert is_best({"loss": 0.9, "top1": 0.1}, rows(0.5), "loss") and not is_best({"loss": 1.1}, rows(0.5), "loss")
    assert not is_best({"loss": float("nan")}, []) and is_best({"loss": 3.0}, [])
    assert is_best({"loss": 2.0, "top1": 0.0, "macro_top1": 0.9}, rows(0.8, metric="macro_top1"), "macro_top1")
    with pytest.raises(ValueError, match="eval.metric=macro_top1: expected one of loss, top1"):
        score_of(rows(0.5)[0], "macro_top1")


def test_patience_counts_validations_after_the_best():
    assert validations_since_best([]) == 0
    assert validations_since_best(rows(0.1, 0.2)) == 0
    assert validations_since_best(rows(0.2, 0.1, 0.2)) == 2, "as good is not better"


def test_run_stops_early_and_stays_stopped(arguments, capsys):
    keys = ["optim.lr=0", "optim.min_lr=0", "optim.epochs=9", "run.patience=2"]
    run_dir = train(arguments, "a", *keys)
    assert len(metrics(run_dir, "val")) == 3 and (run_dir / "best").exists()
    assert "stopped early: 2 validations without a better one; more run.patience continues" in capsys.readouterr().out
    train(arguments, "a", *keys)
    assert len(metrics(run_dir, "val")) == 3
    train(arguments, "a", *keys[:3], "run.patience=4")
    assert len(metrics(run_dir, "val")) == 5, "with more patience it goes on"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.balance=class", "task.logit_adjustment=1"], "data.balance=class: expected nothing with task.logit_adj"),
        (["task.loss=gce", "task.label_smoothing=0.1"], "task.label_smoothing=0.1: expected 0 with task.loss=gce"),
        (["task.loss=bce", "task.logit_adjustment=1"], "task.logit_adjustment=1.0: expected 0 with task.loss=bce"),
        (["task.loss_args={gamma: 1}"], "task.loss_args.gamma: expected the arguments of loss=cross_entropy: none"),
        (["task.name=probe", "eval.metric=loss"], "eval.metric=loss: expected auto or top1 with task.name=probe"),
        (["run.patience=2", "data.val="], "run.patience=2: expected 0 without data.val, whose validations it counts"),
        (["task.logit_adjustment=1", "task.class_balance_beta=0.9"], "task.class_balance_beta=0.9: expected 0 with"),
        (["task.distillation=features"], "task.distillation=features: expected its default with task.teacher="),
        (["eval.shots=5,2"], "eval.shots=[5, 2]: expected two numbers of videos, the smaller one first"),
    ],
)
def test_wrong_keys_are_refused(arguments, capsys, keys, message):
    train(arguments, "a", *keys, status=2)
    assert message in capsys.readouterr().err


def test_balance_without_classes_is_refused(arguments):
    path = arguments[0].removeprefix("data.train=")
    with pytest.raises(ValueError, match=r"data.balance=class: expected nothing for .*, without classes"):
        VideoLoader(path, labeled=False, balance="class", batch_size=1)
