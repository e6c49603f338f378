"""Writes a network as transformers keeps it: TimeSformer, and ViViT with joint attention (the only ViViT it has)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from networks.layers import NORM_EPS, height_width
from networks.timesformer import TimeSformer
from networks.vivit import ViViT
from networks.weights.read import CONFIG, PREPROCESSOR, read_json
from networks.weights.save_load import write_folder

# Theirs for ours, inside a block. The spelling is the one of the files on their hub, which every version reads.
BLOCK = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
TEMPORAL = {
    "attn.qkv": "attention.attention.qkv", "temporal_norm1": "temporal_layernorm",
    "temporal_attn.qkv": "temporal_attention.attention.qkv", "temporal_attn.proj": "temporal_attention.output.dense",
    "temporal_fc": "temporal_dense",
}  # fmt: skip
ENDS = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "time_embed": "embeddings.time_embeddings", "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}  # fmt: skip
ATTENTION = {"divided": "divided_space_time", "joint": "joint_space_time"}


def export(network: nn.Module, config: Mapping[str, Any], folder: str | Path) -> str:
    """config.json, model.safetensors and preprocessor_config.json for from_pretrained; returns what was written.

    Raises ValueError for a network that transformers has no like of.
    """
    theirs = configuration(network)
    classes: int = network.kwargs["num_classes"]  # type: ignore[index,assignment]
    folder = Path(folder)
    if (folder / CONFIG).is_file() and "kwargs" in read_json(folder / CONFIG):
        raise ValueError(f"{folder}: holds a network of ours, which this would destroy; choose another folder")
    if len(config.get("id2label", range(classes))) != classes:
        raise ValueError(f"id2label names {len(config['id2label'])} classes, the network has {classes}")
    if "id2label" in config:
        theirs["id2label"] = {str(number): label for number, label in config["id2label"].items()}
        theirs["label2id"] = {label: int(number) for number, label in config["id2label"].items()}
    else:
        theirs["num_labels"] = classes
    state = rename(network.state_dict(), theirs["model_type"])

    texts = {CONFIG: theirs}
    given = config.get("input", {})
    if given.get("mean") and given.get("std"):
        texts[PREPROCESSOR] = preprocessing(given, theirs["image_size"])
    write_folder(folder, state, texts, {"format": "pt"})
    return f"wrote {folder}: {theirs['architectures'][0]} for transformers"


def configuration(network: nn.Module) -> dict[str, Any]:
    """Their config.json for ours."""
    kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    joint_vivit = isinstance(network, ViViT) and kwargs["attention"] == "joint"
    if not (joint_vivit or isinstance(network, TimeSformer)):
        raise ValueError(f"transformers has no {type(network).__name__} with attention={kwargs.get('attention')}")
    refuse = [
        f"{key}={kwargs[key]}"
        for key, only in (("pooling", "cls"), ("positions", "learned"), ("cls_token", True), ("norm_eps", NORM_EPS))
        if kwargs.get(key, only) != only
    ]
    if kwargs["num_classes"] == 0:
        refuse.append("num_classes=0")
    height, width = height_width(kwargs["image_size"])
    shared = {
        "image_size": height if height == width else [height, width],
        "patch_size": kwargs["patch_size"], "num_frames": kwargs["num_frames"],
        "num_channels": kwargs["in_chans"], "hidden_size": kwargs["width"], "num_hidden_layers": kwargs["depth"],
        "num_attention_heads": kwargs["heads"], "intermediate_size": int(kwargs["width"] * kwargs["mlp_ratio"]),
        "hidden_act": {"exact": "gelu", "tanh": "gelu_fast"}.get(kwargs["gelu"]), "layer_norm_eps": NORM_EPS,
        "qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if isinstance(network, TimeSformer):
        if not isinstance(shared["image_size"], int):
            refuse.append(f"image_size={kwargs['image_size']} (theirs computes with squares)")
        if kwargs["attention"] not in ATTENTION:
            refuse.append(f"attention={kwargs['attention']} (theirs does not average over the frames)")
        if kwargs["tubelet"] != 1:
            refuse.append(f"tubelet={kwargs['tubelet']}")
        own = {"architectures": ["TimesformerForVideoClassification"], "model_type": "timesformer",
               "attention_type": ATTENTION.get(kwargs["attention"])}  # fmt: skip
    else:
        patch = kwargs["patch_size"]
        own = {"architectures": ["VivitForVideoClassification"], "model_type": "vivit",
               "tubelet_size": [kwargs["tubelet"], patch, patch]}  # fmt: skip
    if refuse:
        raise ValueError(f"transformers has no {type(network).__name__} with {', '.join(refuse)}")
    return own | shared


def rename(state: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    """Our keys -> theirs; ViViT's qkv in three, TimeSformer's patch kernel without its depth of 1."""
    block = BLOCK | TEMPORAL if root == "timesformer" else BLOCK
    renamed = {}
    for key, tensor in state.items():
        path, _, kind = key.rpartition(".")
        if path.startswith("blocks."):
            _, number, part = path.split(".", 2)
            layer = f"{root}.encoder.layer.{number}"
            if part == "attn.qkv" and root == "vivit":
                for name, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    renamed[f"{layer}.attention.attention.{name}.{kind}"] = third
            else:
                renamed[f"{layer}.{block[part]}.{kind}"] = tensor
        elif path == "head":
            renamed[f"classifier.{kind}"] = tensor
        elif key in ENDS:
            renamed[f"{root}.{ENDS[key]}"] = tensor
        else:
            flat = path == "patch_embed.proj" and kind == "weight" and root == "timesformer"
            renamed[f"{root}.{ENDS[path]}.{kind}"] = tensor.squeeze(2) if flat else tensor
    return renamed


def preprocessing(given: Mapping[str, Any], image_size: Any) -> dict[str, Any]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return {
        "image_processor_type": "VideoMAEImageProcessor",  # 1/255, then mean and std: no offset of its own
        "do_resize": True, "size": {"shortest_edge": min(height, width)}, "do_center_crop": True,
        "crop_size": {"height": height, "width": width}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": given["mean"], "image_std": given["std"],
    }  # fmt: skip
