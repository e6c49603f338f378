"""Every architecture gives the same logits through torch.export and ONNX, for any batch size."""

import json

import pytest
import torch

import train as train_command
from networks import build, weights
from networks.export import export, main
from tests.helpers.networks import EVERY, random_video, randomize

FAST = ("vivit joint",)
KINDS = [pytest.param(kind, marks=[] if kind in FAST else [pytest.mark.slow]) for kind in EVERY]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_exported_logits_equal_those_of_the_network(kind, suffix, tmp_path):
    name, kwargs = EVERY[kind]
    network = randomize(build(name, **kwargs), seed=0)
    difference = export(network, tmp_path / f"x{suffix}")
    assert difference == 0 if suffix == ".pt2" else difference < 1e-4
    if suffix == ".pt2":  # a batch size that the export did not use
        video = random_video(7, 3, 4, 32, 32)
        exported = torch.export.load(tmp_path / "x.pt2").module()
        with torch.no_grad():
            assert torch.allclose(exported(video), network(video), atol=1e-5)


def test_command_exports_a_run_and_describes_it(arguments, tmp_path, capsys):
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    assert main([str(tmp_path / "a"), str(tmp_path / "out" / "net.pt2")]) == 0
    description = json.loads((tmp_path / "out" / "net.json").read_text())
    assert description["shape"] == {"video": ["batch", 3, 4, 32, 32], "logits": ["batch", 6]}
    assert 0 <= description["max_logit_difference"] < 1e-4
    assert description["input"]["mean"] == [0.45] * 3 and description["id2label"]["5"] == "5"
    network, _ = weights.load_network(tmp_path / "a" / "best")
    video = random_video(3, 3, 4, 32, 32)
    exported = torch.export.load(tmp_path / "out" / "net.pt2").module()
    with torch.no_grad():
        assert torch.allclose(exported(video), network(video), atol=1e-6)
    capsys.readouterr()
    errors = {
        "ends in .pt2 or .onnx": [str(tmp_path / "a"), "net.pth"],
        "config": [str(tmp_path), "x.pt2"],
        "expected a run and a file to write, got one": ["one"],
    }
    for message, argv in errors.items():
        assert main(argv) == 2
        assert message in capsys.readouterr().err
