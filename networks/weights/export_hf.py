"""Write a network as transformers reads it: config.json, model.safetensors, preprocessor_config.json and README.md."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import height_width
from networks.weights.hf_config import HFModel, describe_for_transformers, describe_loss
from networks.weights.key_rules import rename_back
from networks.weights.model_card import describe_network, write_model_card
from networks.weights.read import PREPROCESSOR
from networks.weights.save_load import write_folder
from networks.weights.source_config import CONFIG, read_json

PROCESSORS = {
    "vjepa2": {"video_processor_type": "VJEPA2VideoProcessor"},
    "hiera": {"image_processor_type": "BitImageProcessor"},
}
# Scales by 1/255, then mean and std, without an offset.
DEFAULT_PROCESSOR = {"image_processor_type": "VideoMAEImageProcessor"}


def export(
    network: nn.Module,
    config: Mapping[str, Any],
    folder: str | Path,
    *,
    license_name: str = "unknown",
    figures: Mapping[str, Any] | None = None,
    repository: str = "",
) -> str:
    """Write the files for from_pretrained; return a message.

    `config` is that of the network's folder: classes, input and task. `figures` are results for the card, by the name
    of the test; `repository` is where the folder will be found, if not here. Raises ValueError for a network that
    transformers cannot build.
    """
    model, folder = describe_for_transformers(network), Path(folder)
    if (folder / CONFIG).is_file() and "kwargs" in read_json(folder / CONFIG):
        raise ValueError(
            f"{folder}: contains a network of this project, which would be overwritten; choose another folder"
        )
    hf_config: dict[str, Any] = {"input": dict(config["input"])} if config.get("input") else {}
    hf_config |= model.config | describe_classes(network, config) | describe_loss(network, config.get("task", {}))
    state = dict(rename_state(network.state_dict(), model))
    json_files = {CONFIG: hf_config}
    clip = config.get("input", {})
    if clip.get("mean") and clip.get("std"):
        image_size = network.kwargs["image_size"]  # type: ignore[index]
        json_files[PREPROCESSOR] = build_preprocessor(
            image_size, hf_config["model_type"], mean=clip["mean"], std=clip["std"]
        )
    write_folder(folder, state, json_files, {"format": "pt"})
    write_model_card(
        folder,
        describe_network(network, hf_config, clip, num_parameters=sum(tensor.numel() for tensor in state.values())),
        hf_config,
        license_name=license_name,
        figures=figures or {},
        title=repository or folder.name,
        address=repository or str(folder),
    )
    return f"wrote {folder}: {model.name} for transformers"


def describe_classes(network: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes as config.json of transformers names them. Raises ValueError for another number of names."""
    num_classes: int = network.kwargs.get("num_classes", 0)  # type: ignore[operator,union-attr,assignment]
    if not num_classes:
        return {}
    if "id2label" not in config:
        return {"num_labels": num_classes}
    id2label = config["id2label"]
    if len(id2label) != num_classes:
        raise ValueError(f"id2label names {len(id2label)} classes, the network has {num_classes}")
    several = {"problem_type": "multi_label_classification"} if config.get("multi_label") else {}
    return {
        **several,
        "id2label": {str(number): label for number, label in id2label.items()},
        "label2id": {label: int(number) for number, label in id2label.items()},
    }


def rename_state(state: Mapping[str, Tensor], model: HFModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under their names in transformers, each query, key and value by itself where it has them so.

    A bias of the keys is left out where transformers has none: it adds the same to all scores of a query, which changes
    no output.
    """
    for name, value in state.items():
        tensor = value
        if name.endswith("pos_embed_temporal"):  # of a single frame: a part of the positions in space
            continue
        if model.left_out and name.startswith(model.left_out):
            continue
        if name.endswith("pos_embed_spatial"):
            tensor = tensor + state[name.replace("spatial", "temporal")]
        for start, axes in model.axes.items():
            if name.startswith(start):
                tensor = rearrange(tensor, axes, **({"C": model.config["num_channels"]} if "C" in axes else {}))
        names = rename_back(number_by_stage(name, model.stages), model.rules)
        parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        for (role, foreign_name), part in zip(names.items(), parts, strict=True):
            is_missing = role == "key" and name.endswith("bias") and not model.has_key_bias
            if not is_missing:
                yield foreign_name, without_depth(part, model)


def number_by_stage(name: str, stages: tuple[int, ...]) -> str:
    """blocks.5.norm1.weight -> blocks.2.0.norm1.weight: stage and block in it, if blocks are numbered by stages."""
    prefix, found, rest = name.partition("blocks.")
    if not stages or not found or prefix.endswith("decoder_"):
        return name
    number, _, layer = rest.partition(".")
    stage, index = 0, int(number)
    while index >= stages[stage]:
        stage, index = stage + 1, index - stages[stage]
    return f"{prefix}blocks.{stage}.{index}.{layer}"


def without_depth(tensor: Tensor, model: HFModel) -> Tensor:
    """Return a kernel over one frame as one over images, which TimeSformer and Hiera have in transformers."""
    is_kernel = tensor.ndim == 5 and model.config["model_type"] in ("timesformer", "hiera")
    return tensor.squeeze(2) if is_kernel else tensor


def build_preprocessor(image_size: Any, model_type: str, *, mean: list[float], std: list[float]) -> dict[str, Any]:
    """Return preprocessor_config.json: resize the short side, crop the center, scale and normalize."""
    height, width = height_width(image_size)
    return {
        **PROCESSORS.get(model_type, DEFAULT_PROCESSOR),
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
