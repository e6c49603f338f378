"""MaskFeat by the commands: pre-train, evaluate, fine-tune and probe from the run (test_train: resuming)."""

from __future__ import annotations

import json

import pytest
from matplotlib.image import imread

import eval as eval_command
from networks import weights
from pipelines.data.dataset import VideoEntry, limit_per_class
from tests.helpers.foreign_checkpoints import write_checkpoint
from tests.helpers.runs import MASKFEAT, ONE_EPOCH, evaluate, last_checkpoint, metrics, train

CLASSIFY = ["model.name=mvit_v2_tiny", "model.args={expand_attn: false, pooling: fc_norm}", "data.hflip=0.5"]
PRETRAIN = [*MASKFEAT, "task.figure_epochs=1", "data.hflip=0.5"]


@pytest.mark.figures
def test_pretrained_network_is_evaluated_fine_tuned_and_probed(arguments):
    pretrained = train(arguments, "pre", *PRETRAIN)
    assert all(row["baseline"] > 0 and "top1" not in row for row in metrics(pretrained, "train"))
    assert (pretrained / "curves.png").exists()
    log = (pretrained / "log.txt").read_text()
    assert "mean target" in log and "top-1" not in log

    evaluate(pretrained)
    test_dir = pretrained / "eval" / "pretraining"
    summary = json.loads((test_dir / "summary.json").read_text())
    assert summary["videos"] == 13 and summary["loss"] == min(row["loss"] for row in metrics(pretrained, "val"))
    image = imread(test_dir / "predictions.png")
    assert image.shape[0] > 100 and image[..., :3].std() > 0.1

    start, _ = weights.load_network(pretrained / "best")
    backbone = start.backbone.state_dict()
    from_pretrained = [*CLASSIFY, f"model.pretrained={pretrained}"]
    fine_tuned = train(arguments, "tune", *from_pretrained, "optim.layer_decay=0.75")
    assert "maskfeat_tiny -> MViT" in (fine_tuned / "log.txt").read_text()
    tuned = last_checkpoint(fine_tuned)["network"]
    name = "blocks.1.attn.qkv.weight"
    assert not (tuned[name] == backbone[name]).all()

    probe = train(arguments, "probe", *from_pretrained, "model.freeze=backbone", "optim.layer_decay=1")
    probed = last_checkpoint(probe)["network"]
    expected = {name: value for name, value in backbone.items() if not name.startswith("norm")}
    is_same = {name: v.shape == probed[name].shape and bool((v == probed[name]).all()) for name, v in expected.items()}
    assert all(same for name, same in is_same.items() if "rel_pos" not in name)
    assert not (probed["head.weight"] == tuned["head.weight"]).all()
    evaluate(probe)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.name=vivit_tiny"],
            "model.name=vivit_tiny is not for task.name=maskfeat but for classify: expected one of maskfeat_",
        ),
        (["task.name=classify"], "model.name=maskfeat_tiny is not for task.name=classify"),
        (["data.image_size=30"], "patch_size=4 does not divide image_size=30x30"),
        (["data.image_size=24"], "masks of 2x2 tokens do not divide the 3x3 tokens of a frame"),
        (["data.num_frames=5"], "tubelet_size=2 does not divide num_frames=5"),
        (["task.mask_ratio=1.5"], "task.mask_ratio=1.5"),
        (["task.mask=cubes"], "did you mean 'cube'?"),
        (["task.hog_window=7"], "hog_window=7 does not divide frames of 32x32"),
        (["model.freeze=backbone"], "model.freeze=backbone: the network has no head"),
    ],
)
def test_error_in_pretraining_is_one_line(arguments, capsys, overrides, message):
    train(arguments, "x", *PRETRAIN, *overrides, status=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ") and message in error


def test_pretrained_weights_of_another_architecture_are_refused(arguments, capsys):
    pretrained = train(arguments, "pre", *PRETRAIN, *ONE_EPOCH)
    train(arguments, "x", "model.name=vivit_tiny", "model.args={}", f"model.pretrained={pretrained}", status=2)
    assert "cannot fill a ViViT: it is of another architecture" in capsys.readouterr().err


def test_limit_per_class_keeps_the_first_videos_of_each_class():
    videos = [VideoEntry(f"{index}.mp4", label) for index, label in enumerate([0, 1, 0, 0, 1, 2])]
    assert [video.path for video in limit_per_class(videos, 2)] == ["0.mp4", "1.mp4", "2.mp4", "4.mp4", "5.mp4"]
    assert limit_per_class(videos, 9) == videos


def test_recipe_is_evaluated_with_weights_of_other_projects(arguments, tmp_path, capsys):
    """MaskFeat of VideoTransformer-pytorch, with its masks, frames and HOG, and one of its classifiers."""
    recipe, video_list = tmp_path / "recipe.yaml", arguments[1].removeprefix("data.val=")
    recipe.write_text(
        f"data: {{train: gone.txt, val: {video_list}, test: {video_list}, num_frames: 4, frame_stride: 2, "
        "image_size: 32, batch_size: 3, num_workers: 0}\n"
        "eval: {num_clips: 1, num_crops: 1, batch_size: 4}\n"
        f"run: {{device: cpu, output_dir: {tmp_path}, name: look}}\n"
    )
    network, _, _ = weights.convert(write_checkpoint("seed_maskfeat", tmp_path), kv_stride=[1, 8, 8])
    backbone_args = json.dumps(network.kwargs["backbone_args"])
    overrides = {
        "seed_maskfeat": [
            "task.name=maskfeat",
            "task.mask=frame_runs",
            "task.mask_ratio=0.5",
            "task.hog_gradient=central",
            "model.name=maskfeat_mvit_v1_b",
            f"model.args.backbone_args={backbone_args}",
        ],
        "seed_timesformer": [
            "model.name=timesformer_tiny",
            "data.class_subset=5",
            "model.args={embed_dim: 32, depth: 3, num_heads: 4, patch_size: 8}",
        ],
    }
    for name, settings in overrides.items():
        assert eval_command.main([str(recipe), *settings]) == 2
        assert "give model.pretrained=CHECKPOINT" in capsys.readouterr().err
        pretrained = f"model.pretrained={write_checkpoint(name, tmp_path)}"
        assert eval_command.main([str(recipe), *settings, pretrained]) == 0
        assert "VideoTransformer-pytorch" in capsys.readouterr().out
    summary = json.loads((tmp_path / "look_of_seed_maskfeat.pth/eval/pretraining/summary.json").read_text())
    assert summary["videos"] == 13 and summary["loss"] > summary["mean_target_loss"] > 0
    assert json.loads((tmp_path / "look_of_seed_timesformer.pth/eval/1x1/summary.json").read_text())["scored"] == 11
    assert eval_command.main([str(recipe), *settings, "data.class_subset=2", pretrained]) == 2
    assert "gives no head.weight, head.bias, which would be random" in capsys.readouterr().err


def test_evaluation_of_a_classifier_keeps_its_classes_and_task(arguments, capsys):
    run_dir = train(arguments, "c", *CLASSIFY, *ONE_EPOCH)
    evaluate(run_dir, "data.class_names=2", status=2)
    assert "a run keeps the classes" in capsys.readouterr().err
    evaluate(run_dir, "task.name=maskfeat", status=2)
    assert "task.name=maskfeat: the network is a classifier" in capsys.readouterr().err
