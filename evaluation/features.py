"""Extract a feature vector, or all tokens, for each video of a list.

    python eval.py runs/NAME data.test=LIST eval.features_path=train.npz
    python eval.py runs/NAME eval.features_path=test.safetensors eval.feature_layer=blocks.5
    python eval.py RECIPE data.test=LIST eval.features_path=FOLDER     of a probe: what it is trained on

A file has `features` (n, D) float32, `label` (n,) and `video` (paths) of the videos that could be read. A folder has
them in half precision and in shards (`pipelines.data.feature_shards`); a command that was interrupted continues.
Without eval.feature_layer the features are the input of the head, or with eval.feature_pool=tokens the tokens that the
network ends with.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from configs.schema import Eval
from evaluation.evaluate import progress
from networks.layer_outputs import find_layer, layer_outputs, tokens_of_clips
from pipelines.batch_loader import Batch
from pipelines.data.feature_shards import FeatureShards, LabeledVideo, ShardWriter, is_feature_folder
from pipelines.loader import EvalVideoLoader
from utils.device import autocast
from utils.distributed import World

SUFFIXES = (".npz", ".safetensors")


@dataclass(frozen=True)
class Features:
    """Features and labels of videos."""

    features: Tensor  # (n, D) float32; (n, N, D) of all tokens
    label: Tensor  # (n,) int64
    video: list[str]

    def select(self, rows: Sequence[int]) -> Features:
        """Return the features of some videos."""
        return Features(self.features[list(rows)], self.label[list(rows)], [self.video[row] for row in rows])

    @staticmethod
    def check_path(path: Path) -> None:
        """Raise ValueError for a file name that save() cannot write; a name without suffix is a folder."""
        if path.suffix and path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: expected a folder, or a name that ends in .npz or .safetensors")

    def save(self, path: Path) -> None:
        """Write a .npz or .safetensors file, as its name says. Raises ValueError for another name."""
        self.check_path(path)
        arrays = {"features": self.features.numpy(), "label": self.label.numpy()}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez(path, features=arrays["features"], label=arrays["label"], video=np.array(self.video))
        else:
            save_file(arrays, path, {"video": json.dumps(self.video)})

    @staticmethod
    def load(path: Path, mean: bool = False) -> Features:
        """Read what save() wrote, or a folder; with `mean` the mean of the tokens of each video, vectors as they are.

        Raises ValueError for a path that is missing or has no features.
        """
        convert = mean_token if mean else Tensor.float
        if is_feature_folder(path):
            shards = FeatureShards(path)
            converted = torch.cat([convert(torch.from_numpy(part)) for part in shards.shards()])
            return Features(converted, torch.from_numpy(shards.label), shards.name)
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "np") as file:
                    features, label = file.get_tensor("features"), file.get_tensor("label")
                    video = json.loads((file.metadata() or {})["video"])
            else:
                with np.load(path) as arrays:
                    features, label, video = arrays["features"], arrays["label"], arrays["video"].tolist()
        except (OSError, EOFError, ValueError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not readable as features: {error}") from None
        return Features(convert(torch.from_numpy(features)), torch.from_numpy(label).long(), video)


def mean_token(features: Tensor) -> Tensor:
    """(n, N, D) -> (n, D) float32; (n, D) as they are."""
    return reduce(features.float(), "n N D -> n D", "mean") if features.ndim == 3 else features.float()


def feature_extractor(network: nn.Module, layer: str = "", pool: str = "mean") -> Callable[[Tensor], Tensor]:
    """Return a function from clips (B, C, T, H, W) to features (B, D).

    Without `layer` they are the input of the head, or with `pool=tokens` the tokens that the network ends with. With
    it, `pool` reduces the tokens that the layer puts out: `mean`; `cls`, the class token (of frames that are encoded
    one by one, the mean of theirs); `tokens`, all of them (B, N, D). Raises ValueError that lists the layers for an
    unknown one, for the class token of a network without one, and for a class token without a layer.
    """
    if pool == "cls" and not layer:
        raise ValueError("eval.feature_pool=cls: expected eval.feature_layer, the layer whose class token is taken")
    if pool == "cls" and not getattr(network, "has_cls_token", True):
        raise ValueError("eval.feature_pool=cls: the network has no class token")
    if not layer:
        return network.forward_tokens if pool == "tokens" else network.forward_features  # type: ignore[return-value]
    find_layer(network, layer)  # raises for an unknown one

    def extract_tokens(video: Tensor) -> Tensor:
        (output,) = layer_outputs(network, video, [layer])
        if pool == "cls" and output.ndim > 2:
            output = output[..., :1, :]
        tokens = tokens_of_clips(output, len(video))
        return tokens if pool == "tokens" else reduce(tokens, "B N D -> B D", "mean")

    return extract_tokens


@torch.inference_mode()
def extract(
    extract_clips: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype,
    pooled: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each batch the sample indices (B,), negative for padding, and features (B, ...) float32, on the host.

    The features of a video (B, V, C, T, H, W) are the mean over its views, or the tokens (N, D) of all views in a row.
    A network that pools several clips is given `pooled` of them at once, as in a test.
    """
    for batch in batches:
        clips = rearrange(batch.video, "B (L groups) C T H W -> (B groups) L C T H W", L=pooled)
        with autocast(device, dtype):
            views = extract_clips(clips if pooled > 1 else clips.squeeze(1)).float()
        if views.ndim == 2:
            features = reduce(views, "(B V) D -> B D", "mean", B=len(batch.video))
        else:
            features = rearrange(views, "(B V) N D -> B (V N) D", B=len(batch.video))
        yield batch.sample_index.cpu(), features.cpu()


def extract_features(
    test: Eval,
    network: nn.Module,
    loader: EvalVideoLoader,
    world: World,
    dtype: torch.dtype,
    description: Mapping[str, Any],
) -> str:
    """Write the features of every video that can be read to eval.features_path; return the lines to print.

    `description` says how a folder of features is made.
    """
    extract_clips = feature_extractor(network.eval(), test.feature_layer, test.feature_pool)
    pooled: int = getattr(network, "num_clips", 1)  # type: ignore[assignment]
    if loader.source.views.num_clips % pooled:
        raise ValueError(f"eval.num_clips: expected a multiple of {pooled}, which the network pools")
    if not Path(test.features_path).suffix:
        extract_batches = partial(extract, extract_clips, device=loader.device, dtype=dtype, pooled=pooled)
        return extract_to_folder(Path(test.features_path), extract_batches, loader, world, description)
    batches = extract(extract_clips, progress(loader, "features", world), loader.device, dtype, pooled)
    own_index, own_features = (torch.cat(part) for part in zip(*batches, strict=True))
    index, features = (torch.cat(part) for part in zip(*world.gather((own_index, own_features)), strict=True))
    order = index.argsort()[(index < 0).sum() :]
    videos = [loader.videos[i] for i in index[order].tolist()]
    if world.is_main:
        label = torch.tensor([video.label for video in videos])
        Features(features[order], label, [video.name for video in videos]).save(Path(test.features_path))
    shape = "x".join(map(str, features.shape[1:]))
    return f"{len(videos)} of {len(loader.videos)} videos, {shape} features\nwritten: {test.features_path}"


def extract_to_folder(
    folder: Path,
    extract_batches: Callable[[Iterable[Batch]], Iterator[tuple[Tensor, Tensor]]],
    loader: EvalVideoLoader,
    world: World,
    description: Mapping[str, Any],
) -> str:
    """Write shards of features, after those that are there already; return the lines to print."""
    videos = [LabeledVideo(video.name, video.label) for video in loader.videos]

    def open_writer() -> ShardWriter | str:
        try:
            return ShardWriter(folder, description, videos, loader.classes)
        except ValueError as error:
            return str(error)

    writer = open_writer() if world.is_main else None
    start = world.broadcast(lambda: writer if isinstance(writer, str) else writer.start if writer else 0)
    if isinstance(start, str):
        raise ValueError(start)
    per_batch = loader.source.batch_size * world.size  # videos of a batch of all processes
    if start < len(videos):
        first_batch = start // per_batch
        loader.load_state_dict({"epoch": 0, "seen": first_batch * per_batch})
        for batch_index, (own_index, own) in enumerate(
            extract_batches(progress(loader, "features", world)), first_batch
        ):
            parts = world.gather_to_main((own_index, own.half() if own.abs().max() < 65504 else own))
            if isinstance(writer, ShardWriter):
                index, features = (torch.cat(part) for part in zip(*parts, strict=True))
                read = index >= 0
                writer.add(index[read].numpy(), features[read].numpy(), (batch_index + 1) * per_batch)
    world.gather(None)  # the last shard is written
    shards = FeatureShards(folder)
    shape = "x".join(map(str, shards.shape))
    resumed = f", {start} of them before" if start else ""
    return f"{len(shards)} of {len(videos)} videos{resumed}, {shape} features\nwritten: {folder}"
