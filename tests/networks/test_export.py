"""export: every architecture gives the same logits through torch.export and ONNX, for any number of clips."""

from __future__ import annotations

import json

import pytest
import torch

import train as train_command
from networks import build, weights
from networks.export import export, main
from tests.helpers.networks import EVERY, random_video, randomise

FAST = ("vivit joint", "timesformer divided")
KINDS = [pytest.param(kind, marks=[] if kind in FAST else [pytest.mark.slow]) for kind in EVERY]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_logits_are_those_of_the_network(kind, suffix, tmp_path):
    name, kwargs = EVERY[kind]
    network = randomise(build(name, **kwargs), seed=0)
    apart = export(network, tmp_path / f"x{suffix}")
    assert apart == 0 if suffix == ".pt2" else apart < 1e-4
    if suffix == ".pt2":  # in a batch that was never seen
        video = random_video(7, 3, 4, 32, 32)
        again = torch.export.load(tmp_path / "x.pt2").module()
        with torch.no_grad():
            assert torch.allclose(again(video), network(video), atol=1e-5)


def test_the_command(arguments, tmp_path, capsys):
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    assert main([str(tmp_path / "a"), str(tmp_path / "out" / "net.pt2")]) == 0
    about = json.loads((tmp_path / "out" / "net.json").read_text())
    assert about["shape"] == {"video": ["batch", 3, 4, 32, 32], "logits": ["batch", 6]}
    assert about["input"]["mean"] == [0.45] * 3 and about["id2label"]["5"] == "5"
    network, _ = weights.load(tmp_path / "a" / "best")
    video = random_video(3, 3, 4, 32, 32)
    again = torch.export.load(tmp_path / "out" / "net.pt2").module()
    with torch.no_grad():
        assert torch.allclose(again(video), network(video), atol=1e-6)
    capsys.readouterr()
    mistakes = {"ends in .pt2 or .onnx": [str(tmp_path / "a"), "net.pth"], "config": [str(tmp_path), "x.pt2"]}
    for message, words in mistakes.items():
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert main(["one"]) == 2
