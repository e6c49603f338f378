"""eval.py: every video scored once, whatever the batch size or number of ranks, from views that reach every border."""

from __future__ import annotations

import json
from fractions import Fraction

import matplotlib.image
import numpy as np
import pytest
import torch

from configs import loading
from evaluation.evaluate import evaluate
from evaluation.report import write_report
from networks import weights
from pipelines.decode.encoder import encode_video
from tests.helpers import runs
from tests.helpers.loaders import CLASSES, build_loader, first_video
from tests.helpers.runs import metrics, read_csv, train
from training.setup import build_network
from utils.distributed import World


class AlwaysClass1(torch.nn.Module):
    """Predict class 1 for every clip."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 3, 0, 0, 0, 0]).expand(len(video), -1)


def test_constant_network_scores_the_frequency_of_its_class(arguments):
    scores = evaluate(AlwaysClass1(), build_loader(loading.load_config(None, arguments), "test"), World())
    assert scores.topk(1) == pytest.approx(2 / 13) and scores.scored.all()
    assert scores.coverage() == "coverage: 13 of 13 videos scored, 0 failed, 1 padded"


def test_unreadable_video_is_reported_and_counts_as_wrong(arguments, tmp_path):
    (tmp_path / "data" / "1.mp4").unlink()  # of class 1, which the network would get right
    loader = build_loader(loading.load_config(None, arguments), "test")
    scores = evaluate(AlwaysClass1(), loader, World())
    assert scores.topk(1) == pytest.approx(1 / 13) and not scores.scored[1]
    report = write_report(tmp_path / "r", scores, loader.videos, CLASSES, {"num_clips": 2, "num_crops": 3})
    assert "12 of 13 videos scored, 1 failed" in report.text and "1.mp4: no such file" in report.text
    row = read_csv(tmp_path / "r" / "predictions.csv")[1]
    assert row["status"] == "failed: no such file" and not row["class1"]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_do_not_depend_on_the_batch_size(arguments, batch_size):
    torch.manual_seed(0)
    network = build_network(loading.load_config(None, arguments), 6)
    actual, expected = (
        evaluate(
            network, build_loader(loading.load_config(None, [*arguments, f"eval.batch_size={size}"]), "test"), World()
        ).probs
        for size in (batch_size, 13)
    )
    assert torch.allclose(actual, expected, atol=1e-6)


@pytest.mark.slow
def test_predictions_do_not_depend_on_batch_size_or_ranks(run_dir):
    results = []
    for batch_size in (1, 4, 7):
        test_dir = runs.evaluate(run_dir, f"eval.batch_size={batch_size}")
        results.append(read_csv(test_dir / "predictions.csv"))
    runs.run(runs.torchrun_command([str(run_dir), "eval.batch_size=3"], "eval.py"))
    results.append(read_csv(test_dir / "predictions.csv"))
    assert all(result == results[0] for result in results[1:])


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_average_is_over_probabilities_or_logits_of_all_views(arguments, average):
    torch.manual_seed(0)
    logits = torch.randn(13, 2, 3, 6)  # of each video, clip, crop

    class Lookup(torch.nn.Module):
        """Return the logits of a video whose index is its first pixel."""

        def forward(self, video):
            index = video[:, 0, 0, 0, 0].long()
            return logits.flatten(1, 2)[index, torch.arange(len(index)) % 6]

    loader = build_loader(loading.load_config(None, [*arguments, f"eval.average={average}"]), "test")
    decode = loader.decoder.decode

    def decode_to_indices(batch_index):
        decoded = decode(batch_index)
        index = decoded.numbers[:, 1].clamp_min(0)[:, None, None, None, None, None]
        return decoded._replace(video=index.expand(-1, 6, 3, 4, 2, 2).float())

    loader.decoder.decode = decode_to_indices  # type: ignore[method-assign]
    scores = evaluate(Lookup(), loader, World(), average=average)
    views = logits.softmax(-1) if average == "probs" else logits
    mean = views.mean((1, 2))
    expected = mean if average == "probs" else mean.softmax(-1)
    assert torch.allclose(scores.probs, expected, atol=1e-6)
    first_clip = views[:, 0].mean(1)
    correct = torch.stack([first_clip.argmax(-1) == scores.label, mean.argmax(-1) == scores.label], 1)
    assert torch.equal(scores.correct[..., 0], correct)


@pytest.mark.parametrize("decoder", ["dali", "pyav"])
@pytest.mark.parametrize(("width", "height"), [(128, 64), (64, 128), (96, 96)])
def test_crops_reach_every_border(tmp_path, arguments, decoder, width, height):
    """A red, green, blue and white bar lies along each border: the first crop has one end, the last crop the other."""
    frames = np.full((30, height, width, 3), 90, np.uint8)
    bar = 8
    frames[:, :, :bar], frames[:, :, -bar:] = (255, 0, 0), (0, 0, 255)
    frames[:, :bar, bar:-bar], frames[:, -bar:, bar:-bar] = (0, 255, 0), (255, 255, 255)
    encode_video(tmp_path / "x.mp4", frames, Fraction(30), "vp9", gop=12)
    (tmp_path / "one.txt").write_text("x.mp4 0\n")
    overrides = [
        f"data.val={tmp_path}/one.txt",
        f"data.decoder={decoder}",
        "data.image_size=64",
        "eval.num_clips=1",
        "eval.batch_size=1",
        "data.mean=0,0,0",
        "data.std=1,1,1",
    ]
    cfg = loading.load_config(None, [*arguments, *overrides])
    first_crop, _, last_crop = (255 * first_video(build_loader(cfg, "test", ["a"]))[0, :, :, 0]).round()
    borders = {
        "left": (first_crop[:, 32, 2], (255, 0, 0)),
        "right": (last_crop[:, 32, -3], (0, 0, 255)),
        "top": (first_crop[:, 2, 32], (0, 255, 0)),
        "bottom": (last_crop[:, -3, 32], (255, 255, 255)),
    }
    for name, (pixel, color) in borders.items():
        assert (pixel - torch.tensor(color)).abs().max() < 40, (name, pixel)


@pytest.mark.figures
@pytest.mark.parametrize("kind", ["last", "rollout"])
def test_attention_map_draws_four_videos_in_color(run_dir, kind):
    test_dir = runs.evaluate(run_dir, f"eval.attention_map={kind}")
    image = matplotlib.image.imread(test_dir / "attention.png")[..., :3]
    assert image.shape[0] > 8 * 60, "eight rows"
    assert (image.max(-1) - image.min(-1)).mean() > 0.05, "colored"


def test_files_of_a_test_agree(run_dir):
    test_dir = runs.evaluate(run_dir)
    summary = json.loads((test_dir / "summary.json").read_text())
    predictions = read_csv(test_dir / "predictions.csv")
    assert summary["videos"] == summary["scored"] == len(predictions) == 13 and summary["padded"] == 1
    correct = sum(row["class1"] == row["label"] for row in predictions)
    assert summary["top1"] == pytest.approx(correct / 13)
    per_class = read_csv(test_dir / "per_class.csv")
    assert sum(int(row["correct"]) for row in per_class) == correct
    assert sum(int(row["videos"]) for row in per_class) == 13


def test_best_network_scores_the_best_validation(arguments):
    run_dir = train(arguments, "a")
    network, card = weights.load_network(run_dir / "best")
    assert card["id2label"] == {index: str(index) for index in range(6)} and card["input"]["image_size"] == 32
    best = max(row["top1"] for row in metrics(run_dir, "val"))
    scores = evaluate(network, build_loader(loading.load_config(None, arguments), "val"), World())
    assert scores.topk(1) == pytest.approx(best)


def test_folder_that_is_no_run_is_refused(tmp_path, capsys):
    runs.evaluate(tmp_path, status=2)
    assert "not a run folder" in capsys.readouterr().err
