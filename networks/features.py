"""Features of videos, and what they tell of classes without further training: nearest neighbours, a linear probe.

    python eval.py runs/NAME data.test=TRAIN_LIST eval.features=train.npz          features of a list's videos
    python eval.py runs/NAME eval.features=test.safetensors eval.layer=blocks.5    of a block, not of what is classified
    python -m networks.features train.npz test.npz [k=20] [temperature=0.07] [l2=1e-4]

A file holds `features` (n, D) float32, `label` (n,) and `video` (paths), of the videos that could be read.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from configs.device import autocast
from configs.words import parse


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


def nearest_neighbours(train: Features, test: Features, classes: int, k: int = 20, temperature: float = 0.07) -> Tensor:
    """(n, classes) votes of the k nearest by cosine, each weighed by exp(cosine / temperature) (DINO, appendix E)."""
    known, asked = (F.normalize(part.features, dim=1) for part in (train, test))
    votes = []
    for rows in asked.split(1024):
        near = (rows @ known.T).topk(min(k, len(known)), dim=1)
        weights = F.softmax(near.values / temperature, dim=1)
        votes.append(torch.zeros(len(rows), classes).scatter_add_(1, train.label[near.indices], weights))
    return torch.cat(votes)


def linear_probe(train: Features, test: Features, classes: int, l2: float = 1e-4) -> Tensor:
    """(n, classes) logits of a logistic regression on features scaled to mean 0 and variance 1, solved by L-BFGS."""
    mean, std = train.features.mean(0), train.features.std(0).clamp_min(1e-6)
    known, asked = ((part.features - mean) / std for part in (train, test))
    weight = torch.zeros(classes, known.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def loss() -> Tensor:
        solver.zero_grad()
        logits = F.linear(known, weight[:, 1:], weight[:, 0])
        value = F.cross_entropy(logits, train.label) + l2 * weight[:, 1:].square().sum()
        value.backward()
        return value

    solver.step(loss)
    with torch.no_grad():
        return F.linear(asked, weight[:, 1:], weight[:, 0])


@dataclass(frozen=True)
class Settings:
    k: int = 20
    temperature: float = 0.07
    l2: float = 1e-4

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0 or self.l2 < 0:
            raise ValueError("expected k of 1 or more, a temperature above 0, l2 of 0 or more")


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 2
    try:
        paths, s = parse(Settings, words, ["TRAIN", "TEST"])
        train, test = (Features.load(Path(path)) for path in paths)
        for path, part in zip(paths, (train, test), strict=True):
            if part.features.ndim != 2:
                raise ValueError(f"{path}: holds tokens; expected one vector a video (eval.pool=mean or cls)")
        if train.features.shape[1] != test.features.shape[1]:
            raise ValueError(f"{paths[1]}: {test.features.shape[1]} features, {paths[0]} has {train.features.shape[1]}")
        classes = int(max(train.label.max(), test.label.max())) + 1
        for name, scores in (
            (f"{s.k} nearest neighbours", nearest_neighbours(train, test, classes, s.k, s.temperature)),
            ("linear probe", linear_probe(train, test, classes, s.l2)),
        ):
            best = scores.topk(min(5, classes)).indices == test.label[:, None]
            top1, top5 = (100 * best[:, :n].any(1).float().mean() for n in (1, 5))
            print(f"{name:24} top-1 {top1:.2f} %  top-5 {top5:.2f} %")
        print(f"{len(train.label)} videos known, {len(test.label)} asked, {train.features.shape[1]} features")
    except ValueError as error:
        print(f"networks.features: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
