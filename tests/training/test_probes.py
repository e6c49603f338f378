"""Probes by the commands: a grid in one pass, each probe as if it were alone, halved, resumed and tested."""

from __future__ import annotations

import json

import pytest
import torch

import eval as eval_command
import train as train_command
from configs.schema import Optim
from evaluation.features import Features
from networks import weights
from networks.export import main as export
from pipelines.loader import EvalVideoLoader
from pipelines.preview import main as preview
from tests.helpers.runs import (
    evaluate,
    has_same_weights,
    last_checkpoint,
    losses,
    metrics,
    read_csv,
    run,
    torchrun_command,
    train,
)
from training.probe_grid import ProbeResult, ProbeSetting, active_probes, metrics_row, rank_probes
from training.schedule import Schedule

PROBE = [
    "task.name=probe",
    "model.name=vjepa2_tiny",
    "model.args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
]
GRID = [
    *PROBE,
    "probe.kinds=attentive,linear_bn,attentive_2",
    "probe.lr=1e-2,1e-3",
    "probe.weight_decay=0,0.4",
    "data.num_clips=2",
    "optim.epochs=4",
    "optim.clip_grad_norm=0.3",
]


def probe_state(run_dir, index: int) -> dict[str, torch.Tensor]:
    prefix = f"probes.{index}."
    state = last_checkpoint(run_dir)["network"]
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def test_best_probe_of_a_grid_equals_the_same_probe_alone_bit_for_bit(arguments):
    grid = train(arguments, "grid", *GRID, "optim.lr=5e-3")
    rows = metrics(grid, "val")
    assert "the encoder has random weights; model.pretrained=CHECKPOINT gives" in (grid / "log.txt").read_text()
    best = max(rows, key=lambda row: (row["top1"], -row["loss"]))
    settings = [
        (k, lr, wd) for k in ("attentive", "linear_bn", "attentive_2") for lr in (1e-2, 1e-3) for wd in (0, 0.4)
    ]
    kind, lr, weight_decay = settings[best["probe"]]
    single = [f"probe.kinds={kind}", f"probe.lr={lr}", f"probe.weight_decay={weight_decay}"]
    alone = train(arguments, "alone", *GRID, *single, "optim.lr=5e-3")
    expected, actual = probe_state(alone, 0), probe_state(grid, best["probe"])
    assert expected.keys() == actual.keys() and all(torch.equal(actual[key], expected[key]) for key in expected)
    name = f"{kind}_lr{lr:g}_wd{weight_decay:g}"
    for row, other in zip(metrics(grid, "probes"), metrics(alone, "probes"), strict=True):
        assert all(row[f"{key}/{name}"] == other[f"{key}/{name}"] for key in ("top1", "top5", "loss"))
    saved, card = weights.load_network(grid / "best")
    expected_network, _ = weights.load_network(alone / "best")
    assert card["probe"] == {"kind": kind, "lr": lr, "weight_decay": weight_decay}
    assert all(torch.equal(value, expected_network.state_dict()[key]) for key, value in saved.state_dict().items())
    table = read_csv(grid / "probes.csv")
    assert len(table) == 12 and (table[0]["kind"], float(table[0]["lr"])) == (kind, lr)
    assert float(table[0]["top1"]) == pytest.approx(best["top1"], abs=1e-4)


@pytest.mark.slow
def test_probe_that_diverges_changes_no_other_and_does_not_stop_the_run(arguments):
    plain = train(arguments, "plain", *GRID, "probe.lr=1e-3")
    diverging = train(arguments, "diverging", *GRID, "probe.lr=1e-3,1e30", "run.max_nonfinite_steps=2")
    for index, other in ((0, 0), (1, 1), (2, 4), (3, 5)):
        expected, actual = probe_state(plain, index), probe_state(diverging, other)
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
    last = metrics(diverging, "probes")[-1]
    assert last["loss/attentive_lr1e+30_wd0"] is None or last["loss/attentive_lr1e+30_wd0"] > 10


def test_resumed_grid_continues_bit_for_bit_and_keeps_its_probes_stopped(arguments, monkeypatch):
    """Stopped within the third epoch, when half of the probes have been stopped already."""
    halving = [*GRID, "probe.halving_epochs=2", "run.checkpoint_minutes=0.00001"]
    whole = train(arguments, "whole", *halving)
    log = (whole / "log.txt").read_text()
    assert "6 of 12 probes go on; stopped: " in log and log.count("go on") == 1, "not after the last epoch"
    save = train_command.save_checkpoint

    def interrupt(t):
        save(t)
        if t.step == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "save_checkpoint", interrupt)
    train(arguments, "a", *halving, status=130)
    monkeypatch.undo()
    resumed = train(arguments, "a", *halving)
    assert losses(resumed) == losses(whole) and has_same_weights(resumed, whole)
    assert (resumed / "log.txt").read_text().count("random weights") == 1, "not once more when it goes on"
    assert metrics(resumed, "probes") == metrics(whole, "probes")
    last = metrics(resumed, "probes")[-1]
    assert sum(key.startswith("top1/") for key in last) == 6
    stopped = [row for row in read_csv(resumed / "probes.csv") if row["status"] == "stopped early"]
    assert len(stopped) == 6 and all(int(row["best_epoch"]) <= 2 for row in stopped)


def test_probes_that_were_stopped_take_no_step(arguments):
    run_dir = train(arguments, "a", *GRID, "probe.halving_epochs=1", "optim.clip_mode=per_param")
    stopped = [sum(key.startswith("top1/") for key in row) for row in metrics(run_dir, "probes")]
    assert stopped == [12, 6, 3, 2]
    assert all(row["skipped_steps"] == 0 and row["grad_norm"] > 0 for row in metrics(run_dir, "train"))


def test_run_stopped_before_its_last_validation_keeps_its_probes_stopped(arguments, monkeypatch):
    halving = [*GRID, "probe.kinds=linear", "probe.halving_epochs=1"]
    whole = train(arguments, "whole", *halving)
    validate = train_command.validate

    def interrupt(t):
        if t.train_loader.epoch == 4:
            raise KeyboardInterrupt
        validate(t)

    with monkeypatch.context() as patch:
        patch.setattr(train_command, "validate", interrupt)
        train(arguments, "a", *halving, status=130)
    assert metrics(train(arguments, "a", *halving), "probes") == metrics(whole, "probes")


def test_probes_of_one_lr_are_scheduled_although_rounding_exceeds_it():
    optim = Optim(lr=5e-3, min_lr=5e-3, warmup_epochs=0, epochs=2)
    schedule = Schedule(optim, steps_per_epoch=3, clips_per_step=4)
    for lr in (1e-4, 3e-4, 7e-4, 1e-3, 3e-3):
        assert schedule.scheduled_lr(0, lr) == pytest.approx(lr)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_grid_in_two_processes_equals_one(arguments, tmp_path, parallel):
    plain = [*arguments, *GRID, "optim.global_batch_size=4", "optim.clip_grad_norm=1"]
    halving = [f"probe.halving_epochs={2 if parallel == 'ddp' else 0}"]
    expected = train(plain, "one", *halving, "data.batch_size=4")
    two = [*plain, *halving, "data.batch_size=2", f"run.parallel={parallel}"]
    run(torchrun_command([*two, "run.name=two"]))
    run(torchrun_command([*two, "run.name=resumed", "optim.epochs=3"]))
    assert "resumed from" in run(torchrun_command([*two, "run.name=resumed"]))
    for (_, loss, _), (_, expected_loss, _) in zip(losses(tmp_path / "two"), losses(expected), strict=True):
        assert loss == pytest.approx(expected_loss, abs=1e-5)
    rows, expected_rows = (metrics(run_dir, "probes") for run_dir in (tmp_path / "two", expected))
    assert [row.keys() for row in rows] == [row.keys() for row in expected_rows]
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-4)
    assert weights.load_network(tmp_path / "two" / "best")[0].num_clips == 2


@pytest.mark.figures
def test_test_of_a_probe_pools_clips_that_are_spread_over_the_video(arguments):
    run_dir = train(arguments, "a", *GRID, "optim.epochs=1", "optim.warmup_epochs=0", "eval.num_clips=4")
    evaluate(run_dir)
    summary = json.loads((run_dir / "eval" / "4x3" / "summary.json").read_text())
    assert summary["scored"] == 13 and [row["num_clips"] for row in summary["by_num_clips"]] == [2, 4]
    assert "<h2>Probes</h2>" in (run_dir / "eval" / "4x3" / "report.html").read_text()
    for name in ("curves", "clips", "attention", "probes"):
        assert (run_dir / f"{name}.png").stat().st_size > 3000
    evaluate(run_dir, "eval.num_clips=3", status=2)


@pytest.mark.slow
def test_probe_of_several_clips_gives_features_is_exported_and_previewed(arguments, tmp_path, capsys):
    run_dir = train(arguments, "a", *GRID, "optim.epochs=1", "optim.warmup_epochs=0", "eval.num_clips=4")
    evaluate(run_dir, f"eval.features_path={tmp_path}/features.npz", "eval.num_crops=1")
    network, _ = weights.load_network(run_dir / "best")
    loader = EvalVideoLoader(
        str(tmp_path / "data" / "list.txt"),
        num_clips=4,
        num_crops=1,
        batch_size=1,
        num_frames=4,
        frame_stride=2,
        image_size=32,
        num_workers=0,
        device="cpu",
    )
    video = next(iter(loader)).video
    with torch.no_grad():
        expected = network.forward_features(torch.stack([video[0, [0, 2]], video[0, [1, 3]]])).mean(0)
    torch.testing.assert_close(Features.load(tmp_path / "features.npz").features[0], expected, atol=1e-5, rtol=1e-4)
    assert export([str(run_dir), str(tmp_path / "net.pt2")]) == 0
    assert json.loads((tmp_path / "net.json").read_text())["shape"]["video"] == ["batch", 2, 3, 4, 32, 32]
    assert eval_command.main([str(run_dir), f"video={tmp_path}/data/0.mp4"]) == 0
    assert "the probe was trained on 2 clips of a video at once" in capsys.readouterr().out
    assert preview([str(tmp_path / "data" / "list.txt"), "data.num_clips=2", f"out={tmp_path}/x.png"]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe.kinds=attentiv"], "probe.kinds=attentiv: expected attentive (a pooler of one block), attentive_N"),
        (["probe.lr=1e-3,0.001"], "probe: attentive_lr0.001_wd0 occurs twice"),
        (["probe.lr=-1"], "probe.lr=[-1.0]: expected numbers of 0 or more"),
        (["probe.layers=blocks.7"], "layer blocks.7: the network has no such layer; its blocks are blocks.0, blocks.1"),
        (["data.val="], "data.val=: expected a validation list with task.name=probe"),
        (["optim.ema_decay=0.9"], "optim.ema_decay=0.9: expected 0 with task.name=probe"),
        (["model.freeze=backbone"], "model.freeze=backbone: expected nothing with task.name=probe"),
        (["eval.num_clips=3"], "eval.num_clips=3: expected a multiple of data.num_clips=2"),
        (["task.name=classify"], "data.num_clips=2: expected 1 with task.name=classify"),
        (["model.name=maskfeat_tiny"], "model.name=maskfeat_tiny is not for task.name=probe"),
        (["model.name=vjepa2_tin"], "unknown network 'vjepa2_tin': did you mean 'vjepa2_tiny'?"),
        (["run.precision=fp16"], "run.precision=fp16: expected bf16 or fp32 with task.name=probe"),
    ],
)
def test_error_in_a_grid_is_one_line(arguments, capsys, overrides, message):
    train(arguments, "x", *GRID, *overrides, status=2)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_probe_starts_from_a_checkpoint_and_from_another_probe(arguments, capsys):
    size = PROBE[2]
    classifier = train(arguments, "c", "model.name=vjepa2_tiny", size, "optim.epochs=1", "optim.warmup_epochs=0")
    one = [*PROBE, "optim.epochs=1", "optim.warmup_epochs=0"]
    first = train(arguments, "first", *one, f"model.pretrained={classifier}")
    second = train(arguments, "second", *one, f"model.pretrained={first}")
    assert "the probe of the checkpoint (attentive, " in (second / "log.txt").read_text()
    encoder = {key: value for key, value in weights.load_network(classifier / "best")[0].state_dict().items()}
    for run_dir in (first, second):
        probed = weights.load_network(run_dir / "best")[0].encoder.state_dict()
        assert probed and all(torch.equal(value, encoder[key]) for key, value in probed.items())
    other = ["model.args={patch_size: 8, embed_dim: 32, depth: 3, num_heads: 2}", f"model.pretrained={classifier}"]
    train(arguments, "x", *one, *other, status=2)
    assert "does not fit this VJEPA2" in capsys.readouterr().err


# --- which probes go on -----------------------------------------------------------------------------------------------

SETTINGS = [ProbeSetting("linear", lr, 0.0) for lr in (1.0, 2.0, 3.0, 4.0, 5.0)]


def validation(epoch: int, top1: list[float], indices: list[int], loss: float = 1.0):
    results = {index: ProbeResult(value, 1.0, loss) for index, value in zip(indices, top1, strict=True)}
    return {"kind": "probes", "epoch": epoch, **metrics_row(SETTINGS, results)}


def test_better_half_of_the_probes_goes_on_every_few_epochs():
    rows = [
        validation(1, [0.9, 0, 0, 0, 0], [0, 1, 2, 3, 4]),
        validation(2, [0.1, 0.5, 0.3, 0.2, 0.4], [0, 1, 2, 3, 4]),
    ]
    assert active_probes(rows, SETTINGS, 2) == [1, 2, 4]
    assert active_probes([*rows, rows[-1]], SETTINGS, 2) == [1, 2, 4], "a validation that was made twice counts once"
    later = [*rows, validation(4, [0.5, 0.6, 0.7], [1, 2, 4])]
    assert active_probes(later, SETTINGS, 2) == [2, 4] and active_probes(later, SETTINGS, 0) == [0, 1, 2, 3, 4]
    last = [*later, validation(6, [0.1, 0.2], [2, 4]), validation(8, [0.1], [4])]
    assert active_probes(last, SETTINGS, 2) == [4], "one is left"


def test_probes_are_ranked_by_accuracy_then_loss():
    nan = float("nan")
    results = {0: (0.5, 2.0), 1: (0.5, nan), 2: (0.7, 9.0), 3: (0.5, 1.0)}
    assert rank_probes({key: ProbeResult(top1, 1.0, loss) for key, (top1, loss) in results.items()}) == [2, 3, 0, 1]
