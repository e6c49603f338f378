"""Extract a feature vector, or all tokens, for each video of a list.

    python eval.py runs/NAME data.test=TRAIN_LIST eval.features_path=train.npz
    python eval.py runs/NAME eval.features_path=test.safetensors eval.feature_layer=blocks.5

A file has `features` (n, D) float32, `label` (n,) and `video` (paths) of the videos that could be read. Without
eval.feature_layer the features are the input of the head.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from configs.schema import Eval
from evaluation.evaluate import progress
from networks.layer_outputs import find_layer, layer_outputs, tokens_of_clips
from pipelines.batch_loader import Batch, BatchLoader
from utils.device import autocast
from utils.distributed import World

SUFFIXES = (".npz", ".safetensors")


@dataclass(frozen=True)
class Features:
    """Features and labels of videos."""

    features: Tensor  # (n, D) float32; (n, N, D) of all tokens
    label: Tensor  # (n,) int64
    video: list[str]

    @staticmethod
    def check_path(path: Path) -> None:
        """Raise ValueError for a file name that save() cannot write."""
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: expected a name that ends in .npz or .safetensors")

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
    def load(path: Path) -> Features:
        """Read what save() wrote. Raises ValueError for a file that is missing or has no features."""
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
        return Features(torch.from_numpy(features).float(), torch.from_numpy(label).long(), video)


def feature_extractor(network: nn.Module, layer: str = "", pool: str = "mean") -> Callable[[Tensor], Tensor]:
    """Return a function from clips (B, C, T, H, W) to features (B, D).

    Without `layer` they are the input of the head. With it, `pool` reduces the tokens that the layer puts out: `mean`;
    `cls`, the class token (of frames that are encoded one by one, the mean of theirs); `tokens`, all of them (B, N, D).
    Raises ValueError that lists the layers for an unknown one, and for the class token of a network without one.
    """
    if pool == "cls" and layer and not getattr(network, "has_cls_token", True):
        raise ValueError("eval.feature_pool=cls: the network has no class token")
    if not layer:
        return network.forward_features  # type: ignore[return-value]
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
    extract_clips: Callable[[Tensor], Tensor], batches: Iterable[Batch], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the sample indices (n,), negative for padding, and features (n, D) or (n, N, D) float32, on the host.

    The features of a video (B, V, C, T, H, W) are the mean over its views.
    """
    indices, features = [], []
    for batch in batches:
        with autocast(device, dtype):
            views = extract_clips(rearrange(batch.video, "B V C T H W -> (B V) C T H W")).float()
        features.append(reduce(views, "(B V) ... -> B ...", "mean", B=len(batch.video)).cpu())
        indices.append(batch.sample_index.cpu())
    return torch.cat(indices), torch.cat(features)


def extract_features(test: Eval, network: nn.Module, loader: BatchLoader, world: World, dtype: torch.dtype) -> str:
    """Write the features of every video that can be read to eval.features_path; return the lines to print."""
    extract_clips = feature_extractor(network.eval(), test.feature_layer, test.feature_pool)
    parts = world.gather(extract(extract_clips, progress(loader, "features", world), loader.device, dtype))
    index, features = (torch.cat(part) for part in zip(*parts, strict=True))
    order = index.argsort()[(index < 0).sum() :]
    videos = [loader.videos[i] for i in index[order].tolist()]
    if world.is_main:
        label = torch.tensor([video.label for video in videos])
        Features(features[order], label, [video.name for video in videos]).save(Path(test.features_path))
    shape = "x".join(map(str, features.shape[1:]))
    return f"{len(videos)} of {len(loader.videos)} videos, {shape} features\nwritten: {test.features_path}"
