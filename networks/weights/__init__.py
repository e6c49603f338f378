"""Weights in and out of networks.

Networks are kept in folders of ours: `save`, `load`. Public checkpoints of other projects fill a network (`initialise`)
or become such a folder (`convert`); the flow is checkpoint (any file -> tensors) -> translate (its keys -> ours, by the
rules of formats) -> transfer (fitted to the network) -> a report of every key. `python -m networks.weights --help`.
"""

from pathlib import Path
from typing import Any

from torch import nn

from networks import VARIANTS, build
from networks.weights.architecture import architecture
from networks.weights.checkpoint import Checkpoint, read
from networks.weights.folder import load, load_state, read_config, save
from networks.weights.formats import Format
from networks.weights.report import MAPPED, Report, Row
from networks.weights.transfer import transfer
from networks.weights.translate import Translated, translate

__all__ = ["convert", "initialise", "load", "load_state", "read_config", "save"]

TRANSFER_OPTIONS = ("inflation", "temporal", "head", "source_grid")


def initialise(network: nn.Module, source: str | Path, **options: Any) -> Report:
    """Fill `network` from a checkpoint of any format that is read here, or leave it untouched and raise ValueError.

    `options` are those of networks.weights.transfer: inflation, temporal, head, source_grid.
    """
    checkpoint = read(source)
    try:
        translated = understand(checkpoint)
        options.setdefault("source_grid", grid_of(checkpoint))
        state, report = transfer(translated, network, **options)
        check_heads(checkpoint, network)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    load_state(network, state)
    known = input_of(checkpoint, translated)
    if known["mean"] and known["std"]:
        report.notes.append(f"trained on inputs normalised with mean {known['mean']} and std {known['std']}")
    return report


def understand(checkpoint: Checkpoint) -> Translated:
    """Our own folders are told by their config.json, everything else by its keys."""
    config = checkpoint.config
    if "kwargs" not in config or config.get("name") not in VARIANTS:
        return translate(checkpoint.state)
    kind = config["name"].split("_")[0].replace("videomae", "vivit")
    own = Format(config["name"], kind, (), (), settings=config["kwargs"])
    rows = {key: Row(MAPPED, (key,), key) for key in checkpoint.state}
    return Translated(own, checkpoint.state, rows, [])


def check_heads(checkpoint: Checkpoint, network: nn.Module) -> None:
    """The shapes of the weights do not show the number of heads; a config.json does."""
    theirs = checkpoint.config.get("kwargs", {}).get("heads", checkpoint.config.get("num_attention_heads"))
    ours = network.kwargs["heads"]  # type: ignore[index]
    if theirs is not None and theirs != ours:
        raise ValueError(f"its config.json says heads={theirs}, the network has heads={ours}")


def grid_of(checkpoint: Checkpoint) -> list[int] | None:
    """(t, h, w) of the positions, where a config.json beside the weights says: ours or transformers'."""
    config = checkpoint.config.get("kwargs", checkpoint.config)
    if not {"image_size", "num_frames"} <= config.keys():
        return None
    size, patch, tubelet = config["image_size"], config.get("patch_size", 16), config.get("tubelet", 1)
    whole = config.get("tubelet_size", config.get("patch_stride"))  # transformers' ViViT and VideoMAE; our MViT
    if whole is not None:
        tubelet, patch = (whole, patch) if isinstance(whole, int) else whole[:2]
    height, width = (size, size) if isinstance(size, int) else size
    return [config["num_frames"] // tubelet, height // patch, width // patch]


def convert(source: str | Path, **given: Any) -> tuple[nn.Module, dict[str, Any], Report]:
    """-> the network that a checkpoint is of, its config for `save`, and what became of every key.

    `given` are arguments of the network that win over what the file shows, and options of the transfer.
    """
    checkpoint = read(source)
    options = {key: given.pop(key) for key in TRANSFER_OPTIONS if key in given}
    assumed: list[str] = []
    try:
        translated = understand(checkpoint)
        if "kwargs" in checkpoint.config:
            name, kwargs = checkpoint.config["name"], checkpoint.config["kwargs"] | given
        else:
            name, kwargs, assumed = architecture(translated, checkpoint.config, given)
        network = build(name, **kwargs)
        options.setdefault("source_grid", grid_of(checkpoint) or list(network.patch_embed.grid))  # type: ignore[union-attr,arg-type]
        state, report = transfer(translated, network, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    load_state(network, state)
    report.notes += [f"assumed {assumption}" for assumption in assumed]
    return network.eval(), describe(checkpoint, translated, name, network), report


def input_of(checkpoint: Checkpoint, translated: Translated) -> dict[str, Any]:
    """Mean and std of the input as the files beside the weights say, else as the format's project has them."""
    own = checkpoint.config.get("input") or {}
    theirs = {key: checkpoint.preprocessor.get(f"image_{key}") for key in ("mean", "std")}
    return {key: own.get(key) or theirs[key] or translated.format.input.get(key) for key in ("mean", "std")}


def describe(checkpoint: Checkpoint, translated: Translated, name: str, network: nn.Module) -> dict[str, Any]:
    """What goes into config.json beside the network's arguments: classes and input, as far as the source says."""
    kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    extra: dict[str, Any] = {
        "input": {"frames": kwargs["num_frames"], "size": kwargs["image_size"], **input_of(checkpoint, translated)},
        "converted_from": {"source": checkpoint.source, "format": translated.format.name},
    }  # fmt: skip
    if "name" in checkpoint.config and "kwargs" in checkpoint.config:
        extra = {key: value for key, value in checkpoint.config.items() if key not in ("name", "kwargs")}
    elif "id2label" in checkpoint.config:
        extra["id2label"] = {str(number): label for number, label in checkpoint.config["id2label"].items()}
    return {"name": name, "extra": extra}
