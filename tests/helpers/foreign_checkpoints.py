"""Checkpoints as other projects write them, made from the names and shapes in data/checkpoints.json.

Each entry there was taken from the project's own code (at the commits below), built small. `keys` are (pattern, numbers
that take the place of *, shape); `logits` is what that code gave for `clip`, with every weight as `draw` makes it from
the key (with `drawn_as` replaced) and the clip from `draw_clip`; `given` is what a user has to say, since the shapes do
not. seed_maskfeat and videomae_pt have no classifier: their numbers are the first five features.

timesformer: facebookresearch/TimeSformer; mmaction: open-mmlab/mmaction2; slowfast: facebookresearch/SlowFast 287ec00
(v1_released: e04fba5); pytorchvideo 0.1.5; videomae: MCG-NJU/VideoMAE 14ef8d8; mae: facebookresearch/mae; mae_pytorch:
pengzhiliang/MAE-pytorch 8b3ab30; scenic: google-research/scenic 4a38d47; seed: mx-mark/VideoTransformer-pytorch
194cae6.
"""

import json
import zlib
from pathlib import Path

import msgpack
import numpy as np
import torch

ENTRIES = json.loads((Path(__file__).parent / "data" / "checkpoints.json").read_text())


def draw(name, shape):
    """Normal numbers of std 0.2, the same everywhere; norm weights around 1."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)) * 0.2
    is_norm = len(shape) == 1 and "norm" in name.lower() and name.endswith(("weight", "scale"))
    return torch.from_numpy(numbers + is_norm).float()


def draw_clip(shape):
    return torch.from_numpy(np.random.RandomState(0).standard_normal(tuple(shape))).float()


def make_state(name):
    """The tensors of an entry under its project's keys."""
    state = {}
    for pattern, numbers, shape in ENTRIES[name]["keys"]:
        for number in [""] if numbers is None else numbers:
            key = pattern.replace("*", str(number))
            drawn_as = key
            for old, new in ENTRIES[name].get("drawn_as", {}).items():
                drawn_as = drawn_as.replace(old, new)
            state[key] = draw(drawn_as, shape)
    return state


def nested(state):
    """{"a/b": tensor} -> {"a": {"b": tensor}}"""
    tree = {}
    for key, tensor in state.items():
        *path, last = key.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = tensor
    return tree


def write_checkpoint(name, folder):
    """The file as the project keeps it: container, prefix and what lies beside the weights."""
    state = make_state(name)
    if name.startswith("scenic"):
        path = folder / "checkpoint"
        path.write_bytes(flax_bytes({"global_step": 7, "optimizer": {"target": nested(state)}}))
        return path
    if name == "timm_vit_npz":
        path = folder / "vit.npz"
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
        return path
    import argparse

    family = name.split("_")[0]
    content = {
        "timesformer": {"model_state": state, "epoch": 3, "cfg": "TIMESFORMER: {}"},
        "slowfast": {"model_state": state, "epoch": 3, "optimizer_state": {"state": {}}, "cfg": "MVIT: {}"},
        "pytorchvideo": {"model_state": state},
        "mmaction": {"meta": {"epoch": 3}, "state_dict": state},
        "seed": {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "1.3.8"},
        "videomae": {"module": state, "args": argparse.Namespace(lr=1e-3)},
        "mae": {"model": state, "args": argparse.Namespace(lr=1e-3)},
    }[family]
    path = folder / f"{name}.pth"
    torch.save(content, path)
    return path


def flax_bytes(tree):
    """flax.serialization's MessagePack: an array is extension 1 around (shape, dtype, bytes); large ones in chunks."""

    def array(tensor):
        payload = (list(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.numpy().tobytes())
        return msgpack.ExtType(1, msgpack.packb(payload, use_bin_type=True))

    def pack(value):
        if isinstance(value, dict):
            return {key: pack(inner) for key, inner in value.items()}
        if isinstance(value, torch.Tensor) and value.numel() > 4000:
            chunks = value.flatten().split(1500)
            return {
                "__msgpack_chunked_array__": True,
                "shape": {str(i): size for i, size in enumerate(value.shape)},
                "chunks": {str(i): array(chunk) for i, chunk in enumerate(chunks)},
            }
        return array(value) if isinstance(value, torch.Tensor) else value

    return msgpack.packb(pack(tree), use_bin_type=True)
