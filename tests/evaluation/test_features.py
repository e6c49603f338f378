"""features: the same for any batch and file format, in the order of the list; neighbours and a probe by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import eval as eval_command
import train as train_command
from evaluation.features import Features, reader
from evaluation.probes import linear_probe, main, nearest_neighbours
from networks import build, weights
from tests.helpers.networks import EVERY, random_video, randomise


@pytest.mark.parametrize("kind", EVERY)
def test_of_any_layer_and_clip_by_clip(kind):
    name, kwargs = EVERY[kind]
    network, video = randomise(build(name, **kwargs), seed=0), random_video(3, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(reader(network)(video), network.forward_features(video))
        for layer in ("blocks.0", "blocks.1", "norm"):
            found = reader(network, layer)(video)
            assert found.ndim == 2 and len(found) == 3 and found.std() > 0
            assert torch.allclose(reader(network, layer)(video[1:2]), found[1:2], atol=1e-5)
        tokens = reader(network, "blocks.1", "tokens")(video)
        assert tokens.ndim == 3 and torch.allclose(tokens.mean(1), reader(network, "blocks.1")(video), atol=1e-5)
        if getattr(network, "has_cls_token", True):
            first = reader(network, "blocks.1", "cls")(video)
            assert first.shape == (3, tokens.shape[2]) and not torch.allclose(first, tokens.mean(1), atol=1e-3)
        else:
            with pytest.raises(ValueError, match="no class token"):
                reader(network, "blocks.1", "cls")
    assert not any(module._forward_hooks for module in network.modules()), "no hook is left"
    with pytest.raises(ValueError, match=r"blocks\.9: the network has no such layer; its blocks are blocks\.0, "):
        reader(network, "blocks.9")


def test_files_and_batches(arguments, tmp_path, capsys):
    (tmp_path / "data" / "1.mp4").unlink()
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    found = []
    for name, batch in (("x.npz", 2), ("deep/x.safetensors", 5)):
        words = [str(tmp_path / "a"), f"eval.features={tmp_path / name}", f"eval.batch={batch}"]
        assert eval_command.main(words) == 0
        found.append(Features.load(tmp_path / name))
    assert "12 of 13 videos, 32 features" in capsys.readouterr().out
    a, b = found
    assert torch.allclose(a.features, b.features, atol=1e-6) and torch.equal(a.label, b.label) and a.video == b.video
    assert [Path(video).stem for video in a.video] == [str(n) for n in range(13) if n != 1]
    assert a.label.tolist() == [n % 6 for n in range(13) if n != 1]
    network, _ = weights.load(tmp_path / "a" / "best")
    assert eval_command.main([str(tmp_path / "a"), f"eval.features={tmp_path}/y.npz", "eval.layer=blocks.0"]) == 0
    assert not torch.equal(Features.load(tmp_path / "y.npz").features, a.features)
    words = [f"eval.features={tmp_path}/z.npz", "eval.layer=blocks.0", "eval.pool=tokens"]
    assert eval_command.main([str(tmp_path / "a"), *words]) == 0
    assert Features.load(tmp_path / "z.npz").features.shape == (12, 1 + 2 * 16, 32)
    assert main([str(tmp_path / "z.npz")] * 2) == 2 and "holds tokens" in capsys.readouterr().err
    assert not (tmp_path / "a" / "eval").exists(), "no test is made"
    (tmp_path / "file").write_text("")
    mistakes = {
        "ends in .npz or .safetensors": "x.txt", "no such layer": "x.npz eval.layer=block.0",
        "does not run this layer": "x.npz eval.layer=blocks", "exists": "file/x.npz",
    }  # fmt: skip
    for message, wrong in mistakes.items():
        assert eval_command.main([str(tmp_path / "a"), *f"eval.features={tmp_path}/{wrong}".split()]) == 2
        assert message in capsys.readouterr().err


def test_neighbours_by_hand():
    known = Features(torch.tensor([[1.0, 0], [0, 2.0], [-3.0, 0]]), torch.tensor([0, 1, 1]), ["a", "b", "c"])
    asked = Features(torch.tensor([[5.0, 5.0]]), torch.tensor([1]), ["d"])
    votes = nearest_neighbours(known, asked, 2, k=3, temperature=0.5)
    weights_ = np.exp(np.array([np.sqrt(0.5), np.sqrt(0.5), -np.sqrt(0.5)]) / 0.5)
    weights_ /= weights_.sum()
    assert votes[0].tolist() == pytest.approx([weights_[0], weights_[1] + weights_[2]], rel=1e-5)
    assert nearest_neighbours(known, asked, 2, k=50).shape == (1, 2)


def test_a_probe_finds_what_is_linear_and_is_at_its_minimum():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(300, 10, generator=draw) * torch.arange(1, 11) + 5
    label = (features[:, :3] - 5).div(torch.arange(1, 4)).argmax(1)
    known, asked = Features(features[:200], label[:200], []), Features(features[200:], label[200:], [])
    logits = linear_probe(known, asked, 3)
    assert (logits.argmax(1) == asked.label).float().mean() > 0.93
    again = linear_probe(known, Features(features[:200] * 1000 + 7, label[:200], []), 3)
    assert again.shape == (200, 3)
    scaled = Features(features[:200] * 1000 + 7, label[:200], [])
    asked = Features(features[200:] * 1000 + 7, label[200:], [])
    assert torch.allclose(linear_probe(scaled, asked, 3), logits, atol=0.02), "whatever the scale of features"


def test_the_command(tmp_path, capsys):
    label = torch.arange(40) % 2
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) + 6 * (2 * label[:, None] - 1)
    Features(features[:20], label[:20], ["x"] * 20).save(tmp_path / "a.npz")
    Features(features[20:], label[20:], ["x"] * 20).save(tmp_path / "b.safetensors")
    paths = [str(tmp_path / "a.npz"), str(tmp_path / "b.safetensors")]
    assert main([*paths, "k=5"]) == 0
    out = capsys.readouterr().out
    assert "5 nearest neighbours" in out and out.count("top-1 100.00 %") == 2 and "20 videos known, 20 asked" in out
    (tmp_path / "c.npz").write_text("no features")
    Features(features[:, :2], label, ["x"] * 40).save(tmp_path / "d.npz")
    mistakes = {
        "expected TRAIN TEST": paths[:1], "not readable as features": [paths[0], f"{tmp_path}/c.npz"],
        "expected k of 1 or more": [*paths, "k=0"], "2 features": [paths[0], f"{tmp_path}/d.npz"],
    }  # fmt: skip
    for message, words in mistakes.items():
        assert main(words) == 2
        assert message in capsys.readouterr().err
