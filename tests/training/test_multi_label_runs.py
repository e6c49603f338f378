"""Several labels per video by the commands: trained, resumed, on two processes, tested."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

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


@pytest.fixture
def several(arguments):
    """Return the arguments of a run over a list with zero to three of five labels per video."""
    path = Path(arguments[0].removeprefix("data.train="))
    files = [line.rpartition(" ")[0] for line in path.read_text().splitlines()]
    labels = [[label for label in range(5) if (number * (label + 3)) % 7 < 2] for number in range(len(files))]
    path.write_text("".join(f"{f} {','.join(map(str, row))}\n" for f, row in zip(files, labels, strict=True)))
    return [*arguments, "data.class_names=", "data.multi_label=yes"]


def test_run_is_validated_and_tested_by_its_mean_average_precision(several, capsys):
    run_dir = train(several, "a", "eval.average=max")
    rows = metrics(run_dir, "val")
    assert all(0 < row["map"] <= 1 and 0 <= row["micro_f1"] <= 1 for row in rows)
    best = max(rows, key=lambda row: row["map"])
    log = (run_dir / "log.txt").read_text()
    assert f"best epoch {best['epoch']}: mAP {100 * best['map']:.2f} %" in log
    assert "hit@1" in log and "top-1" not in log
    evaluate(run_dir)
    test_dir = run_dir / "eval" / "2x3_max"
    summary = json.loads((test_dir / "summary.json").read_text())
    table = read_csv(test_dir / "predictions.csv")
    classes = [str(index) for index in range(5)]
    target = np.array([[name in row["label"].split(" | ") for name in classes] for row in table])
    probs = np.zeros((len(table), 5))
    for number, row in enumerate(table):
        for place in range(1, 6):
            probs[number, classes.index(row[f"class{place}"])] = float(row[f"score{place}"])
    assert summary["map"] == pytest.approx(average_precision_score(target, probs), abs=0.02), (
        "four digits tie more often"
    )
    assert (test_dir / "precision_recall.png").exists() and "mAP" in (test_dir / "report.html").read_text()
    card = weights.load_network(run_dir / "best")[1]
    assert card["num_train_videos"] == target.sum(0).tolist() and card["multi_label"] is True
    capsys.readouterr()
    evaluate(run_dir, f"video={table[0]['video']}")
    shares = [float(line.split("%")[0]) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(shares) == 5 and sum(shares) > 110, "each class has a probability of its own"
    evaluate(run_dir, "data.multi_label=no", status=2)
    assert "a run keeps the classes that it was trained for" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["bce", pytest.param("asymmetric", marks=pytest.mark.slow)])
def test_stopped_and_resumed_run_is_bit_identical(several, loss, monkeypatch):
    keys = [f"task.loss={loss}", "data.mixup=0.4", "data.cutmix=1"]
    assert_resumed_run_is_bit_identical(several, *keys, monkeypatch=monkeypatch)


def test_student_learns_the_probabilities_of_a_teacher_of_several_labels(several, capsys):
    teacher = train(several, "teacher", *ONE_EPOCH)
    runs = [
        train(
            several, f"tau{tau}", f"task.teacher={teacher}", f"task.distillation_tau={tau}", "task.distillation_alpha=1"
        )
        for tau in (1, 4)
    ]
    for run_dir in runs:
        first, *_, last = (row["distillation_loss"] for row in metrics(run_dir, "train"))
        assert 0 < last < first
    assert losses(runs[0]) != losses(runs[1])
    for source in (teacher, teacher / "best" / "model.safetensors"):
        train(several, "b", f"task.teacher={source}", "data.multi_label=no", status=2)
        assert "it knows several labels per video; expected one label, as the student" in capsys.readouterr().err
    asymmetric = train(several, "b", f"task.teacher={source}", *ONE_EPOCH, "task.loss=asymmetric")
    of_a_class = metrics(runs[0], "train")[0]["distillation_loss"]
    assert metrics(asymmetric, "train")[0]["distillation_loss"] == pytest.approx(5 * of_a_class, rel=1e-4), "a sum"


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_run_of_two_processes_equals_one(several, loss):
    keys = [f"task.loss={loss}", "model.args={embed_dim: 32, depth: 2, num_heads: 2}"]
    assert_two_processes_equal_one(several, *keys, parallel="ddp")


def test_losses_of_several_labels_differ(several):
    runs = [train(several, loss, *ONE_EPOCH, f"task.loss={loss}") for loss in ("auto", "bce", "focal", "asymmetric")]
    auto, bce, focal, asymmetric = map(losses, runs)
    assert auto == bce and len({str(values) for values in (bce, focal, asymmetric)}) == 3


def test_clip_has_the_labels_of_its_own_seconds(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 6)  # of 40 frames, 25 per second
    files = [line.rpartition(" ")[0] for line in path.read_text().splitlines()]
    rows = "".join(f"{Path(file).stem},c000 0.0 0.5;c001 1.0 1.6\n" for file in files)
    (tmp_path / "charades.csv").write_text(f"id,actions\n{rows}")
    with VideoLoader(
        tmp_path / "charades.csv",
        multi_label=True,
        num_frames=4,
        frame_stride=2,
        image_size=32,
        batch_size=6,
        num_workers=0,
    ) as loader:
        seen = []
        for _ in range(20):
            for batch in loader:
                assert batch.label.shape == (6, 2) and batch.label.dtype == torch.float32
                seen += [tuple(row) for row in batch.label.tolist()]
    assert {(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)} <= set(seen) and (1.0, 1.0) not in seen


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["task.loss=poly"], "task.loss=poly: expected auto, bce, focal or asymmetric with data.multi_label=yes"),
        (["data.balance=class"], "data.balance=class: expected nothing with data.multi_label=yes"),
        (["task.name=probe"], "data.multi_label=yes: expected no with task.name=probe"),
        (["eval.metric=macro_top1"], "eval.metric=macro_top1: expected auto, map, top1 or loss"),
        (["data.max_per_class=2"], "data.max_per_class=2: expected nothing"),
        (["eval.perturbations=motion"], "eval.perturbations=motion: expected nothing"),
        (["data.multi_label=no"], "labels: expected one, or data.multi_label=yes"),
    ],
)
def test_what_does_not_fit_several_labels_is_refused(several, capsys, keys, message):
    train(several, "a", *keys, status=2)
    assert message in capsys.readouterr().err
