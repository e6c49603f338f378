"""What is evaluated: the network of a run, or of a recipe with the weights of a checkpoint, and its test list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from configs import loading
from configs.schema import Config, Eval
from networks import weights
from networks.probed_encoder import ProbeGrid
from pipelines.data.annotations import list_exists
from pipelines.data.dataset import read_class_names
from pipelines.data.feature_shards import is_feature_folder
from pipelines.loader import EvalVideoLoader
from training.checkpoint_input import apply_input_spec
from training.run_dir import run_path
from training.setup import build_network, init_from_pretrained
from utils.device import choose_device, choose_dtype, clip_dtype
from utils.distributed import World


class EvalRun(NamedTuple):
    """A network in eval mode with its configuration, and the folder of the run that it belongs to."""

    cfg: Config
    saved_cfg: Config  # without the overrides of the command line
    path: Path
    network: nn.Module
    classes: list[str]
    device: torch.device
    dtype: torch.dtype
    world: World
    num_train_videos: Sequence[int] = ()  # of each class


def load_run(source: Path, overrides: Sequence[str]) -> EvalRun:
    """Load the best network of a run folder, or build a recipe with the weights of its model.pretrained."""
    world = World.from_env()
    if source.suffix == ".yaml" and source.is_file():
        cfg, path, network, classes = build_recipe(source, overrides)
        saved_cfg, counts = cfg, ()
    else:
        cfg, saved_cfg, network, card = load_run_dir(source, overrides)
        path, counts = source, card.get("num_train_videos", ())
        classes = [card["id2label"][index] for index in range(len(card["id2label"]))]
    device = choose_device(cfg.run.device, world.local_rank)
    dtype = choose_dtype(cfg.run.precision, device)
    world.init_process_group(device.type)
    return EvalRun(cfg, saved_cfg, path, network.to(device), classes, device, dtype, world, counts)


def build_recipe(source: Path, overrides: Sequence[str]) -> tuple[Config, Path, nn.Module, list[str]]:
    """Build the network of a recipe from a checkpoint, complete; also return where its results go."""
    cfg = loading.load_config(source, overrides)
    if cfg.task.name == "probe" and cfg.eval.feature_layer:
        raise ValueError(f"eval.feature_layer={cfg.eval.feature_layer}: expected probe.layers, for features of a probe")
    if cfg.task.name == "probe" and not cfg.eval.features_path:
        raise ValueError(f"{source}: a probe is trained first: python train.py {source}; then give its run folder")
    if not cfg.model.pretrained:
        raise ValueError(f"{source}: a recipe has no weights: give model.pretrained=CHECKPOINT, or a run folder")
    checkpoint = weights.read_checkpoint(cfg.model.pretrained)
    cfg, input_lines = apply_input_spec(cfg, weights.input_spec(checkpoint))
    data = cfg.data
    classes: list[str] = []
    if not cfg.task.is_pretraining:
        lists = [path for path in (data.train, data.test, data.val) if path]
        path_of_names = next(filter(list_exists, lists), data.train)
        classes = read_class_names(path_of_names, data.class_names, data.class_subset, data.multi_label)
    torch.manual_seed(cfg.run.seed)  # for what the checkpoint leaves as initialized
    network = build_network(cfg, len(classes)).eval()
    report = init_from_pretrained(network, checkpoint, cfg.model, classes, complete=True)
    print("\n".join([report.text(), *input_lines]))
    path = run_path(cfg.run)  # not the run's own folder, whose results belong to its own weights
    return cfg, path.with_name(f"{path.name}_of_{Path(cfg.model.pretrained).name}"), network, classes


def load_run_dir(source: Path, overrides: Sequence[str]) -> tuple[Config, Config, nn.Module, dict[str, Any]]:
    """Load the configuration of a run folder with and without overrides, its best network and what its card tells."""
    if not (source / "config.yaml").exists():
        raise ValueError(f"{source}: not a run folder (it has no config.yaml)")
    if not (source / "best").exists():
        raise ValueError(f"{source}: no checkpoint in it yet: best/ is written after the first validation")
    for key in ("data.class_names", "data.class_subset", "data.multi_label"):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise ValueError(f"{key}: a run keeps the classes that it was trained for")
    text = (source / "config.yaml").read_text()
    cfg, saved_cfg = (loading.parse_config(text, str(source / "config.yaml"), o) for o in (overrides, ()))
    moved = any(override.startswith("model.pretrained=") for override in overrides)
    return cfg, saved_cfg, *weights.load_network(source / "best", cfg.model.pretrained if moved else "")


def build_test_loader(run: EvalRun) -> EvalVideoLoader:
    """Read the test list, or of a pre-training the validation list (one center view), and build its loader."""
    data, is_test = run.cfg.data, not run.cfg.task.is_pretraining
    path = data.test or data.val if is_test else data.val
    if not path:
        raise ValueError(f"data.{'test' if is_test else 'val'}: expected a list")
    test = run.cfg.eval
    if isinstance(run.network, ProbeGrid):  # features to train probes on: the center crop of as many clips
        test = test.model_copy(update={"num_clips": data.num_clips, "num_crops": 1})
    elif not is_test:
        test = Eval(num_clips=1, num_crops=1, batch_size=data.batch_size)
    if is_feature_folder(path):
        raise ValueError(f"data.test={path}: a folder of features; a test needs the list of the videos themselves")
    return EvalVideoLoader(
        path,
        data,
        test,
        device=run.device,
        dtype=clip_dtype(run.dtype),
        world=run.world,
        seed=run.cfg.run.seed,
        classes=run.classes,
        labeled=is_test,
    )
