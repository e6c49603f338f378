"""Stored features as the input of probes: they must be those that the probes would see of the videos."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from configs.schema import Config
from networks.weights.adapter import weights_file
from pipelines.data.feature_shards import is_feature_folder
from pipelines.feature_loader import FeatureLoader


def build_feature_loaders(cfg: Config, **shared: Any) -> tuple[FeatureLoader, FeatureLoader]:
    """Build the loaders of two folders of features.

    Raises ValueError unless they are those that the probes of the configuration would see.
    """
    data = cfg.data
    if cfg.task.name != "probe":
        raise ValueError(f"data.train={data.train}: features are for task.name=probe")
    if not is_feature_folder(data.val):
        raise ValueError(f"data.val={data.val}: expected a folder of features, as data.train={data.train} is one")
    size = cfg.optim.global_batch_size
    train = FeatureLoader(data.train, data, train=True, global_batch_size=size, **shared)
    val = FeatureLoader(data.val, data, train=False, **shared)
    wanted = json.loads(json.dumps(describe_features(cfg)))
    for loader in (train, val):
        pool, kinds = loader.shards.description["eval.feature_pool"], cfg.probe.kinds
        if pool != "tokens" and (pool != "mean" or not all(kind.startswith("linear") for kind in kinds)):
            needs = f"probe.kinds={','.join(kinds)} needs eval.feature_pool=tokens"
            raise ValueError(f"{loader.shards.folder}: its features are those of eval.feature_pool={pool}; {needs}")
        for key, value in loader.shards.description.items():
            if key != "eval.feature_pool" and wanted.get(key) != value:
                raise ValueError(
                    f"{loader.shards.folder}: its features are those of {key}={value}, not {wanted.get(key)}"
                )
    if train.classes != val.classes or train.shards.shape != val.shards.shape:
        raise ValueError(f"data.val={data.val}: has other classes or features than data.train={data.train}")
    keys = ("rand_augment", "color_jitter", "grayscale", "blur", "solarize", "mixup", "cutmix", "random_erasing")
    without_effect = [f"data.{key}" for key in keys if getattr(data, key)]
    if without_effect and train.world.is_main:
        print(f"without effect on features: {', '.join(without_effect)}", flush=True)
    return train, val


def describe_features(cfg: Config, run_path: Path | None = None) -> dict[str, Any]:
    """Return what the features of a video depend on: of a probe's encoder, or of the network of a run."""
    keys = ["num_frames", "frame_stride", "fps", "sampling", "short_clip", "snap_to_keyframes", "image_size", "crop"]
    description = {f"data.{key}": getattr(cfg.data, key) for key in (*keys, "mean", "std")}
    description |= {"eval.short_side": cfg.eval.short_side, "eval.clip_placement": cfg.eval.clip_placement}
    if cfg.task.name == "probe" and not (run_path and (run_path / "best").exists()):
        m = cfg.model
        own: dict[str, Any] = {"model.name": m.name, "model.args": m.args, "model.pretrained": m.pretrained}
        own |= {"model.pretrained_args": m.pretrained_args, "weights": weights_digest(Path(m.pretrained))}
        own |= {"probe.layers": list(cfg.probe.layers), "data.num_clips": cfg.data.num_clips}
    else:
        views = {f"eval.{key}": getattr(cfg.eval, key) for key in ("num_clips", "num_crops", "feature_layer")}
        own = {"run": str(run_path), "weights": weights_digest(Path(run_path or "")), **views}
    return {**own, **description, "eval.feature_pool": cfg.eval.feature_pool}


def weights_digest(path: Path) -> str:
    """Return what tells the weights in a file or folder from others: size, and a hash of the first and the last MiB.

    Empty for a name, hf:OWNER/NAME, which stays what it is.
    """
    files = [path, weights_file(path / "best"), weights_file(path)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return ""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        content = stream.read(2**20)
        stream.seek(max(size - 2**20, 0))
        content += stream.read()
    return f"{size} {hashlib.sha256(content).hexdigest()[:16]}"
