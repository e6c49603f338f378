"""The head first and then everything, other rates for the head, and averages of the epochs of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_command
import networks
from evaluation.soups import average, best_soup, try_soups
from networks import weights
from tests.helpers.networks import SMALL
from tests.helpers.runs import (
    ONE_EPOCH,
    assert_resumed_run_is_bit_identical,
    assert_two_processes_equal_one,
    evaluate,
    last_checkpoint,
    metrics,
    train,
)
from training.optimizers import parameter_groups

THREE = ["optim.epochs=3", "optim.warmup_epochs=0", "optim.lr=1e-2"]
KEEP = [*THREE, "run.keep_checkpoints=3"]


def test_only_the_head_is_trained_in_the_first_epochs(arguments):
    start = train(arguments, "start", *ONE_EPOCH, "optim.lr=0", "optim.min_lr=0")
    before = last_checkpoint(start)["network"]
    keys = [*THREE, f"model.pretrained={start}", "optim.head_epochs=2", "run.keep_checkpoints=3"]
    run_dir = train(arguments, "a", *keys)
    for epoch in (1, 2, 3):
        state = load_file(run_dir / "checkpoints" / f"epoch_{epoch}" / "model.safetensors")
        changed = {key for key in state if not torch.equal(state[key], before[key])}
        assert {"head.weight", "head.bias"} <= changed
        assert (changed == {"head.weight", "head.bias"}) is (epoch < 3)
    log = (run_dir / "log.txt").read_text()
    assert log.index("only the head is trained") < log.index("the whole network is trained from here on")


@pytest.mark.parametrize("batches", [3, 6], ids=["while the head is trained", "while all is trained"])
def test_stopped_and_resumed_run_in_stages_is_bit_identical(arguments, batches, monkeypatch):
    keys = ["optim.head_epochs=1", "optim.backbone_lr_scale=0.1", "optim.layer_decay=0.8", "optim.ema_decay=0.9"]
    assert_resumed_run_is_bit_identical(arguments, *keys, monkeypatch=monkeypatch, batches=batches)


@pytest.mark.slow
def test_run_in_stages_of_two_processes_equals_one(arguments):
    keys = ["optim.head_epochs=1", "optim.backbone_lr_scale=0.3", "model.args={embed_dim: 32, depth: 2, num_heads: 2}"]
    assert_two_processes_equal_one(arguments, *keys, parallel="ddp")


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_rate_of_all_but_the_head_is_scaled(layer_decay):
    network = networks.build("vjepa2_tiny", **SMALL)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    plain, scaled = (
        {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
        for groups in (parameter_groups(network, 0.1, layer_decay, scale) for scale in (1.0, 0.1))
    )
    assert plain.keys() == scaled.keys() == set(names.values())
    for name, rate in plain.items():
        assert scaled[name] == pytest.approx(rate * (1 if name.startswith(("head.", "pooler.")) else 0.1)), name


def test_checkpoints_of_the_last_epochs_are_kept(arguments):
    run_dir = train(arguments, "a", *THREE, "run.keep_checkpoints=2")
    folders = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert folders == ["epoch_2", "epoch_3"]
    last, _ = weights.load_network(run_dir / "checkpoints" / "epoch_3")
    state = last_checkpoint(run_dir)["network"]
    assert all(torch.equal(state[key], value) for key, value in last.state_dict().items())


def test_soup_is_the_mean_of_the_weights(tmp_path):
    states = [networks.build("videomae_tiny", **SMALL) for _ in range(3)]
    for number, network in enumerate(states):
        weights.save_network(tmp_path / str(number), network, "videomae_tiny")
    mean = average([tmp_path / str(number) for number in range(3)])
    for key, value in mean.items():
        torch.testing.assert_close(value, sum(network.state_dict()[key] for network in states) / 3)
    alone = average([tmp_path / "1"])
    assert all(torch.equal(alone[key], value) for key, value in states[1].state_dict().items())


def test_greedy_soup_takes_what_makes_it_better(tmp_path):
    """The score of weights w is 10 minus |mean - 4|: 3 and 6 are better together, with 9 they are not."""
    folders = {}
    for epoch, value in ((1, 9.0), (2, 3.0), (3, 6.0)):
        network = torch.nn.Linear(1, 1)
        network.kwargs = {}
        torch.nn.init.constant_(network.weight, value)
        folders[epoch] = tmp_path / str(epoch)
        weights.save_network(folders[epoch], network, "linear")
    soups = try_soups(folders, lambda state: 10 - abs(state["weight"].item() - 4))
    scores = {soup.name: (soup.epochs, soup.score) for soup in soups}
    assert scores["epoch 2"] == ([2], 9.0) and scores["last 3"] == ([1, 2, 3], 8.0)
    assert scores["greedy"] == ([2, 3], 9.5) and best_soup(soups).epochs == [2, 3]


@pytest.mark.parametrize("adapter", [False, True])
def test_soup_of_a_run_is_written_as_a_run_and_tested(arguments, capsys, adapter):
    keys = []
    if adapter:
        base = train(arguments, "base", *ONE_EPOCH)
        keys = [f"model.pretrained={base}", "adapter.name=lora"]
    run_dir = train(arguments, "a", *KEEP, *keys)
    capsys.readouterr()
    assert eval_command.main(["--soup", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert out.count("epoch ") == 3 and "last 3" in out and "greedy" in out and out.count("<- best") == 1
    for row in metrics(run_dir, "val"):
        line = next(line for line in out.splitlines() if line.startswith(f"epoch {row['epoch']} "))
        assert f"top1 {100 * row['top1']:6.2f} %" in line, "alone an epoch has the score of its validation"
    evaluate(run_dir / "soup")
    soup, card = weights.load_network(run_dir / "soup" / "best")
    assert card["soup"]["epochs"] and hasattr(soup, "adapter") is adapter


def test_soup_of_a_run_without_checkpoints_is_refused(arguments, capsys):
    run_dir = train(arguments, "a", *ONE_EPOCH)
    assert eval_command.main(["--soup", str(run_dir)]) == 2
    assert "0 networks in checkpoints/: expected at least two, of a run with" in capsys.readouterr().err
    shutil.copytree(run_dir / "best", Path(run_dir) / "checkpoints" / "epoch_1")
    assert eval_command.main(["--soup"]) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["optim.head_epochs=2"], "optim.head_epochs=2: expected less than optim.epochs=2"),
        (["optim.head_epochs=1", "run.parallel=fsdp"], "optim.head_epochs=1: expected 0 with fsdp"),
        (["task.name=probe", "run.keep_checkpoints=2"], "run.keep_checkpoints=2: expected 0 with task.name=probe"),
    ],
)
def test_wrong_stages_are_refused(arguments, capsys, keys, message):
    train(arguments, "a", *keys, status=2)
    assert message in capsys.readouterr().err
