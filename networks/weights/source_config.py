"""The JSON files beside a checkpoint: config.json, of this project ("name" and "kwargs") or of transformers, and the
preprocessor_config.json of transformers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

CONFIG = "config.json"
GELU = {"gelu": "exact", "gelu_python": "exact", "gelu_fast": "tanh", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
ARGUMENT_NAMES = {
    "num_attention_heads": "num_heads",
    "decoder_num_attention_heads": "decoder_num_heads",
    "pred_num_attention_heads": "predictor_num_heads",
    "image_size": "image_size",
    "num_frames": "num_frames",
    "crop_size": "image_size",
    "img_size": "image_size",
    "frames_per_clip": "num_frames",
}


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The content of the files beside the weights; a field keeps its default where they tell nothing.

    A folder of this project has a `name` and the `network_kwargs` that build its network. Of other projects, `kwargs`
    are the constructor arguments that the config tells, and `grid` is the (t, h, w) of the position embeddings.
    """

    name: str = ""
    network_kwargs: dict[str, Any] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    grid: list[int] | None = None
    id2label: dict[str, Any] = field(default_factory=dict)
    labels: list[str] | None = None  # class names in order, None if they are only placeholders
    input: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)  # of a masked autoencoder: norm_pix_loss, mask_ratio
    mean: Any = None
    std: Any = None
    encoder: str = ""  # the name in timm of an image encoder
    encoder_args: dict[str, Any] = field(default_factory=dict)
    multi_label: bool | None = None  # whether it was trained for several labels per clip; None: the files do not tell
    problem: str = ""  # why no network of this project computes the same; an image encoder on frames is timm's own

    def normalization(self, default: Mapping[str, Any]) -> dict[str, Any]:
        """Return mean and std of the input: those of the files, otherwise the default."""
        return {"mean": self.mean or default.get("mean"), "std": self.std or default.get("std")}


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def parse_source_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> SourceConfig:
    """Raises ValueError for a key that is read and has an unexpected value, and for an adapter that is not merged."""
    check_types(config)
    if "adapter" in config:
        raise ValueError(f"{CONFIG}: the network has an adapter ({config['adapter']['name']}), which others have not")
    own_input, timm_input = config.get("input", {}), config.get("pretrained_cfg", {})
    fields: dict[str, Any] = {
        "id2label": config.get("id2label", {}),
        "labels": parse_labels(config.get("id2label", {})),
        "input": own_input,
        "task": config.get("task") if is_object(config.get("task")) else parse_task(config),
        "mean": own_input.get("mean") or preprocessor.get("image_mean") or timm_input.get("mean"),
        "std": own_input.get("std") or preprocessor.get("image_std") or timm_input.get("std"),
        "multi_label": parse_multi_label(config),
        "problem": describe_problem(config),
    }
    if "kwargs" in config:
        if "name" not in config:
            raise ValueError(f"{CONFIG}: key 'name' is missing")
        kwargs = config["kwargs"]
        encoder = {"encoder": kwargs.get("encoder", ""), "encoder_args": kwargs.get("encoder_args") or {}}
        return SourceConfig(name=config["name"], network_kwargs=kwargs, **encoder, **fields)
    encoder_name = config.get("architecture", "")
    return SourceConfig(kwargs=parse_kwargs(config), grid=parse_grid(config), encoder=encoder_name, **fields)


def describe_timm_vit(network: Any) -> dict[str, Any]:
    """Return the config of transformers that a vision transformer of timm corresponds to."""
    block = network.blocks[0]
    config = {"num_attention_heads": block.attn.num_heads}
    if isinstance(getattr(block, "norm1", None), nn.LayerNorm):
        config["layer_norm_eps"] = block.norm1.eps
    act = getattr(block.mlp, "act", None)
    if act is not None:  # gated MLPs of other networks are described by their name alone
        is_exact_gelu = isinstance(act, nn.GELU) and act.approximate == "none"
        config["hidden_act"] = "gelu" if is_exact_gelu else type(act).__name__
    return config


# ---- types -----------------------------------------------------------------------------------------------------------


def is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_size(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) in (2, 3) and all(map(is_whole_number, value))
    return is_whole_number(value) or is_list


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (is_text, "text"),
    "architecture": (is_text, "text"),
    "kwargs": (is_object, "an object"),
    "id2label": (is_object, "an object"),
    "input": (is_object, "an object"),
    "pretrained_cfg": (is_object, "an object"),
    "image_size": (is_size, "a whole number or a list of them"),
    "tubelet_size": (is_size, "a whole number or a list of them"),
    "patch_size": (is_whole_number, "a whole number"),
    "num_frames": (is_whole_number, "a whole number"),
    "img_size": (is_size, "a whole number or a list of them"),
    "crop_size": (is_whole_number, "a whole number"),
    "frames_per_clip": (is_whole_number, "a whole number"),
    "num_attention_heads": (is_whole_number, "a whole number"),
    "decoder_num_attention_heads": (is_whole_number, "a whole number"),
    "pred_num_attention_heads": (is_whole_number, "a whole number"),
    "hidden_act": (is_text, "text"),
}


def check_types(config: Mapping[str, Any]) -> None:
    for key in sorted(TYPES.keys() & config.keys()):
        has_type, expected = TYPES[key]
        if not has_type(config[key]):
            raise ValueError(f"{CONFIG}: {key}={config[key]!r}: expected {expected}")


# ---- values ----------------------------------------------------------------------------------------------------------


def parse_kwargs(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments that a config of transformers tells, under their names here.

    VideoMAE v2's have those of its own code under model_config, networks with a text encoder those under vision_config.
    """
    if is_object(config.get("vision_config")):
        return parse_kwargs(config["vision_config"])
    if is_object(config.get("model_config")):
        config = dict(config["model_config"])
        if "num_heads" in config:
            config["num_attention_heads"] = config["num_heads"]
    check_types(config)
    kwargs = {name: config[hf_name] for hf_name, name in ARGUMENT_NAMES.items() if hf_name in config}
    input_size = config.get("input_size")  # of Hiera's folders on the hub: frames, height, width
    if isinstance(input_size, list) and len(input_size) == 3:
        num_frames, *image_size = input_size
        kwargs |= {"num_frames": num_frames, "image_size": image_size}
        kwargs |= {"num_heads": config["num_heads"]} if "num_heads" in config else {}
    if config.get("hidden_act") in GELU:
        kwargs["gelu"] = GELU[config["hidden_act"]]
    # The authors of VideoMAE have 1e-6; transformers says 1e-12 for the same weights.
    if "layer_norm_eps" in config and config.get("model_type") != "videomae":
        kwargs["norm_eps"] = config["layer_norm_eps"]
    if "attn_logit_softcapping" in config:
        kwargs["attn_softcap"] = config["attn_logit_softcapping"]
    return kwargs


def parse_task(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config of transformers tells of the loss of a masked autoencoder, {} for other networks."""
    key = next((key for key in ("norm_pix_loss", "normalize_pixel_loss") if key in config), None)
    return {"norm_pix_loss": bool(config[key]), "mask_ratio": config.get("mask_ratio", "auto")} if key else {}


def describe_problem(config: Mapping[str, Any]) -> str:
    """Return why networks here cannot compute the same as one with this config of transformers, "" if they can."""
    if "hidden_act" not in config or config["hidden_act"] in GELU:
        return ""
    return f"{CONFIG}: hidden_act={config['hidden_act']!r}: networks here use GELU only ({', '.join(GELU)})"


def parse_grid(config: Mapping[str, Any]) -> list[int] | None:
    """Return the (t, h, w) of the position embeddings, if a config of transformers tells it."""
    if not {"image_size", "num_frames"} <= config.keys():
        return None
    tubelet_size, patch_size = config.get("tubelet_size", 1), config.get("patch_size", 16)
    if not isinstance(tubelet_size, int):  # that of ViViT is (frames, rows, columns)
        tubelet_size, patch_size = tubelet_size[:2]
    image_size = config["image_size"]
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size[-2:]
    return [config["num_frames"] // tubelet_size, height // patch_size, width // patch_size]


def parse_multi_label(config: Mapping[str, Any]) -> bool | None:
    """Tell whether a network was trained for several labels per clip: one of this project, or as transformers says."""
    if "kwargs" in config:
        return bool(config.get("multi_label"))
    problem_type = config.get("problem_type")
    return problem_type == "multi_label_classification" if problem_type else None


def parse_labels(id2label: Mapping[str, Any]) -> list[str] | None:
    """Return the class names in order, None for numbers and for the placeholders LABEL_0 ... of transformers."""
    try:
        labels = [str(id2label[number]) for number in sorted(id2label, key=int)]
    except ValueError:
        raise ValueError(f"{CONFIG}: id2label must map class numbers to names") from None
    return None if not labels or labels[0] in ("LABEL_0", "0") else labels
