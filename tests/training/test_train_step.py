"""An optimizer step: accumulation, lr and weight decay, EMA, frozen parts; and what is recorded of it."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import networks
import train as train_command
from configs import loading
from networks import weights
from pipelines.sampling.order import batches_done, batches_per_epoch, grad_accum_steps
from tests.helpers import ROOT
from tests.helpers.runs import (
    MASKFEAT,
    NO_DROPOUT,
    TINY_RUN,
    has_same_weights,
    last_checkpoint,
    losses,
    metrics,
    train,
)
from training import session
from training.history import read_metrics, summarize_run
from training.run_dir import RunDir
from training.schedule import Schedule, scaled_lr
from training.setup import build_network, build_state, freeze
from training.state import TrainState
from training.tasks import Classify

# --- accumulation -------------------------------------------------------------------------------------------------


def test_step_in_several_batches_equals_one_in_a_single_batch(arguments):
    """Up to rounding: in fp32 the mean over six clips is not added up in the same order."""
    plain = [*arguments, *NO_DROPOUT, "optim.name=sgd", "optim.global_batch_size=6"]
    single, several = (train(plain, f"batch{size}", f"data.batch_size={size}") for size in (6, 2))
    assert len(losses(single)) == len(losses(several)) == 4
    for expected, actual in zip(losses(single), losses(several), strict=True):
        assert actual == pytest.approx(expected, abs=1e-5)
    expected, actual = last_checkpoint(single), last_checkpoint(several)
    assert actual["loader"] == expected["loader"]
    for name, value in expected["network"].items():
        assert torch.allclose(actual["network"][name], value, atol=1e-5)


@given(st.integers(1, 500), *[st.integers(1, 8), st.integers(1, 4)] * 2, st.integers(1, 4))
def test_batches_done_on_another_world_size_repeat_no_sample(n, batch, ranks, new_batch, new_ranks, accumulate):
    """Less than one step of samples is left out."""
    num_batches = batches_per_epoch(n, batch, ranks, train=True, grad_accum_steps=accumulate)
    for batch_index in range(0, num_batches + 1, accumulate):
        seen = batch_index * batch * ranks
        done = batches_done(seen, new_batch, new_ranks)
        assert 0 <= done * new_batch * new_ranks - seen < new_batch * new_ranks
        assert batches_done(seen, batch, ranks, accumulate) == batch_index
    assert grad_accum_steps(batch * ranks * accumulate, batch, ranks) == accumulate
    assert grad_accum_steps(0, batch, ranks) == 1


# --- lr and weight decay ------------------------------------------------------------------------------------------


def test_lr_is_scaled_logged_and_multiplied_at_milestones(arguments, capsys):
    run_dir = train(
        arguments,
        "a",
        "optim.lr=0.2",
        "optim.lr_base_batch=6",
        "optim.schedule=step",
        "optim.milestones=1",
        "optim.gamma=0.5",
        "optim.warmup_epochs=0",
        "optim.name=sgd",
        "optim.clip_grad_norm=0.1",
    )
    assert [row["lr"] for row in metrics(run_dir, "train")] == pytest.approx([0.1] * 4 + [0.05] * 4)
    assert "4 steps per epoch, each of 3 clips; sgd, lr 0.1 = 0.2 x 3 / 6" in capsys.readouterr().out


def test_min_lr_is_scaled_as_lr_is():
    cfg = loading.load_config(None, TINY_RUN)
    optimizer = build_state(cfg, build_network(cfg, 4), 1, torch.float32, 1).optimizers[0]
    overrides = ["optim.lr=1e-4", "optim.min_lr=1e-6", "optim.epochs=2", "optim.warmup_epochs=0.5"]
    for step, expected in ((0, None), (5, 1.6e-3), (13, None), (20, 1.6e-5)):
        scaled, unscaled = (
            Schedule(
                loading.load_config(None, [*overrides, f"optim.lr_base_batch={clips}"]).optim,
                steps_per_epoch=10,
                clips_per_step=512,
            ).apply([optimizer], step)
            for clips in (32, 0)
        )
        assert scaled == pytest.approx(16 * unscaled)
        assert expected is None or scaled == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "clips_per_step", "lr"),
    [
        ("videomae_16x4_k400", 512, 5e-4),
        ("mvitv2s_16x4_k400", 512, 1.6e-3),
        ("maskfeat_mvitv2s_16x4_k400_finetune", 512, 9.6e-3),
    ],
)
def test_lr_of_a_recipe_is_that_of_its_source(name, clips_per_step, lr):
    """VideoMAE's code counts videos; SlowFast's counts 16 videos of two clips per machine."""
    optim = loading.load_config(next((ROOT / "configs").rglob(f"{name}.yaml"))).optim
    assert scaled_lr(optim, clips_per_step, optim.lr) == pytest.approx(lr)


def test_weight_decay_of_weights_alone_reaches_its_end(arguments):
    run_dir = train(arguments, "a", "optim.weight_decay=0.1", "optim.weight_decay_end=0.3")
    groups = last_checkpoint(run_dir)["optimizers"][0]["param_groups"]
    without, with_decay = sorted(group["weight_decay"] for group in groups)
    assert without == 0 and 0.28 < with_decay < 0.3


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lamb", "lion", "sgd"])
def test_optimizer_skips_a_step_that_is_not_finite(arguments, name, monkeypatch):
    call, seen_weights = Classify.__call__, []

    def spoil_third(self, network, batch):
        out = call(self, network, batch)
        seen_weights.append({key: value.clone() for key, value in network.state_dict().items()})
        if len(seen_weights) == 3:
            out["loss"] = out["loss"] * float("nan")
        return out

    monkeypatch.setattr(Classify, "__call__", spoil_third)
    overrides = [f"optim.name={name}", "optim.epochs=1", "data.val=", "optim.warmup_epochs=0"]
    run_dir = train(arguments, name, *overrides)
    assert [row["skipped_steps"] for row in read_metrics(run_dir)] == [0, 0, 1, 0]
    _, second, third, fourth = seen_weights
    assert all(torch.equal(fourth[key], third[key]) for key in third), "the third step was skipped"
    assert not all(torch.equal(third[key], second[key]) for key in second)


def test_ema_is_what_is_evaluated_and_saved(arguments, monkeypatch):
    expected: dict[str, torch.Tensor] = {}
    optimizer_step, build = TrainState.optimizer_step, session.build_state

    def build_and_note(*values):
        state = build(*values)
        expected.update({key: value.clone() for key, value in state.network.state_dict().items()})
        return state

    def step_and_average(self, *values):
        norm = optimizer_step(self, *values)
        for key, value in self.network.state_dict().items():
            expected[key] = 0.7 * expected[key] + 0.3 * value
        return norm

    monkeypatch.setattr(session, "build_state", build_and_note)
    monkeypatch.setattr(TrainState, "optimizer_step", step_and_average)
    run_dir = train(arguments, "a", "optim.ema_decay=0.7", "optim.epochs=1")
    network, _ = weights.load_network(run_dir / "best")
    checkpoint = last_checkpoint(run_dir)
    for key, value in network.state_dict().items():
        assert torch.allclose(value, expected[key], atol=1e-6), key
        assert torch.equal(value, checkpoint["ema"][key])
    assert not all(torch.equal(checkpoint["ema"][key], value) for key, value in checkpoint["network"].items())


def test_resume_with_ema_of_a_run_without_it_is_refused(arguments, capsys):
    train(arguments, "a", "optim.epochs=1")
    train(arguments, "a", "optim.ema_decay=0.9", status=2)
    assert "last.pt: checkpoint has no EMA weights: resume with optim.ema_decay=0" in capsys.readouterr().err


def test_frozen_parts_keep_their_weights(arguments):
    overrides = ["optim.epochs=1", "data.val="]
    initial = last_checkpoint(train(arguments, "initial", *overrides, "optim.lr=0", "optim.min_lr=0"))["network"]
    for parts, trained in {
        "backbone": {"head"},
        "patch_embed,pos_embed,blocks.0-0": {"cls_token", "blocks.1", "norm", "head"},
    }.items():
        run_dir = train(arguments, "frozen", *overrides, f"model.freeze={parts}", "run.resume=no")
        network = last_checkpoint(run_dir)["network"]
        changed = {key for key in network if not torch.equal(initial[key], network[key])}
        changed_parts = {".".join(key.split(".")[: 2 if key.startswith("blocks") else 1]) for key in changed}
        assert changed_parts <= trained and {"head"} <= changed_parts, parts
        assert "k trained)" in (run_dir / "log.txt").read_text()


def test_frozen_parts_have_no_dropout_or_drop_path():
    video = torch.randn(2, 3, 8, 64, 64)
    network = networks.build("vivit_tiny", num_classes=5, drop_path=0.5, dropout=0.5)
    freeze(network, "backbone")
    network.train()
    assert torch.equal(network.forward_features(video), network.forward_features(video))
    assert not torch.equal(network(video), network(video)), "the head keeps its dropout"
    network = networks.build("vivit_tiny", num_classes=5, drop_path=0.5)
    freeze(network, "blocks.0")
    network.train()
    assert not torch.equal(network(video), network(video)), "the other blocks keep their drop path"


def test_frozen_backbone_leaves_what_follows_the_encoder_to_train():
    network = networks.build("vjepa2_tiny", num_classes=5)
    freeze(network, "backbone")
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"pooler", "head"}
    network = networks.build("frame_encoder_tiny", num_classes=5, temporal_depth=2)
    freeze(network, "backbone")
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"temporal_pos_embed", "temporal_blocks", "temporal_norm", "head"}


def test_dropout_depends_on_the_position_in_the_run_alone(arguments):
    """Not on what else draws from torch's generator, such as a validation."""
    without_validation = train(arguments, "a", "data.val=")
    assert has_same_weights(train(arguments, "b", "eval.num_clips=1"), without_validation)


# --- what is recorded ---------------------------------------------------------------------------------------------


def test_profile_and_summary_are_written(arguments, capsys):
    run_dir = train(arguments, "a", "run.profile_steps=2", "optim.epochs=3", "data.val=")
    assert (run_dir / "profile" / "trace.json.gz").stat().st_size > 1000
    table = (run_dir / "profile" / "operators.txt").read_text()
    assert "Self CPU" in table and len([line for line in table.splitlines() if "%  " in line]) >= 10
    out = capsys.readouterr().out
    assert "open the trace in Perfetto" in out and "3 epochs of" in out and "of the time waiting for data" in out


def test_summary_of_metrics_names_the_best_epoch():
    rows = [
        *({"kind": "train", "epoch": e, "seconds": 2.0, "clips": 10, "data_time_frac": 0.25} for e in (1, 1, 2, 2)),
        *({"kind": "val", "epoch": epoch, "top1": top1} for epoch, top1 in ((1, 0.5), (2, 0.4))),
    ]
    assert summarize_run(rows) == (
        "best epoch 1: top-1 50.00 %; 2 epochs of 4.0 s, 5.0 clips/s, 25 % of the time waiting for data"
    )
    assert summarize_run([]) == ""
    assert "loss 0.1000" in summarize_run([{"kind": "val", "epoch": 3, "loss": 0.1}])


def test_out_of_memory_is_reported_with_what_to_lower(arguments, monkeypatch, capsys):
    def fail_with(error):
        def call(*values):
            raise error

        monkeypatch.setattr(Classify, "__call__", call)

    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        fail_with(error)
        train(arguments, "a", "run.resume=no", status=2)
        err = capsys.readouterr().err
        assert "out of memory" in err and "smaller data.batch_size" in err and "Traceback" not in err
    fail_with(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        train(arguments, "a", "run.resume=no")


def test_checkpoints_are_saved_after_minutes_and_epochs(arguments, monkeypatch):
    steps, save_last = [], RunDir.save_last

    def noted(self, state):
        steps.append(state["step"])
        save_last(self, state)

    monkeypatch.setattr(RunDir, "save_last", noted)
    train(arguments, "a", "run.checkpoint_minutes=1e-9", "data.val=")
    assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    steps.clear()
    train(arguments, "b", "data.val=")
    assert steps == [4, 8]


def test_tensorboard_has_scalars_images_and_the_configuration(arguments):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(train(arguments, "a", "optim.epochs=1") / "tb"))
    events.Reload()
    tags = events.Tags()
    names = "loss lr grad_norm top1 clips_per_s data_time_frac compute_frac other_frac".split()
    assert {*(f"train/{name}" for name in names), "val/top1"} <= set(tags["scalars"])
    assert tags["images"] == ["clips", "attention"]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "embed_dim: 32" in text and json.dumps("vivit_tiny").strip('"') in text


def test_figures_of_pretraining_are_drawn_every_figure_epochs(arguments, monkeypatch):
    steps: list[int] = []
    monkeypatch.setattr(train_command, "save_figures", lambda t, last: steps.append(t.step))
    run_dir = train(arguments, "a", *MASKFEAT, "task.figure_epochs=2", "optim.epochs=4", "data.val=")
    steps_per_epoch = len(read_metrics(run_dir)) // 4
    assert steps == [steps_per_epoch, 3 * steps_per_epoch, 4 * steps_per_epoch]
