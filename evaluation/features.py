"""Extract a feature vector, or all tokens, for each video of a list.

    python eval.py runs/NAME data.test=TRAIN_LIST eval.features=train.npz          features of a list's videos
    python eval.py runs/NAME eval.features=test.safetensors eval.layer=blocks.5    of a block, not of what is classified

A file holds `features` (n, D) float32, `label` (n,) and `video` (paths), of the videos that could be read.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from configs import loading
from evaluation.evaluate import progress
from pipelines.loader import VideoLoader
from utils.device import autocast
from utils.distributed import World


@dataclass(frozen=True)
class Features:
    features: Tensor  # (n, D) float32; (n, N, D) of all tokens
    label: Tensor  # (n,) int64
    video: list[str]

    @staticmethod
    def check(path: Path) -> None:
        """Raises ValueError for a name that save() does not know."""
        if path.suffix not in (".npz", ".safetensors"):
            raise ValueError(f"{path}: expected a name that ends in .npz or .safetensors")

    def save(self, path: Path) -> None:
        """As .npz or .safetensors, by the name. Raises ValueError for another."""
        self.check(path)
        arrays = {"features": self.features.numpy(), "label": self.label.numpy()}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez(path, features=arrays["features"], label=arrays["label"], video=np.array(self.video))
        else:
            save_file(arrays, path, {"video": json.dumps(self.video)})

    @staticmethod
    def load(path: Path) -> Features:
        """Raises ValueError for a file that is missing or holds no features."""
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


def reader(network: nn.Module, layer: str = "", pool: str = "mean") -> Callable[[Tensor], Tensor]:
    """Clips (B, C, T, H, W) -> (B, D): what the head is given, or of the tokens that `layer` puts out the mean, the
    class token (`cls`; of frames that go by themselves the mean of theirs), or all of them (B, N, D) (`tokens`).

    Raises ValueError that lists the layers for a name that is none, and for the class token of a network without one.
    """
    if pool == "cls" and layer and not getattr(network, "has_cls_token", True):
        raise ValueError("eval.pool=cls: the network has no class token")
    if not layer:
        return network.forward_features  # type: ignore[return-value]
    known = dict(network.named_modules())
    if layer not in known:
        blocks = [name for name in known if name.rpartition(".")[0].endswith("blocks")]
        raise ValueError(f"eval.layer={layer}: the network has no such layer; its blocks are {', '.join(blocks)}")

    def read(video: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = known[layer].register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            network.forward_features(video)  # type: ignore[operator]  # not network(...), which may be compiled
        finally:
            hook.remove()
        if not seen:
            raise ValueError(f"eval.layer={layer}: the network does not run this layer by itself")
        tokens = seen[-1].flatten(1, -2) if seen[-1].ndim > 2 else seen[-1][:, None]
        if pool == "tokens":  # rows: frames that go by themselves
            return rearrange(tokens, "(B rows) N D -> B (rows N) D", B=len(video))
        return reduce(tokens[:, :1] if pool == "cls" else tokens, "(B rows) N D -> B D", "mean", B=len(video))

    return read


@torch.inference_mode()
def extract(
    network: nn.Module, batches: Iterable[Any], device: torch.device, dtype: torch.dtype, layer: str, pool: str
) -> tuple[Tensor, Tensor]:
    """Of each video (B, V, C, T, H, W) the mean over its views: rows (n,), negative where a batch was padded, and
    features (n, D) or (n, N, D) float32; both on the host. Raises ValueError as reader()."""
    read, rows, found = reader(network, layer, pool), [], []
    for batch in batches:
        with autocast(device, dtype):
            features = read(rearrange(batch.video, "B V C T H W -> (B V) C T H W")).float()
        found.append(reduce(features, "(B V) ... -> B ...", "mean", B=len(batch.video)).cpu())
        rows.append(batch.sample.cpu())
    return torch.cat(rows), torch.cat(found)


def extract_features(
    cfg: loading.Config, network: nn.Module, loader: VideoLoader, world: World, dtype: torch.dtype
) -> str:
    """eval.features: of every video that can be read, the mean over its views; returns the lines to print."""
    batches = progress(loader, "features", world)
    parts = world.gather(extract(network.eval(), batches, loader.device, dtype, cfg.eval.layer, cfg.eval.pool))
    row, values = (torch.cat(part) for part in zip(*parts, strict=True))
    order = row.argsort()[(row < 0).sum() :]
    clips = [loader.source.clips[n] for n in row[order].tolist()]
    found = Features(values[order], torch.tensor([clip.label for clip in clips]), [clip.path for clip in clips])
    if world.is_first:
        found.save(Path(cfg.eval.features))
    shape = "x".join(map(str, values.shape[1:]))
    return f"{len(clips)} of {len(loader.source.clips)} videos, {shape} features\nwritten: {cfg.eval.features}"
