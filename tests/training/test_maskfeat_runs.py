"""The commands with MaskFeat: pre-train, look at it, fine-tune and probe from its folder (test_train.py: resuming)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

import eval as eval_command
import train as train_command
from networks import weights
from pipelines.data.dataset import Clip, first_of_each_class
from tests.helpers.foreign_checkpoints import write_checkpoint
from training.history import read_metrics

COMMON = [
    "data.frames=4", "data.stride=2", "data.size=32", "data.batch=3", "data.workers=0", "data.threads=1",
    "optim.epochs=2", "optim.warmup_epochs=0.5", "eval.clips=2", "eval.batch=2", "run.log_every=1", "run.device=cpu",
    "run.threads=1",
]  # fmt: skip
PRETRAIN = ["task.name=maskfeat", "model.name=maskfeat_tiny", "task.show_epochs=1"]
CLASSIFY = ["model.name=mvit_v2_tiny", "model.args={width_change: mlp, pooling: fc_norm}"]


@pytest.fixture
def arguments(clips_folder, tmp_path) -> list[str]:
    (tmp_path / "data").mkdir()
    path = clips_folder(tmp_path / "data", 13)
    return [f"data.train={path}", f"data.val={path}", f"run.folder={tmp_path}", *COMMON]


def rows(folder: Path, kind: str) -> list[dict]:
    timed = ("clips_per_s", "data", "compute", "other")
    return [{k: v for k, v in r.items() if k not in timed} for r in read_metrics(folder) if r["kind"] == kind]


def test_from_pretraining_to_probe(arguments, tmp_path, capsys):
    assert train_command.main([*arguments, *PRETRAIN, "run.name=pre"]) == 0
    train = rows(tmp_path / "pre", "train")
    assert all(row["baseline"] > 0 and "top1" not in row for row in train)
    assert (tmp_path / "pre" / "curves.png").exists()
    log = (tmp_path / "pre" / "log.txt").read_text()
    assert "mean HOG" in log and "top-1" not in log

    assert eval_command.main([str(tmp_path / "pre")]) == 0
    summary = json.loads((tmp_path / "pre/eval/pretraining/summary.json").read_text())
    assert summary["videos"] == 13 and summary["loss"] == min(row["loss"] for row in rows(tmp_path / "pre", "val"))
    picture = imread(tmp_path / "pre/eval/pretraining/predictions.png")
    assert picture.shape[0] > 100 and picture[..., :3].std() > 0.1

    start, _ = weights.load(tmp_path / "pre" / "best")
    tune = [*arguments, *CLASSIFY, f"model.init={tmp_path / 'pre'}", "optim.layer_decay=0.75"]
    assert train_command.main([*tune, "run.name=tune"]) == 0
    assert "maskfeat_tiny -> MViT" in (tmp_path / "tune/log.txt").read_text()
    tuned = torch.load(tmp_path / "tune/last.pt", weights_only=True)["network"]
    key = "blocks.1.attn.qkv.weight"
    assert not torch.equal(tuned[key], start.backbone.state_dict()[key])

    assert train_command.main([*tune, "run.name=probe", "model.freeze=backbone", "optim.layer_decay=1"]) == 0
    probed = torch.load(tmp_path / "probe/last.pt", weights_only=True)["network"]
    whole = {k: v for k, v in start.backbone.state_dict().items() if not k.startswith("norm")}
    same = {k for k, v in whole.items() if v.shape == probed[k].shape and torch.equal(v, probed[k])}
    assert {k for k in whole if "rel_pos" not in k} <= same
    assert not torch.equal(probed["head.weight"], tuned["head.weight"])
    assert eval_command.main([str(tmp_path / "probe")]) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["model.name=vivit_tiny"], "model.name=vivit_tiny is not for task.name=maskfeat: expected one of maskfeat_"),
        (["task.name=classify"], "model.name=maskfeat_tiny is not for task.name=classify"),
        (["data.size=30"], "patch_size=4 does not divide image_size=30x30"),
        (["data.size=24"], "masks of 2x2 tokens do not divide the 3x3 tokens of a frame"),
        (["data.frames=5"], "tubelet=2 does not divide num_frames=5"),
        (["task.mask_ratio=1.5"], "task.mask_ratio=1.5"),
        (["task.mask=cubes"], "did you mean 'cube'?"),
        (["task.hog_window=7"], "hog_window=7 does not divide frames of 32x32"),
    ],
)
def test_mistakes(arguments, capsys, wrong, message):
    assert train_command.main([*arguments, *PRETRAIN, "run.name=x", *wrong]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ") and message in error


def test_weights_of_another_network_do_not_start_it(arguments, tmp_path, capsys):
    assert train_command.main([*arguments, *PRETRAIN, "run.name=pre", "optim.epochs=1", "optim.warmup_epochs=0"]) == 0
    assert (
        train_command.main([*arguments, "model.name=vivit_tiny", f"model.init={tmp_path / 'pre'}", "run.name=x"]) == 2
    )
    assert "cannot fill a ViViT: it is of another architecture" in capsys.readouterr().err


def test_the_first_of_each_class():
    clips = [Clip(f"{number}.mp4", label) for number, label in enumerate([0, 1, 0, 0, 1, 2])]
    assert [clip.path for clip in first_of_each_class(clips, 2)] == ["0.mp4", "1.mp4", "2.mp4", "4.mp4", "5.mp4"]
    assert first_of_each_class(clips, 9) == clips


def test_eval_of_a_recipe_with_the_weights_of_others(arguments, tmp_path, capsys):
    """VideoTransformer-pytorch's MaskFeat: its masks, its frames, its HOG; and one of its classifiers."""
    data = arguments[1].removeprefix("data.val=")
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{train: gone.txt, val: {data}, test: {data}, frames: 4, stride: 2, size: 32, batch: 3, workers: 0}}\n"
        f"eval: {{clips: 1, crops: 1, batch: 4}}\nrun: {{device: cpu, folder: {tmp_path}, name: look}}\n"
    )
    network, _, _ = weights.convert(write_checkpoint("seed_maskfeat", tmp_path), key_stride=[1, 8, 8])
    args = json.dumps(network.kwargs["backbone_args"])
    told = {
        "seed_maskfeat": [
            "task.name=maskfeat", "task.mask=runs", "task.mask_ratio=0.5", "task.hog_gradient=central",
            "model.name=maskfeat_mvit_v1_b", f"model.args.backbone_args={args}",
        ],
        "seed_timesformer": [
            "model.name=timesformer_tiny", "data.classes=5",
            "model.args={width: 32, depth: 3, heads: 4, patch_size: 8}",
        ],
    }  # fmt: skip
    for name, settings in told.items():
        words = [str(tmp_path / "recipe.yaml"), *settings]
        assert eval_command.main(words) == 2
        assert "give model.init=CHECKPOINT" in capsys.readouterr().err
        assert eval_command.main([*words, f"model.init={write_checkpoint(name, tmp_path)}"]) == 0
        assert "VideoTransformer-pytorch" in capsys.readouterr().out
    summary = json.loads((tmp_path / "look_of_seed_maskfeat.pth/eval/pretraining/summary.json").read_text())
    assert summary["videos"] == 13 and summary["loss"] > summary["mean_hog"] > 0
    assert json.loads((tmp_path / "look_of_seed_timesformer.pth/eval/1x1/summary.json").read_text())["scored"] == 11
    words += ["data.classes=2", f"model.init={write_checkpoint(name, tmp_path)}"]
    assert eval_command.main(words) == 2  # and no figure of a random head
    assert "gives no head.weight, head.bias, which would be random" in capsys.readouterr().err


def test_a_probe_of_a_pretraining_is_refused(arguments, tmp_path, capsys):
    assert train_command.main([*arguments, *PRETRAIN, "run.name=x", "model.freeze=backbone"]) == 2
    assert "model.freeze=backbone: the network has no head" in capsys.readouterr().err
    assert train_command.main([*arguments, *CLASSIFY, "run.name=c", "optim.epochs=1", "optim.warmup_epochs=0"]) == 0
    assert eval_command.main([str(tmp_path / "c"), "data.classes=2"]) == 2
    assert "a run keeps the classes" in capsys.readouterr().err
    assert eval_command.main([str(tmp_path / "c"), "task.name=maskfeat"]) == 2
    assert "task.name=maskfeat: the network is a classifier" in capsys.readouterr().err
