"""Checkpoints as other projects write them, generated from the keys and shapes in data/checkpoints.json.

Each entry was taken from the project's own code at the commits below, with a small network. `keys` are (pattern,
numbers that replace *, shape). `logits` are the outputs of that code for a clip of shape `clip` from `draw_clip`, with
every weight drawn by `draw` from its key (in which `drawn_as` is replaced). `given` are the arguments that a user has
to give, since the shapes do not determine them. seed_maskfeat, videomae_pt, hiera_pt, vjepa2 and vjepa2_1 have no
classifier: their logits are the first five features, in the last two those of the mean token, in hiera_pt those of the
encoder pooled as in fine-tuning. `pretraining` is the loss for the `hidden` cells (in vjepa2 of two masks), some of the
predicted numbers (of `every` row and column) and norms of gradients, by the names here; `predictor` are the keys of
vjepa2's, which is stored beside the encoder. Names with seed_ are of VideoTransformer-pytorch.

timesformer: facebookresearch/TimeSformer; mmaction: open-mmlab/mmaction2; slowfast: facebookresearch/SlowFast 287ec00
(v1_released: e04fba5); pytorchvideo 0.1.5; videomae: MCG-NJU/VideoMAE 14ef8d8; mae: facebookresearch/mae; mae_pytorch:
pengzhiliang/MAE-pytorch 8b3ab30; vjepa2: facebookresearch/vjepa2 c2963a4 (vjepa2_1: with the changes of be434e4 to the
rotation, positions, norms and embeddings); hiera: facebookresearch/hiera b12b842; scenic:
google-research/scenic 4a38d47; seed: mx-mark/VideoTransformer-pytorch 194cae6.
"""

import argparse
import json
import zlib
from pathlib import Path

import msgpack
import numpy as np
import torch

ENTRIES = json.loads((Path(__file__).parent / "data" / "checkpoints.json").read_text())


def draw(name, shape):
    """Draw normal numbers of std 0.2, around 1 for the weights of norms, that are the same on every machine."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)) * 0.2
    is_norm = len(shape) == 1 and "norm" in name.lower() and name.endswith(("weight", "scale"))
    return torch.from_numpy(numbers + is_norm).float()


def draw_clip(shape):
    return torch.from_numpy(np.random.RandomState(0).standard_normal(tuple(shape))).float()


def make_state(name, part="keys"):
    """Return the tensors of an entry, or of its `predictor`, under the keys of its project."""
    state = {}
    for pattern, numbers, shape in ENTRIES[name].get(part, []):
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
        subtree = tree
        for part in path:
            subtree = subtree.setdefault(part, {})
        subtree[last] = tensor
    return tree


def write_checkpoint(name, folder):
    """Write the file as the project does: its container, its prefix, and what it stores beside the weights."""
    state = make_state(name)
    if name.startswith("scenic"):
        path = folder / "checkpoint"
        path.write_bytes(flax_bytes({"global_step": 7, "optimizer": {"target": nested(state)}}))
        return path
    if name == "timm_vit_npz":
        path = folder / "vit.npz"
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
        return path
    family = name.split("_")[0]
    predictor = make_state("vjepa2", "predictor") | {"predictor_pos_embed": torch.zeros(1, 12, 24)}
    content = {
        "hiera": {"model_state": state},
        "timesformer": {"model_state": state, "epoch": 3, "cfg": "TIMESFORMER: {}"},
        "slowfast": {"model_state": state, "epoch": 3, "optimizer_state": {"state": {}}, "cfg": "MVIT: {}"},
        "pytorchvideo": {"model_state": state},
        "mmaction": {"meta": {"epoch": 3}, "state_dict": state},
        "seed": {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "1.3.8"},
        "videomae": {"module": state, "args": argparse.Namespace(lr=1e-3)},
        "mae": {"model": state, "args": argparse.Namespace(lr=1e-3)},
        "vjepa2": {
            "encoder": {f"module.{key}": torch.zeros_like(tensor) for key, tensor in state.items()},  # not the EMA
            "predictor": {f"module.backbone.{key}": tensor for key, tensor in predictor.items()},
            "opt": {"state": {}},
            ("ema_encoder" if name == "vjepa2_1" else "target_encoder"): {
                f"module.{key}": tensor for key, tensor in state.items()
            },
            "epoch": 3,
        },
    }[family]
    path = folder / f"{name}.pth"
    torch.save(content, path)
    return path


def flax_bytes(tree):
    """Pack as flax.serialization does: an array is MessagePack extension 1 with (shape, dtype, bytes), a large one is
    split into chunks."""

    def pack_array(tensor):
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
                "chunks": {str(i): pack_array(chunk) for i, chunk in enumerate(chunks)},
            }
        return pack_array(value) if isinstance(value, torch.Tensor) else value

    return msgpack.packb(pack(tree), use_bin_type=True)


def details(report, status):
    """Return the details of a report by key of the network, or by key of the file if it was dropped."""
    return {record.target or record.sources[0]: record.detail for record in report.with_status(status)}
