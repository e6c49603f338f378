"""Every recipe: it loads, builds at full size, says what it is, and trains at toy size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import train as train_command
from configs import loading
from networks import weights
from tests.helpers.foreign_checkpoints import ENTRIES, write_checkpoint
from tests.helpers.runs import ROOT
from training.history import read_metrics
from training.setup import build_network

PATHS = sorted((ROOT / "configs").glob("*/*.yaml"))
RECIPES = [path for path in PATHS if not path.stem.startswith("demo")]
# What makes a network small, whatever its recipe asks of it.
TOY = {
    "timesformer": ["model.args.width=32", "model.args.depth=2", "model.args.heads=2", "data.size=32"],
    "vivit": ["model.args.width=32", "model.args.depth=2", "model.args.heads=2", "data.size=32"],
    "videomae": ["model.args.width=32", "model.args.depth=2", "model.args.heads=2", "data.size=32"],
    "mvit_v1": ["model.name=mvit_v1_tiny", "data.size=64"],
    "mvit_v2": ["model.name=mvit_v2_tiny", "data.size=64"],
    "maskfeat": ["model.name=maskfeat_tiny", "data.size=64"],
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_builds_and_says_what_it_is(path):
    cfg = loading.load(path)
    with torch.device("meta"):
        network = build_network(cfg, 400)
    assert sum(p.numel() for p in network.parameters()) > 0
    if path.stem.startswith("demo"):
        return
    comment = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"\d[\d.]* % top-1|[Nn]o accuracy was published|was never published|No published figure", comment)
    assert "et al., 20" in comment or "VideoTransformer-pytorch" in comment or ".yaml" in comment, "its source"
    if cfg.model.init.startswith("runs/"):
        assert list((ROOT / "configs").rglob(f"{Path(cfg.model.init).name}.yaml")), "the recipe it goes on from"
    assert cfg.optim.batch and cfg.optim.batch % cfg.data.batch == 0, "the clips of a step are explicit"
    named = re.fullmatch(r"\w+?_(\d+)(?:x(\d+))?_(k400|ssv2)(_\w+)?", path.stem)
    assert named and int(named[1]) == cfg.data.frames
    assert int(named[2]) == cfg.data.stride if named[2] else cfg.data.sampling == "segments"
    assert cfg.data.flip == 0 or named[3] != "ssv2", "left and right are classes there"


def slow_graphs(path: Path) -> object:
    """DALI builds the graph of RandAugment in 2-5 s."""
    return pytest.param(path, marks=[pytest.mark.slow] if loading.load(path).data.rand_augment else [], id=path.stem)


@pytest.mark.parametrize("path", map(slow_graphs, RECIPES))
def test_a_recipe_trains_two_steps_at_toy_size(path, clips_folder, tmp_path):
    data = clips_folder(tmp_path, 8)
    cfg = loading.load(path)
    toy = next(values for kind, values in TOY.items() if cfg.model.name.startswith(kind))
    frames = 8 if cfg.model.name.startswith(("mvit", "maskfeat")) else 4
    batch = 4 * cfg.data.repeats
    small = [
        f"data.train={data}", f"data.val={data}", "data.root=", "data.classes=", f"data.frames={frames}", "model.init=",
        "data.batch=2", f"optim.batch={batch}", "data.workers=0", "data.threads=1", "data.short_sides=64,80",
        f"run.folder={tmp_path}", "run.device=cpu", "run.name=x", "run.threads=1", "run.log_every=1",
        "optim.epochs=1", "optim.warmup_epochs=0", "optim.drops=",
    ]  # fmt: skip
    assert train_command.main([str(path), *small, *toy]) == 0
    rows = read_metrics(tmp_path / "x")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert all(row["loss"] is not None and row["bad_steps"] == 0 for row in rows if row["kind"] == "train")


# --- from every kind of weights ---------------------------------------------------------------------------------------

FAST = ("timesformer_divided", "slowfast_mvit_v2", "timm_vit_npz")
CHECKPOINTS = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in ENTRIES]


def two_steps(tmp_path: Path, data: Path, name: str, *more: str) -> str:
    small = [f"data.train={data}", "data.batch=4", "data.workers=0", "data.threads=1", f"run.folder={tmp_path}",
             "run.device=cpu", f"run.name={name}", "run.threads=1", "run.log_every=1", "optim.epochs=1",
             "optim.warmup_epochs=0", "optim.lr=1e-5", "data.flip=0"]  # fmt: skip
    assert train_command.main([*small, *more]) == 0
    rows = read_metrics(tmp_path / name)
    assert [(row["step"], row["bad_steps"]) for row in rows] == [(1, 0), (2, 0)]
    return (tmp_path / name / "log.txt").read_text()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_training_starts_from_every_kind_of_checkpoint(name, clips_folder, tmp_path):
    data = clips_folder(tmp_path, 8)
    path, entry = write_checkpoint(name, tmp_path), ENTRIES[name]
    if entry["given"] is None:  # of images: any plain video network takes it
        depth = max(len(numbers) for _, numbers, _ in entry["keys"] if numbers)
        model, frames, size = "vivit_tiny", 4, 32
        kwargs = {"width": 32, "depth": depth, "heads": 4, "patch_size": 8}
    else:
        network, config, _ = weights.convert(path, **entry["given"])
        model, kwargs = config["name"], network.kwargs
        _, _, frames, size, _ = entry.get("clip") or (0, 0, kwargs["num_frames"], kwargs["image_size"], 0)
        size = size if isinstance(size, int) else size[0]
    kwargs = {key: value for key, value in kwargs.items() if key not in ("num_classes", "num_frames", "image_size")}
    more = ["task.name=maskfeat"] if model.startswith("maskfeat") else []
    more += [f"model.args={json.dumps(kwargs)}", f"data.frames={frames}", f"data.size={size}", "data.stride=2"]
    log = two_steps(tmp_path, data, "x", f"model.name={model}", f"model.init={path}", *more)
    assert path.name in log, "the report of what became of its keys"


def test_training_starts_from_runs_of_our_own(clips_folder, tmp_path):
    """A classifier's run, one of MaskFeat, and a converted folder."""
    data = clips_folder(tmp_path, 8)
    tiny = ["model.name=mvit_v2_tiny", "data.frames=8", "data.size=64", "data.stride=2"]
    two_steps(tmp_path, data, "pretrained", *tiny, "task.name=maskfeat", "model.name=maskfeat_tiny")
    fine = [*tiny, "model.args={width_change: mlp, pooling: fc_norm}"]
    assert "head" in two_steps(tmp_path, data, "tuned", *fine, f"model.init={tmp_path}/pretrained")
    two_steps(tmp_path, data, "again", *fine, f"model.init={tmp_path}/tuned", "model.freeze=backbone")
    two_steps(tmp_path, data, "folder", *fine, f"model.init={tmp_path}/tuned/best")
