"""The commands as a user runs them: train, stop, resume to the bit, evaluate; and every mistake gets one clear line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eval as eval_command
import networks
import train as train_command
from configs import loading
from eval import Scores
from evaluation.evaluate import evaluate
from evaluation.report import write_report
from networks import weights
from pipelines.loader import build_loader
from tests.helpers.runs import ROOT, losses, same_weights
from training.history import read_metrics
from training.tasks import Classify
from utils.distributed import World


def test_a_run_and_its_folder(arguments, tmp_path):
    assert train_command.main([*arguments, "run.name=a"]) == 0
    folder = tmp_path / "a"
    for name in ("config.yaml", "env.json", "metrics.jsonl", "log.txt", "last.pt", "curves.png", "clips.png",
                 "best/model.safetensors", "best/config.json", "bad_videos.csv", "tb"):  # fmt: skip
        assert (folder / name).exists(), name
    rows = read_metrics(folder)
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(range(1, 9))
    assert [r["step"] for r in rows if r["kind"] == "val"] == [4, 8]
    for row in rows[:3]:
        assert abs(row["data"] + row["compute"] + row["other"] - 1) < 0.02 and row["clips_per_s"] > 0
    assert json.loads((folder / "env.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]
    assert loading.load(folder / "config.yaml") == loading.load(None, [*arguments, "run.name=a"])

    assert eval_command.main([str(folder)]) == 0
    report = folder / "eval" / "2x3"
    summary = json.loads((report / "summary.json").read_text())
    predictions = list(csv.DictReader(open(report / "predictions.csv")))
    assert summary["videos"] == summary["scored"] == len(predictions) == 13 and summary["padded"] == 1
    right = sum(row["class1"] == row["label"] for row in predictions)
    assert summary["top1"] == pytest.approx(right / 13)
    per_class = list(csv.DictReader(open(report / "per_class.csv")))
    assert sum(int(row["right"]) for row in per_class) == right and sum(int(row["videos"]) for row in per_class) == 13

    before = (folder / "metrics.jsonl").read_text()
    assert train_command.main([*arguments, "run.name=a"]) == 0, "a finished run has nothing to do"
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_run_starts_from_given_weights_once(arguments, tmp_path, monkeypatch):
    """From another run with other classes and frames; the report is in the log, and resuming does not start over."""
    assert train_command.main([*arguments, "run.name=a"]) == 0
    other = tmp_path / "classes.txt"
    other.write_text("".join(f"{number}\n" for number in range(7)))
    again = [*arguments, "run.name=b", f"data.classes={other}", f"model.init={tmp_path / 'a'}", "data.frames=8"]
    seen, real = [], train_command.initialise
    monkeypatch.setattr(train_command, "initialise", lambda *a: seen.append(1) or real(*a))
    assert train_command.main([*again, "optim.epochs=1"]) == 0
    log = (tmp_path / "b" / "log.txt").read_text()
    assert "vivit_tiny -> ViViT: " in log and "head of 6 classes, the network has 7" in log
    assert "2x4x4 -> 4x4x4, linear over frames: pos_embed" in log and "normalised with mean [0.45" in log
    assert train_command.main([*again, "optim.epochs=2"]) == 0
    assert len(seen) == 1


def test_training_starts_at_the_given_weights(arguments, tmp_path):
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1", "data.val="]) == 0
    again = [*arguments, "run.name=b", "data.val=", "optim.epochs=1", "optim.lr=0", "optim.min_lr=0"]
    assert train_command.main([*again, f"model.init={tmp_path / 'a'}"]) == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")


PRETRAIN = ["task.name=maskfeat", "model.name=maskfeat_tiny", "model.args={}"]
AUGMENT = [
    "data.rand_augment=m7-n1", "data.grey=0.2", "data.mixup=0.8", "data.cutmix=1", "data.erase=0.5", "data.repeats=3",
    "data.sampling=segments",
]  # fmt: skip
EVERYTHING = ["optim.ema=0.9", "optim.batch=6", "data.mixup=0.8", "data.cutmix=1", "optim.schedule=step",
              "optim.drops=1", "optim.weight_decay_end=0.5", "optim.clip=each", "optim.epochs=3"]  # fmt: skip


@pytest.mark.parametrize(
    ("stop_after", "task"),
    [
        (1, []),
        (3, []),
        (4, []),
        (6, []),
        (1, PRETRAIN),
        (3, EVERYTHING),
        (4, PRETRAIN),
        (6, PRETRAIN),
        pytest.param(3, AUGMENT, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_is_bit_identical(arguments, tmp_path, stop_after, task, monkeypatch):
    arguments = [*arguments, *task]
    assert train_command.main([*arguments, "run.name=whole"]) == 0

    real, steps = train_command.Meter.add, []

    def add(self, *values):
        real(self, *values)
        steps.append(1)
        if len(steps) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train_command.Meter, "add", add)
    assert train_command.main([*arguments, "run.name=parts"]) == 128 + signal.SIGTERM
    assert len(losses(tmp_path / "parts")) == (stop_after if task is not EVERYTHING else 2)
    assert train_command.main([*arguments, "run.name=parts", "data.workers=2"]) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole", "ema")
    a, b = ([r for r in read_metrics(tmp_path / n) if r["kind"] == "val"] for n in ("parts", "whole"))
    assert a == b


def test_killed_between_epoch_and_validation(arguments, tmp_path, monkeypatch):
    """last.pt is written before the validation, which a resumed run then makes up for."""
    real = train_command.evaluate
    monkeypatch.setattr(train_command, "evaluate", lambda *a: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5))
    assert train_command.main([*arguments, "run.name=a"]) == 128 + signal.SIGINT
    monkeypatch.setattr(train_command, "evaluate", real)
    assert train_command.main([*arguments, "run.name=a"]) == 0
    assert [r["step"] for r in read_metrics(tmp_path / "a") if r["kind"] == "val"] == [4, 8]


@pytest.mark.slow
def test_ctrl_c_on_the_real_command(arguments, tmp_path):
    """A terminal sends Ctrl-C to every process of the group, decode workers too."""
    command = [sys.executable, "train.py", *arguments, "optim.epochs=500", "data.workers=2", "run.name=a"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    for line in process.stdout:
        if "step 3/" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "stopped by SIGINT" in out and (tmp_path / "a" / "last.pt").exists()


def test_a_loss_that_is_not_finite_is_skipped_and_stops_the_run(arguments, tmp_path, monkeypatch, capsys):
    real, calls = Classify.__call__, []

    def spoil(self, network, batch):
        out = real(self, network, batch)
        calls.append({k: v.clone() for k, v in network.state_dict().items()})
        if len(calls) in (3, 4):
            out["loss"] = out["loss"] * float("nan")
        return out

    monkeypatch.setattr(Classify, "__call__", spoil)
    assert train_command.main([*arguments, "run.name=a"]) == 0
    assert [r["bad_steps"] for r in read_metrics(tmp_path / "a") if r["kind"] == "train"] == [0, 0, 1, 1, 0, 0, 0, 0]
    for key, value in calls[2].items():
        assert torch.equal(value, calls[3][key]) and torch.equal(value, calls[4][key]), "weights as before the bad step"
    assert any(not torch.equal(value, calls[5][key]) for key, value in calls[2].items())

    calls.clear()
    assert train_command.main([*arguments, "run.name=b", "run.max_bad_steps=1"]) == 2
    assert "the loss was not finite for 2 steps in a row (run.max_bad_steps=1)" in capsys.readouterr().err


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision(arguments, tmp_path, amp):
    assert train_command.main([*arguments, "run.name=a", f"run.amp={amp}", "optim.epochs=1"]) == 0
    assert all(loss == loss for _, loss, _ in losses(tmp_path / "a"))


def test_bad_videos_are_named_and_remembered(arguments, tmp_path):
    (tmp_path / "data" / "1.mp4").unlink()
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    assert train_command.main([*arguments, "run.name=a"]) == 0
    rows = list(csv.DictReader(open(tmp_path / "a" / "bad_videos.csv")))
    assert [(Path(row["path"]).name, row["reason"]) for row in rows] == [("1.mp4", "no such file")]
    assert "1 failed" in (tmp_path / "a" / "log.txt").read_text()


@pytest.mark.slow
def test_compiled_training(arguments, tmp_path):
    assert train_command.main([*arguments, "run.name=eager", "model.args.drop_path=0", "model.args.dropout=0"]) == 0
    assert (
        train_command.main(
            [*arguments, "run.name=c", "run.compile=yes", "model.args.drop_path=0", "model.args.dropout=0"]
        )
        == 0
    )
    for (_, a, _), (_, b, _) in zip(losses(tmp_path / "eager"), losses(tmp_path / "c"), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert not any("_orig_mod" in key for key in torch.load(tmp_path / "c" / "last.pt", weights_only=True)["network"])


@pytest.mark.slow
def test_two_processes_train_as_one(arguments, tmp_path):
    """torchrun with 2 x batch 2 against one process with batch 4: the same clips, the same losses."""
    plain = [a for a in arguments if "drop_path" not in a]
    plain += ["model.args={width: 32, depth: 2, heads: 2}", "run.log_every=50"]
    assert train_command.main([*plain, "run.name=one", "data.batch=4"]) == 0
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py", *plain,
         "run.name=two", "data.batch=2"], cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    a, b = (torch.load(tmp_path / n / "last.pt", weights_only=True)["network"] for n in ("one", "two"))
    for key in a:
        assert torch.allclose(a[key], b[key], atol=1e-5), key
    a, b = ([r["loss"] for r in read_metrics(tmp_path / n) if r["kind"] == "val"] for n in ("one", "two"))
    assert a == pytest.approx(b, abs=1e-5), "every video scored once, on either number of ranks"


# --- evaluation -----------------------------------------------------------------------------------------------------


class Constant(torch.nn.Module):
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 3, 0, 0, 0, 0]).expand(len(video), -1)


def test_constant_network_scores_the_share_of_its_class(arguments, tmp_path):
    loader = build_loader(
        loading.load(None, arguments), "test", [str(i) for i in range(6)], World(), torch.device("cpu")
    )
    scores = evaluate(Constant(), loader, World())
    assert scores.topk(1) == pytest.approx(2 / 13) and scores.scored.all()
    assert scores.coverage() == "coverage: 13 of 13 videos scored, 0 failed, 1 padded"


def test_a_broken_video_is_reported_and_counts_as_wrong(arguments, tmp_path, capsys):
    (tmp_path / "data" / "1.mp4").unlink()  # of class 1, which Constant would get right
    loader = build_loader(
        loading.load(None, arguments), "test", [str(i) for i in range(6)], World(), torch.device("cpu")
    )
    scores = evaluate(Constant(), loader, World())
    assert scores.topk(1) == pytest.approx(1 / 13) and not scores.scored[1]
    report = write_report(tmp_path / "r", scores, loader.source.clips, [str(i) for i in range(6)], {"views": "2x3"})
    assert "12 of 13 videos scored, 1 failed" in report.text and "1.mp4: no such file" in report.text
    row = list(csv.DictReader(open(tmp_path / "r" / "predictions.csv")))[1]
    assert row["state"] == "failed: no such file" and not row["class1"]


@pytest.mark.parametrize("batch", [1, 4])
def test_scores_do_not_depend_on_the_batch(arguments, batch):
    torch.manual_seed(0)
    network = train_command.build_network(loading.load(None, arguments), 6)
    results = []
    for b in (batch, 13):
        cfg = loading.load(None, [*arguments, f"eval.batch={b}"])
        loader = build_loader(cfg, "test", [str(i) for i in range(6)], World(), torch.device("cpu"))
        results.append(evaluate(network, loader, World()).probability)
    assert torch.allclose(*results, atol=1e-6)


def test_topk_counts():
    probability = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    scores = Scores(probability, torch.tensor([0, 1, 0]), torch.tensor([True, True, True]), {}, 0, torch.zeros(3, 1, 2))
    assert scores.topk(1) == pytest.approx(1 / 3) and scores.topk(2) == pytest.approx(2 / 3) and scores.topk(5) == 1


# --- mistakes: one clear line, exit status 2 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("optim.lr=fast", "optim.lr=fast: expected a number"),
        ("data.train=nowhere.txt", "nowhere.txt: no such list or folder"),
        ("model.name=vivit_tny", "did you mean 'vivit_tiny'?"),
        ("model.args.depht=3", "depht"),
        ("data.size=30", "patch_size=8 does not divide image_size=30x30"),
        ("run.resume=nowhere.pt", "run.resume=nowhere.pt: no such checkpoint"),
        ("data.classes=missing.txt", "missing.txt: no such list or folder"),
        ("run.folder=/proc/clipline", "run folder /proc/clipline/x: cannot be written"),
        ("model.init=nowhere.pth", "nowhere.pth: No such file or directory"),
        ("optim.batch=7", "optim.batch=7: expected a multiple of data.batch=3 on 1 processes, that is 3"),
        ("optim.batch=30", "13 videos do not fill one step of data.batch=3 on 1 process(es), 10 times"),
        ("optim.lr_per=all", "optim.lr_per=all: expected none, or a number of clips"),
        ("optim.drops=3", "optim.drops=[3.0]: expected none unless optim.schedule=step"),
        ("optim.ema=1", "optim.ema=1.0: expected 0 to below 1"),
        ("optim.schedule=linear", "optim.schedule=linear: expected one of cosine, step, constant"),
        ("model.freeze=block.0", "model.freeze: the network has no block.0; did you mean blocks.0?"),
        ("model.freeze=blocks.1-2", "model.freeze: the network has no blocks.2"),
        ("model.freeze=backbone,head", "model.freeze: the network has no backbone"),
        ("run.save_minutes=-1", "run.save_minutes=-1.0: expected 0 or more"),
        ("run.shard=some", "run.shard=some: expected one of no, full"),
        ("eval.crops=2", "eval.crops=2: expected 1 or 3"),
        ("task.mask=square", "task.mask=square: expected one of cube"),
        ("run.amp=fp8", "run.amp=fp8: expected one of auto, bf16, fp16, fp32"),
    ],
)
def test_mistakes(arguments, capsys, wrong, message):
    assert train_command.main([*arguments, "run.name=x", wrong]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ") and message in error


def test_weights_of_something_else(arguments, tmp_path, capsys):
    networks.weights.save(tmp_path / "mvit", networks.build("mvit_v2_tiny", num_classes=6), "mvit_v2_tiny")
    for wrong, message in (
        ([f"model.init={tmp_path}/mvit"], "cannot fill a ViViT: it is of another architecture"),
        ([f"model.init={tmp_path}/mvit", "model.init_args={inflate: central}"], "inflate"),
    ):
        assert train_command.main([*arguments, "run.name=x", *wrong]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("train.py: ") and message in error


def test_label_outside_the_map(arguments, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert train_command.main([*arguments, "run.name=x", f"data.classes={tmp_path}/names.txt"]) == 2
    assert "list.txt:4: label '3' is none of the 3 classes" in capsys.readouterr().err


def test_a_damaged_checkpoint_and_one_of_another_network(arguments, tmp_path, capsys):
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    assert train_command.main([*arguments, "run.name=a", "model.args.depth=3"]) == 2
    assert "missing" in capsys.readouterr().err
    torch.save({"model": 1}, tmp_path / "other.pt")
    assert train_command.main([*arguments, "run.name=b", f"run.resume={tmp_path}/other.pt"]) == 2
    assert "other.pt: not the checkpoint of a training run: it lacks" in capsys.readouterr().err
    whole = (tmp_path / "a" / "last.pt").read_bytes()
    (tmp_path / "a" / "previous.pt").unlink(missing_ok=True)
    for damaged in (b"", b"half a file", whole[: len(whole) // 2], whole[:-10], b"\0" * 5000):
        (tmp_path / "a" / "last.pt").write_bytes(damaged)
        assert train_command.main([*arguments, "run.name=a"]) == 2
        assert "last.pt: not a readable checkpoint" in capsys.readouterr().err


def test_evaluating_what_is_no_run(tmp_path, capsys):
    assert eval_command.main([str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_best_is_what_the_report_scores(arguments, tmp_path):
    assert train_command.main([*arguments, "run.name=a"]) == 0
    network, config = weights.load(tmp_path / "a" / "best")
    assert config["id2label"] == {i: str(i) for i in range(6)} and config["input"]["size"] == 32
    best = max(r["top1"] for r in read_metrics(tmp_path / "a") if r["kind"] == "val")
    loader = build_loader(
        loading.load(None, arguments), "val", [str(i) for i in range(6)], World(), torch.device("cpu")
    )
    assert evaluate(network, loader, World()).topk(1) == pytest.approx(best)


@pytest.mark.gpu
def test_training_on_a_gpu(gpu_arguments, tmp_path):
    for amp in ("bf16", "fp16", "fp32"):
        for compile in ("no", "yes"):
            name = f"{amp}_{compile}"
            assert (
                train_command.main([*gpu_arguments, f"run.name={name}", f"run.amp={amp}", f"run.compile={compile}"])
                == 0
            )
            assert all(loss == loss for _, loss, _ in losses(tmp_path / name))


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["dali", "both"])
@pytest.mark.parametrize(
    "task", [[], AUGMENT, EVERYTHING, PRETRAIN], ids=["plain", "augment", "everything", "maskfeat"]
)
def test_the_hot_path_never_waits_for_the_device(gpu_arguments, tmp_path, task, decoder, monkeypatch):
    """From the third batch on torch raises where the host waits for the GPU, but for reading the meter."""
    add, read, batches = train_command.Meter.add, train_command.Meter.read, []

    def counted(self, *values):
        add(self, *values)
        batches.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(batches) > 2 else "default")

    def reading(self, *values):
        torch.cuda.set_sync_debug_mode("default")
        return read(self, *values)

    monkeypatch.setattr(train_command.Meter, "add", counted)
    monkeypatch.setattr(train_command.Meter, "read", reading)
    on_gpu = [*gpu_arguments, "run.log_every=1000", "data.val=", f"data.decoder={decoder}"]
    try:
        assert train_command.main([*on_gpu, *task, "run.name=a", "optim.epochs=3"]) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(batches) > 3
