"""What the config.json beside a checkpoint says: ours ("name" and "kwargs"), or transformers'."""

from collections.abc import Callable, Mapping
from typing import Any

from networks.weights.read import CONFIG, Checkpoint

GELU = {"gelu": "exact", "gelu_python": "exact", "gelu_fast": "tanh", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_size(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, list) and len(value) in (2, 3) and all(map(is_whole, value)))


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (is_text, "text"), "kwargs": (is_object, "an object"), "id2label": (is_object, "an object"),
    "input": (is_object, "an object"), "image_size": (is_size, "a whole number or a list of them"),
    "tubelet_size": (is_size, "a whole number or a list of them"), "patch_size": (is_size, "a whole number"),
    "num_frames": (is_whole, "a whole number"),
    "num_attention_heads": (is_whole, "a whole number"), "hidden_act": (is_text, "text"),
}  # fmt: skip


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a key that we read and that is not what it should be."""
    for key in sorted(CHECKS.keys() & config.keys()):
        fits, expected = CHECKS[key]
        if not fits(config[key]):
            raise ValueError(f"{CONFIG}: {key}={config[key]!r}: expected {expected}")
    if "kwargs" in config and "name" not in config:
        raise ValueError(f"{CONFIG}: key 'name' is missing")


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our networks that transformers' config says, under our names."""
    names = {"num_attention_heads": "heads", "image_size": "image_size", "num_frames": "num_frames"}
    known = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    if "hidden_act" in config:
        if config["hidden_act"] not in GELU:
            raise ValueError(f"{CONFIG}: hidden_act={config['hidden_act']!r}: the networks here have GELU alone")
        known["gelu"] = GELU[config["hidden_act"]]
    # VideoMAE's authors have 1e-6; transformers says 1e-12 for the same weights
    if "layer_norm_eps" in config and config.get("model_type") != "videomae":
        known["norm_eps"] = config["layer_norm_eps"]
    return known


def grid_of(config: Mapping[str, Any]) -> list[int] | None:
    """(t, h, w) of the positions, if transformers' config says."""
    if not {"image_size", "num_frames"} <= config.keys():
        return None
    tubelet, patch = config.get("tubelet_size", 1), config.get("patch_size", 16)
    if not isinstance(tubelet, int):  # ViViT's is of frames, rows and columns
        tubelet, patch = tubelet[:2]
    size = config["image_size"]
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    return [config["num_frames"] // tubelet, height // patch, width // patch]


def input_of(checkpoint: Checkpoint, of_format: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and std of the input as the files beside the weights say, else as the format's project has them."""
    own = checkpoint.config.get("input", {})
    theirs = {key: checkpoint.preprocessor.get(f"image_{key}") for key in ("mean", "std")}
    return {key: own.get(key) or theirs[key] or of_format.get(key) for key in ("mean", "std")}


def labels_of(config: Mapping[str, Any]) -> list[str] | None:
    """Class names in order, if it has real ones; transformers writes LABEL_0, LABEL_1 ... where it has none."""
    id2label = config.get("id2label")
    try:
        labels = [str(id2label[key]) for key in sorted(id2label, key=int)] if id2label else []
    except ValueError:
        raise ValueError(f"{CONFIG}: id2label must map class numbers to names") from None
    return None if not labels or labels[0] in ("LABEL_0", "0") else labels
