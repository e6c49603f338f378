"""Write a network as transformers reads it: TimeSformer, or ViViT with joint attention, the only one it has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from networks.argument_checks import height_width
from networks.layers import NORM_EPS
from networks.timesformer import TimeSformer
from networks.vivit import ViViT
from networks.weights.read import PREPROCESSOR, read_json
from networks.weights.save_load import write_folder
from networks.weights.source_config import CONFIG

# Names of transformers for the names here, spelled as in the files on its hub, which every version reads.
BLOCK_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
TIMESFORMER_BLOCK_NAMES = BLOCK_NAMES | {
    "attn.qkv": "attention.attention.qkv",
    "temporal_norm1": "temporal_layernorm",
    "temporal_attn.qkv": "temporal_attention.attention.qkv",
    "temporal_attn.proj": "temporal_attention.output.dense",
    "temporal_fc": "temporal_dense",
}
OTHER_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "time_embed": "embeddings.time_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
ATTENTION_TYPES = {"divided": "divided_space_time", "joint": "joint_space_time"}


def export(network: nn.Module, config: Mapping[str, Any], folder: str | Path) -> str:
    """Write config.json, model.safetensors and preprocessor_config.json for from_pretrained; return a message.

    Raises ValueError for a network that transformers cannot build.
    """
    hf_config = build_hf_config(network)
    num_classes: int = network.kwargs["num_classes"]  # type: ignore[index,assignment]
    folder = Path(folder)
    if (folder / CONFIG).is_file() and "kwargs" in read_json(folder / CONFIG):
        raise ValueError(
            f"{folder}: contains a network of this project, which would be overwritten; choose another folder"
        )
    if "id2label" in config:
        id2label = config["id2label"]
        if len(id2label) != num_classes:
            raise ValueError(f"id2label names {len(id2label)} classes, the network has {num_classes}")
        hf_config["id2label"] = {str(number): label for number, label in id2label.items()}
        hf_config["label2id"] = {label: int(number) for number, label in id2label.items()}
    else:
        hf_config["num_labels"] = num_classes
    state = rename_state(network.state_dict(), hf_config["model_type"])

    json_files = {CONFIG: hf_config}
    input_stats = config.get("input", {})
    if input_stats.get("mean") and input_stats.get("std"):
        json_files[PREPROCESSOR] = build_preprocessor(
            hf_config["image_size"], mean=input_stats["mean"], std=input_stats["std"]
        )
    write_folder(folder, state, json_files, {"format": "pt"})
    return f"wrote {folder}: {hf_config['architectures'][0]} for transformers"


def build_hf_config(network: nn.Module) -> dict[str, Any]:
    """Return the config.json of transformers for a network. Raises ValueError if it cannot build the network."""
    kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    is_timesformer = isinstance(network, TimeSformer)
    if not is_timesformer and not (isinstance(network, ViViT) and kwargs["attention"] == "joint"):
        raise ValueError(f"transformers has no {type(network).__name__} with attention={kwargs.get('attention')}")
    height, width = height_width(kwargs["image_size"])
    unsupported = unsupported_arguments(kwargs)
    if is_timesformer:
        unsupported += unsupported_timesformer_arguments(kwargs)
        hf_config = {
            "architectures": ["TimesformerForVideoClassification"],
            "model_type": "timesformer",
            "attention_type": ATTENTION_TYPES.get(kwargs["attention"]),
        }
    else:
        hf_config = {
            "architectures": ["VivitForVideoClassification"],
            "model_type": "vivit",
            "tubelet_size": [kwargs["tubelet_size"], kwargs["patch_size"], kwargs["patch_size"]],
        }
    if unsupported:
        raise ValueError(f"transformers has no {type(network).__name__} with {', '.join(unsupported)}")
    return hf_config | {
        "image_size": height if height == width else [height, width],
        "patch_size": kwargs["patch_size"],
        "num_frames": kwargs["num_frames"],
        "num_channels": kwargs["in_chans"],
        "hidden_size": kwargs["embed_dim"],
        "num_hidden_layers": kwargs["depth"],
        "num_attention_heads": kwargs["num_heads"],
        "intermediate_size": int(kwargs["embed_dim"] * kwargs["mlp_ratio"]),
        "hidden_act": {"exact": "gelu", "tanh": "gelu_fast"}.get(kwargs["gelu"]),
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def unsupported_arguments(kwargs: Mapping[str, Any]) -> list[str]:
    """Return the arguments, as key=value, with which transformers has neither a TimeSformer nor a ViViT."""
    supported = {"pooling": "cls", "pos_embed": "learned", "cls_token": True, "norm_eps": NORM_EPS}
    unsupported = [f"{key}={kwargs[key]}" for key, value in supported.items() if kwargs.get(key, value) != value]
    return unsupported + (["num_classes=0"] if kwargs["num_classes"] == 0 else [])


def unsupported_timesformer_arguments(kwargs: Mapping[str, Any]) -> list[str]:
    unsupported = []
    height, width = height_width(kwargs["image_size"])
    if height != width:
        unsupported.append(f"image_size={kwargs['image_size']} (its TimeSformer computes with squares)")
    if kwargs["attention"] not in ATTENTION_TYPES:
        unsupported.append(f"attention={kwargs['attention']} (its TimeSformer does not average over the frames)")
    if kwargs["tubelet_size"] != 1:
        unsupported.append(f"tubelet_size={kwargs['tubelet_size']}")
    return unsupported


def rename_state(state: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """Rename the keys for transformers; the qkv of ViViT is split, the patch kernel of TimeSformer loses its depth."""
    is_timesformer = model_type == "timesformer"
    block_names = TIMESFORMER_BLOCK_NAMES if is_timesformer else BLOCK_NAMES
    renamed = {}
    for key, tensor in state.items():
        module, _, param = key.rpartition(".")
        if module.startswith("blocks."):
            _, number, layer = module.split(".", 2)
            prefix = f"{model_type}.encoder.layer.{number}"
            if layer == "attn.qkv" and not is_timesformer:
                for name, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    renamed[f"{prefix}.attention.attention.{name}.{param}"] = third
            else:
                renamed[f"{prefix}.{block_names[layer]}.{param}"] = tensor
        elif module == "head":
            renamed[f"classifier.{param}"] = tensor
        elif key in OTHER_NAMES:
            renamed[f"{model_type}.{OTHER_NAMES[key]}"] = tensor
        else:
            has_depth = is_timesformer and key == "patch_embed.proj.weight"
            renamed[f"{model_type}.{OTHER_NAMES[module]}.{param}"] = tensor.squeeze(2) if has_depth else tensor
    return renamed


def build_preprocessor(image_size: Any, *, mean: list[float], std: list[float]) -> dict[str, Any]:
    height, width = height_width(image_size)
    return {
        "image_processor_type": "VideoMAEImageProcessor",  # scales by 1/255, then mean and std, without an offset
        "do_resize": True,
        "size": {"shortest_edge": min(height, width)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
