"""Every recipe loads, builds at full size, says what it is and trains at toy size, also from every kind of weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from configs import loading
from networks import weights
from tests.helpers import ROOT
from tests.helpers.foreign_checkpoints import ENTRIES, write_checkpoint
from tests.helpers.runs import MASKFEAT, ONE_EPOCH, metrics, train
from training.early_checks import check_network_and_loss
from training.history import read_metrics

PATHS = sorted((ROOT / "configs").glob("*/*.yaml"))
RECIPES = [path for path in PATHS if not path.stem.startswith("demo")]
# Overrides that make the network of any recipe small.
TINY_NETWORK = {
    "timesformer": ["model.args.embed_dim=32", "model.args.depth=2", "model.args.num_heads=2", "data.image_size=32"],
    "vivit": ["model.args.embed_dim=32", "model.args.depth=2", "model.args.num_heads=2", "data.image_size=32"],
    "videomae": ["model.args.embed_dim=32", "model.args.depth=2", "model.args.num_heads=2", "data.image_size=32"],
    "vjepa2": [
        *("model.args.embed_dim=32", "model.args.depth=2", "model.args.num_heads=2", "model.args.mlp_ratio=4"),
        *("data.image_size=32", "probe.num_heads=2"),
    ],
    "videoprism": ["model.name=videoprism_tiny", "data.image_size=32"],
    "dinov2": ["model.name=frame_encoder_tiny", "data.image_size=32"],
    "hiera": ["model.name=hiera_tiny", "data.image_size=64"],
    "mvit_v1": ["model.name=mvit_v1_tiny", "data.image_size=64"],
    "mvit_v2": ["model.name=mvit_v2_tiny", "data.image_size=64"],
    "maskfeat": ["model.name=maskfeat_tiny", "data.image_size=64"],
    "pretrain_videomae": ["model.name=pretrain_videomae_tiny", "model.args={}", "data.image_size=64"],
    "pretrain_vjepa2": ["model.name=pretrain_vjepa2_tiny", "data.image_size=64"],
    "mae_hiera": ["model.name=mae_hiera_tiny", "data.image_size=64"],
}


TINY_STEPS = [
    "data.num_workers=0",
    "data.dali_threads=1",
    "run.device=cpu",
    "run.cpu_threads=1",
    "run.log_interval=1",
    *ONE_EPOCH,
]


def test_recipe_with_a_video_network_from_image_weights_says_its_normalization():
    """Otherwise it would silently be that of the image model, which is not the one that was published."""
    for path in RECIPES:
        cfg = loading.load_config(path)
        if cfg.model.pretrained.startswith("timm:"):
            assert {"mean", "std"} <= cfg.data.model_fields_set, path.name


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recipe_loads_and_its_network_can_be_built(path):
    cfg = loading.load_config(path)
    assert cfg.run.name == path.stem
    assert loading.parse_config(loading.dump_config(cfg)) == cfg
    check_network_and_loss(cfg)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_names_its_source_accuracy_and_step(path):
    cfg = loading.load_config(path)
    comment = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"\d[\d.]* % top-1|[Nn]o accuracy was published|was never published|No published figure", comment)
    assert "et al., 20" in comment or "VideoTransformer-pytorch" in comment or ".yaml" in comment, "its source"
    if cfg.model.pretrained.startswith("runs/"):
        recipe = f"{Path(cfg.model.pretrained).name}.yaml"
        assert list((ROOT / "configs").rglob(recipe)), "the recipe of its pre-training"
    clips_per_step = cfg.optim.global_batch_size
    assert clips_per_step and clips_per_step % cfg.data.batch_size == 0, "the clips of a step are explicit"
    match = re.fullmatch(r"\w+?_(\d+)(?:x(\d+))?_(k400|ssv2|diving48|jester|ucf101|hmdb51|charades)(_\w+)?", path.stem)
    assert match and int(match[1]) == cfg.data.num_frames
    assert int(match[2]) == cfg.data.frame_stride if match[2] else cfg.data.sampling == "tsn"
    assert cfg.data.hflip == 0 or match[3] not in ("ssv2", "diving48", "jester"), "left and right are classes there"


def slow_if_augmented(path: Path) -> object:
    """Mark recipes with RandAugment, whose DALI graph takes 2 to 5 seconds to build."""
    return pytest.param(
        path, marks=[pytest.mark.slow] if loading.load_config(path).data.rand_augment else [], id=path.stem
    )


@pytest.mark.parametrize("path", map(slow_if_augmented, RECIPES))
def test_recipe_trains_two_steps_at_toy_size(path, clips_folder, tmp_path):
    cfg, video_list = loading.load_config(path), clips_folder(tmp_path, 8)
    tiny_network = next(values for kind, values in TINY_NETWORK.items() if cfg.model.name.startswith(kind))
    num_frames = 8 if cfg.model.name.startswith(("mvit", "maskfeat")) or cfg.task.name == "mae" else 4
    overrides = [
        f"data.train={video_list}",
        f"data.val={video_list}",
        "data.root=",
        "data.class_names=",
        f"data.num_frames={num_frames}",
        "model.pretrained=",
        "adapter.name=",  # without a checkpoint there is nothing to adapt; test_stand_ins has one
        f"data.batch_size={max(2, cfg.data.aug_repeats)}",
        f"optim.global_batch_size={4 * cfg.data.aug_repeats}",
        "data.short_side_range=64,80",
        "optim.milestones=",
    ]
    if cfg.probe.layers:
        overrides.append("probe.layers=blocks.0,blocks.1")
    run_dir = train([str(path), f"run.output_dir={tmp_path}", *TINY_STEPS, *overrides], "x", *tiny_network)
    rows = metrics(run_dir, "train")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] is not None and row["skipped_steps"] == 0 for row in rows)


# --- from every kind of weights ---------------------------------------------------------------------------------------

FAST = ("timesformer_divided", "slowfast_mvit_v2", "timm_vit_npz")
CHECKPOINTS = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in ENTRIES]


def train_two_steps(output_dir: Path, video_list: Path, name: str, *overrides: str) -> Path:
    """Train on eight videos, check that two steps were made and return the run folder."""
    arguments = [f"data.train={video_list}", f"run.output_dir={output_dir}", "data.batch_size=4", *TINY_STEPS]
    run_dir = train(arguments, name, "optim.lr=1e-5", "data.hflip=0", *overrides)
    assert [(row["step"], row["skipped_steps"]) for row in read_metrics(run_dir)] == [(1, 0), (2, 0)]
    return run_dir


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_training_starts_from_a_checkpoint_of_any_project(name, clips_folder, tmp_path):
    video_list = clips_folder(tmp_path, 8)
    path, entry = write_checkpoint(name, tmp_path), ENTRIES[name]
    if entry["given"] is None:  # an image network, which any plain video network can start from
        depth = max(len(numbers) for _, numbers, _ in entry["keys"] if numbers)
        model, num_frames, image_size = "vivit_tiny", 4, 32
        kwargs = {"embed_dim": 32, "depth": depth, "num_heads": 4, "patch_size": 8}
    else:
        network, config, _ = weights.convert(path, **entry["given"])
        model, kwargs = config["name"], network.kwargs
        _, _, num_frames, size, _ = entry.get("clip") or (0, 0, kwargs["num_frames"], kwargs["image_size"], 0)
        image_size = size if isinstance(size, int) else size[0]
    kwargs = {key: value for key, value in kwargs.items() if key not in ("num_classes", "num_frames", "image_size")}
    tasks = ("maskfeat", "maskfeat"), ("pretrain_videomae", "mae"), ("mae_hiera", "mae")
    overrides = [f"task.name={task}" for prefix, task in tasks if model.startswith(prefix)]
    overrides += [
        f"model.name={model}",
        f"model.pretrained={path}",
        f"model.args={json.dumps(kwargs)}",
        f"data.num_frames={num_frames}",
        f"data.image_size={image_size}",
        "data.frame_stride=2",
    ]
    run_dir = train_two_steps(tmp_path, video_list, "x", *overrides)
    assert path.name in (run_dir / "log.txt").read_text(), "the report of what became of its keys"


def test_training_starts_from_runs_and_folders(clips_folder, tmp_path):
    """A run of MaskFeat, one of a classifier, and a folder with converted weights."""
    video_list = clips_folder(tmp_path, 8)
    sizes = ["data.num_frames=8", "data.image_size=64", "data.frame_stride=2"]
    maskfeat = train_two_steps(tmp_path, video_list, "pretrained", *sizes, *MASKFEAT)
    classifier = [*sizes, "model.name=mvit_v2_tiny", "model.args={expand_attn: false, pooling: fc_norm}"]
    tuned = train_two_steps(tmp_path, video_list, "tuned", *classifier, f"model.pretrained={maskfeat}")
    assert "head" in (tuned / "log.txt").read_text()
    probe = [f"model.pretrained={tuned}", "model.freeze=backbone"]
    train_two_steps(tmp_path, video_list, "again", *classifier, *probe)
    train_two_steps(tmp_path, video_list, "folder", *classifier, f"model.pretrained={tuned / 'best'}")
