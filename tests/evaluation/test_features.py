"""Features: of any layer, file format and batch size; nearest neighbors and a linear probe on them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.features import Features, feature_extractor
from evaluation.probes import linear_probe, main, nearest_neighbors
from networks import build
from tests.helpers.networks import EVERY, random_video, randomize
from tests.helpers.runs import evaluate, train


@pytest.mark.parametrize("kind", EVERY)
def test_features_of_any_layer_do_not_depend_on_other_clips(kind):
    name, kwargs = EVERY[kind]
    network, video = randomize(build(name, **kwargs), seed=0), random_video(3, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(feature_extractor(network)(video), network.forward_features(video))
        for layer in ("blocks.0", "blocks.1", "norm"):
            features = feature_extractor(network, layer)(video)
            assert features.ndim == 2 and len(features) == 3 and features.std() > 0
            assert torch.allclose(feature_extractor(network, layer)(video[1:2]), features[1:2], atol=1e-5)
        tokens = feature_extractor(network, "blocks.1", "tokens")(video)
        mean = feature_extractor(network, "blocks.1")(video)
        assert tokens.ndim == 3 and torch.allclose(tokens.mean(1), mean, atol=1e-5)
        if getattr(network, "has_cls_token", True):
            cls_token = feature_extractor(network, "blocks.1", "cls")(video)
            assert cls_token.shape == (3, tokens.shape[2])
            assert not torch.allclose(cls_token, tokens.mean(1), atol=1e-3)
        else:
            with pytest.raises(ValueError, match="no class token"):
                feature_extractor(network, "blocks.1", "cls")
    assert not any(module._forward_hooks for module in network.modules()), "no hook may be left"
    with pytest.raises(ValueError, match=r"blocks\.9: the network has no such layer; its blocks are blocks\.0, "):
        feature_extractor(network, "blocks.9")


@pytest.fixture
def run_dir(arguments, tmp_path) -> Path:
    """Return the folder of a run over a list of which video 1 is missing."""
    (tmp_path / "data" / "1.mp4").unlink()
    return train(arguments, "a", "optim.epochs=1")


def test_features_are_the_same_in_every_format_and_batch_size(run_dir, tmp_path, capsys):
    read = []
    for name, batch_size in (("x.npz", 2), ("deep/x.safetensors", 5)):
        evaluate(run_dir, f"eval.features_path={tmp_path / name}", f"eval.batch_size={batch_size}")
        read.append(Features.load(tmp_path / name))
    assert "12 of 13 videos, 32 features" in capsys.readouterr().out
    expected, actual = read
    assert torch.allclose(actual.features, expected.features, atol=1e-6)
    assert torch.equal(actual.label, expected.label) and actual.video == expected.video
    assert [Path(video).stem for video in actual.video] == [str(index) for index in range(13) if index != 1]
    assert actual.label.tolist() == [index % 6 for index in range(13) if index != 1]
    assert not (run_dir / "eval").exists(), "no test may be made"


def test_features_of_a_layer_and_its_tokens_are_written(run_dir, tmp_path, capsys):
    evaluate(run_dir, f"eval.features_path={tmp_path}/head.npz")
    evaluate(run_dir, f"eval.features_path={tmp_path}/layer.npz", "eval.feature_layer=blocks.0")
    assert not torch.equal(
        Features.load(tmp_path / "layer.npz").features, Features.load(tmp_path / "head.npz").features
    )
    layer = ["eval.feature_layer=blocks.0", "eval.feature_pool=tokens"]
    evaluate(run_dir, f"eval.features_path={tmp_path}/tokens.npz", *layer)
    assert Features.load(tmp_path / "tokens.npz").features.shape == (12, 6 * (1 + 2 * 16), 32), "of six views"
    capsys.readouterr()
    assert main([str(tmp_path / "tokens.npz")] * 2) == 0
    assert "32 features" in capsys.readouterr().out, "the mean of the tokens"


@pytest.mark.parametrize(
    ("path", "layer", "message"),
    [
        ("x.txt", "", "ends in .npz or .safetensors"),
        ("x.npz", "block.0", "no such layer"),
        ("x.npz", "blocks", "does not call it by itself"),
        ("file/x.npz", "", "exists"),
    ],
)
def test_features_are_refused_with_the_reason(run_dir, tmp_path, path, layer, message, capsys):
    (tmp_path / "file").write_text("")
    evaluate(run_dir, f"eval.features_path={tmp_path}/{path}", f"eval.feature_layer={layer}", status=2)
    assert message in capsys.readouterr().err


def test_nearest_neighbors_vote_by_similarity():
    train_set = Features(torch.tensor([[1.0, 0], [0, 2.0], [-3.0, 0]]), torch.tensor([0, 1, 1]), ["a", "b", "c"])
    test_set = Features(torch.tensor([[5.0, 5.0]]), torch.tensor([1]), ["d"])
    votes = nearest_neighbors(train_set, test_set, 2, k=3, temperature=0.5)
    expected = np.exp(np.array([np.sqrt(0.5), np.sqrt(0.5), -np.sqrt(0.5)]) / 0.5)
    expected /= expected.sum()
    assert votes[0].tolist() == pytest.approx([expected[0], expected[1] + expected[2]], rel=1e-5)
    assert nearest_neighbors(train_set, test_set, 2, k=50).shape == (1, 2)


def test_linear_probe_separates_linear_classes_at_any_scale():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 10, generator=generator) * torch.arange(1, 11) + 5
    label = (features[:, :3] - 5).div(torch.arange(1, 4)).argmax(1)
    train_set, test_set = Features(features[:200], label[:200], []), Features(features[200:], label[200:], [])
    logits = linear_probe(train_set, test_set, 3)
    assert (logits.argmax(1) == test_set.label).float().mean() > 0.93
    scaled_train_set = Features(features[:200] * 1000 + 7, label[:200], [])
    assert linear_probe(train_set, scaled_train_set, 3).shape == (200, 3)
    scaled_test_set = Features(features[200:] * 1000 + 7, label[200:], [])
    assert torch.allclose(linear_probe(scaled_train_set, scaled_test_set, 3), logits, atol=0.02)


@pytest.fixture
def separable(tmp_path) -> list[str]:
    """Return the paths of training and test features of two distant classes."""
    label = torch.arange(40) % 2
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) + 6 * (2 * label[:, None] - 1)
    Features(features[:20], label[:20], ["x"] * 20).save(tmp_path / "a.npz")
    Features(features[20:], label[20:], ["x"] * 20).save(tmp_path / "b.safetensors")
    Features(features[:, :2], label, ["x"] * 40).save(tmp_path / "d.npz")
    return [str(tmp_path / "a.npz"), str(tmp_path / "b.safetensors")]


def test_probes_command_prints_the_accuracy_of_both_classifiers(separable, capsys):
    assert main([*separable, "k=5"]) == 0
    out = capsys.readouterr().out
    assert "5 nearest neighbors" in out and out.count("top-1 100.00 %") == 2
    assert "20 training videos, 20 test videos, 4 features" in out


def test_few_shot_accuracy_is_that_of_the_drawn_videos(separable, capsys):
    """Of overlapping classes: with all of ten videos per class, every seed draws the same."""
    train_set, test_set = (Features.load(Path(path)) for path in separable)
    noisy = Features(train_set.features + 4 * torch.randn(20, 4), train_set.label, train_set.video)
    noisy.save(Path(separable[0]))
    assert main([*separable, "shots=1,10", "seeds=3", "k=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"1 per class, 3 seeds: 1 nearest neighbors \d+\.\d\d \+- \d", lines[3])
    whole = [line.split("top-1 ")[1].split(" %")[0] for line in lines[:2]]
    assert lines[4] == (
        f"10 per class, 3 seeds: 1 nearest neighbors {whole[0]} +- 0.00 %, linear probe {whole[1]} +- 0.00 %"
    )


def test_probes_command_refuses_files_that_do_not_fit(separable, tmp_path, capsys):
    (tmp_path / "c.npz").write_text("no features")
    errors = {
        "expected TRAIN TEST": separable[:1],
        "not readable as features": [separable[0], f"{tmp_path}/c.npz"],
        "expected k of 1 or more": [*separable, "k=0"],
        "expected shots such as 1,5,10": [*separable, "shots=0"],
        "2 features": [separable[0], f"{tmp_path}/d.npz"],
    }
    for message, arguments in errors.items():
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
