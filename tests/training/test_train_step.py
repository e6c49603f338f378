"""What a step is: accumulation, schedules, averages, frozen parts, clipping; and what is seen of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import networks
import train as train_command
from networks import weights
from pipelines.sampling.order import accumulation, steps_done, train_steps
from tests.helpers.runs import STEADY, last, losses, same_weights
from training.history import read_metrics, summary
from training.setup import freeze
from training.tasks import Classify


def run(arguments: list[str], name: str, *more: str) -> Path:
    assert train_command.main([*arguments, f"run.name={name}", *more]) == 0
    return Path(next(a for a in arguments if a.startswith("run.folder=")).partition("=")[2]) / name


def test_a_step_in_several_batches_is_the_same_step(arguments):
    """To rounding; in fp32 the mean over six clips is not added up in the same order."""
    plain = [*arguments, *STEADY, "optim.name=sgd", "optim.batch=6"]
    once, parts = run(plain, "once", "data.batch=6"), run(plain, "parts", "data.batch=2")
    assert len(losses(once)) == len(losses(parts)) == 4
    for a, b in zip(losses(once), losses(parts), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    a, b = last(once), last(parts)
    assert a["loader"] == b["loader"]
    assert all(torch.allclose(a["network"][key], b["network"][key], atol=1e-5) for key in a["network"])


@given(st.integers(1, 500), *[st.integers(1, 8), st.integers(1, 4)] * 2, st.integers(1, 4))
def test_an_epoch_goes_on_behind_what_it_has_seen(n, batch, ranks, new_batch, new_ranks, times):
    """On another number of ranks: no sample again, and less than a step of them left out."""
    for step in range(0, train_steps(n, batch, ranks, times) + 1, times):
        seen = step * batch * ranks
        done = steps_done(seen, new_batch, new_ranks)
        assert 0 <= done * new_batch * new_ranks - seen < new_batch * new_ranks
        assert steps_done(seen, batch, ranks, times) == step
    assert accumulation(batch * ranks * times, batch, ranks) == times and accumulation(0, batch, ranks) == 1


def test_rates_are_scaled_and_said(arguments, capsys):
    folder = run(
        arguments,
        "a",
        "optim.lr=0.2",
        "optim.lr_per=6",
        "optim.schedule=step",
        "optim.drops=1",
        "optim.gamma=0.5",
        "optim.warmup_epochs=0",
        "optim.name=sgd",
        "optim.clip_grad=0.1",
    )
    assert [r["lr"] for r in read_metrics(folder) if r["kind"] == "train"] == pytest.approx([0.1] * 4 + [0.05] * 4)
    assert "4 steps an epoch, each of 3 clips (3 clips); sgd, lr 0.1 = 0.2 x 3 / 6" in capsys.readouterr().out


def test_weight_decay_reaches_its_end_on_weights_alone(arguments):
    folder = run(arguments, "a", "optim.weight_decay=0.1", "optim.weight_decay_end=0.3")
    decays = sorted(group["weight_decay"] for group in last(folder)["optimizer"]["param_groups"])
    assert decays[0] == 0 and 0.28 < decays[1] < 0.3


@pytest.mark.parametrize("name", ["lamb", "lion", "sgd"])
def test_every_optimiser_skips_what_is_not_finite(arguments, name, monkeypatch):
    real, seen = Classify.__call__, []

    def spoil(self, network, batch):
        out = real(self, network, batch)
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        if len(seen) == 3:
            out["loss"] = out["loss"] * float("nan")
        return out

    monkeypatch.setattr(Classify, "__call__", spoil)
    folder = run(arguments, name, f"optim.name={name}", "optim.epochs=1", "data.val=", "optim.warmup_epochs=0")
    assert [r["bad_steps"] for r in read_metrics(folder)] == [0, 0, 1, 0]
    assert all(torch.equal(seen[2][k], seen[3][k]) for k in seen[2])
    assert not all(torch.equal(seen[1][k], seen[2][k]) for k in seen[1])


def test_the_average_is_what_is_evaluated_and_saved(arguments, monkeypatch):
    averaged, real = [], train_command.Learner.update

    def update(self, norm):
        real(self, norm)
        now = {k: v.clone() for k, v in self.network.state_dict().items()}
        averaged.append(
            {k: 0.7 * averaged[-1][k] + 0.3 * v for k, v in now.items()}
            if averaged
            else {k: 0.7 * start[k] + 0.3 * v for k, v in now.items()}
        )

    build = train_command.build_learner
    start: dict = {}

    def built(*a):
        found = build(*a)
        start.update({k: v.clone() for k, v in found[0].network.state_dict().items()})
        return found

    monkeypatch.setattr(train_command, "build_learner", built)
    monkeypatch.setattr(train_command.Learner, "update", update)
    folder = run(arguments, "a", "optim.ema=0.7", "optim.epochs=1")
    network, _ = weights.load(folder / "best")
    state = last(folder)
    for key, value in network.state_dict().items():
        assert torch.allclose(value, averaged[-1][key], atol=1e-6), key
        assert torch.equal(value, state["ema"][key])
    assert not all(torch.equal(state["ema"][k], v) for k, v in state["network"].items())


def test_an_average_must_be_there_to_go_on_with(arguments, capsys):
    run(arguments, "a", "optim.epochs=1")
    assert train_command.main([*arguments, "run.name=a", "optim.ema=0.9"]) == 2
    assert "last.pt: it holds no average of the weights; go on with optim.ema=0" in capsys.readouterr().err


def test_frozen_parts_stay(arguments):
    whole = run(arguments, "whole", "optim.epochs=1", "data.val=", "optim.lr=0", "optim.min_lr=0")
    for what, trained in {
        "backbone": {"head"},
        "patch_embed,pos_embed,blocks.0-0": {"cls_token", "blocks.1", "norm", "head"},
    }.items():
        folder = run(arguments, "part", "optim.epochs=1", "data.val=", f"model.freeze={what}", "run.resume=no")
        before, after = last(whole)["network"], last(folder)["network"]
        changed = {key for key in after if not torch.equal(before[key], after[key])}
        tops = {".".join(key.split(".")[: 2 if key.startswith("blocks") else 1]) for key in changed}
        assert tops <= trained and {"head"} <= tops, what
        assert "M trained)" in (folder / "log.txt").read_text()


def test_nothing_is_dropped_in_what_is_frozen():
    network = networks.build("vivit_tiny", num_classes=5, drop_path=0.5, dropout=0.5)
    freeze(network, "backbone")
    network.train()
    video = torch.randn(2, 3, 8, 64, 64)
    a, b = network.forward_features(video), network.forward_features(video)
    assert torch.equal(a, b) and not torch.equal(network(video), network(video)), "the head's own dropout stays"
    network = networks.build("vivit_tiny", num_classes=5, drop_path=0.5)
    freeze(network, "blocks.0")
    assert not torch.equal(network.train()(video), network(video)), "the other blocks drop"


def test_a_profile_and_the_summary(arguments, capsys):
    folder = run(arguments, "a", "run.profile=2", "optim.epochs=3", "data.val=")
    assert (folder / "profile" / "trace.json.gz").stat().st_size > 1000
    table = (folder / "profile" / "operators.txt").read_text()
    assert "Self CPU" in table and len([line for line in table.splitlines() if "%  " in line]) >= 10
    out = capsys.readouterr().out
    assert "open the trace in Perfetto" in out and "3 epochs of" in out and "of the time waiting for data" in out
    rows = [{"kind": "train", "epoch": e, "seconds": 2.0, "clips": 10, "data": 0.25} for e in (1, 1, 2, 2)] + [
        {"kind": "val", "epoch": e, "top1": t} for e, t in ((1, 0.5), (2, 0.4))
    ]
    assert summary(rows) == (
        "best epoch 1: top-1 50.00 %; 2 epochs of 4.0 s, 5.0 clips/s, 25 % of the time waiting for data"
    )
    assert summary([]) == "" and "loss 0.1000" in summary([{"kind": "val", "epoch": 3, "loss": 0.1}])


def test_too_little_memory_says_what_to_lower(arguments, monkeypatch, capsys):
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        monkeypatch.setattr(Classify, "__call__", lambda *a, error=error: (_ for _ in ()).throw(error))
        assert train_command.main([*arguments, "run.name=a", "run.resume=no"]) == 2
        err = capsys.readouterr().err
        assert "out of memory" in err and "smaller data.batch" in err and "Traceback" not in err
    monkeypatch.setattr(Classify, "__call__", lambda *a: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        train_command.main([*arguments, "run.name=a", "run.resume=no"])


def test_checkpoints_by_the_clock(arguments, monkeypatch):
    saved, real = [], train_command.RunFolder.save_last
    monkeypatch.setattr(
        train_command.RunFolder, "save_last", lambda self, state: saved.append(state["step"]) or real(self, state)
    )
    run(arguments, "a", "run.save_minutes=1e-9", "data.val=")
    assert saved == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    saved.clear()
    run(arguments, "b", "data.val=")
    assert saved == [4, 8]


def test_settings_are_in_tensorboard(arguments):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run(arguments, "a", "optim.epochs=1") / "tb"))
    events.Reload()
    tags = events.Tags()
    train = {f"train/{name}" for name in "loss lr grad_norm top1 clips_per_s data compute other".split()}
    assert train | {"val/top1"} <= set(tags["scalars"])
    assert tags["images"] == ["clips", "attention"]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "width: 32" in text and json.dumps("vivit_tiny").strip('"') in text


def test_dropout_is_drawn_from_the_place_in_the_run(arguments):
    """Whatever else draws from torch's generator in between."""
    a = run(arguments, "a", "data.val=")
    b = run(arguments, "b", "eval.clips=1")  # validates in between
    assert same_weights(a, b)
