"""Weights in and out of networks.

Networks are kept in folders of ours: `save`, `load`. Public checkpoints of other projects fill a network (`initialise`)
or become such a folder (`convert`); the flow is checkpoint (any file -> tensors) -> translate (its keys -> ours, by the
rules of formats) -> transfer (fitted to the network) -> a report of every key. `python -m networks.weights --help`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from networks import PRETRAINING, build
from networks.weights.adapt import transfer
from networks.weights.formats import Format
from networks.weights.infer_architecture import architecture
from networks.weights.read import Checkpoint, read
from networks.weights.rename_keys import Translated, Weights, translate
from networks.weights.report import MAPPED, Report, Row
from networks.weights.save_load import load, load_state, read_config, save
from networks.weights.source_config import check, grid_of, input_of, labels_of, settings_of

__all__ = ["convert", "initialise", "load", "load_state", "read_config", "save"]

TRANSFER_OPTIONS = ("inflation", "temporal", "head", "source_grid")


def initialise(network: nn.Module, source: str | Path, labels: Sequence[str] | None = None, **options: Any) -> Report:
    """Fill `network` from a checkpoint of any format that is read here, or leave it untouched and raise ValueError.

    `labels` are the class names the network is for: a head for as many classes of other names is replaced too.
    `options` are those of networks.weights.adapt: inflation, temporal, head, source_grid.
    """
    unknown = options.keys() - set(TRANSFER_OPTIONS)
    if unknown:
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}: expected {', '.join(TRANSFER_OPTIONS)}")
    checkpoint = read(source)
    try:
        check(checkpoint.config)
        translated = understand(checkpoint)
        options.setdefault("source_grid", translated.grid)
        theirs = labels_of(checkpoint.config)
        named = labels is not None and not all(label.isdecimal() for label in labels)  # numbers are no other names
        if theirs and labels and named and [plain(label) for label in theirs] != [plain(label) for label in labels]:
            options["head"] = "new"
        state, report = transfer(translated, network, **options)
    except (TypeError, ValueError) as error:  # TypeError: arguments in a config.json that its network does not take
        raise ValueError(f"{source}: {error}") from error
    load_state(network, state)
    if any(row.target == "head.weight" and row.sources for row in report.rows):
        same = ", of the same names" if theirs and named else ""
        report.notes.append(f"the head is kept: as many classes there as here{same}")
    known = input_of(checkpoint, translated.format.input)
    if known["mean"] and known["std"]:
        report.notes.append(f"trained on inputs normalised with mean {known['mean']} and std {known['std']}")
    return report


def plain(label: str) -> str:
    return label.replace("_", " ").lower().strip()


def understand(checkpoint: Checkpoint) -> Translated:
    """Our own folders are told by their config.json, everything else by its keys."""
    config = checkpoint.config
    if "kwargs" not in config:
        translated = translate(checkpoint.state)
        return dataclasses.replace(translated, settings=translated.settings | settings_of(config), grid=grid_of(config))
    with torch.device("meta"):
        network = build(config["name"], **config["kwargs"])
    pretraining = config["name"] in PRETRAINING
    backbone: Any = network.backbone if pretraining else network
    theirs = {key.removeprefix("backbone."): key for key in checkpoint.state}
    kept = Weights({ours: checkpoint.state[key] for ours, key in theirs.items()})
    rows = {ours: Row(MAPPED, (key,), ours) for ours, key in theirs.items()}
    own = Format(config["name"], type(backbone).__name__.lower(), (), (), pretraining=pretraining)
    return Translated(own, kept, rows, [], dict(backbone.kwargs), [], list(backbone.patch_embed.grid))


def convert(source: str | Path, **given: Any) -> tuple[nn.Module, dict[str, Any], Report]:
    """-> the network that a checkpoint is of, its config for `save`, and what became of every key.

    `given` are arguments of the network that win over what the file shows, and options of the transfer.
    """
    checkpoint = read(source)
    options = {key: given.pop(key) for key in TRANSFER_OPTIONS if key in given}
    try:
        check(checkpoint.config)
        translated = understand(checkpoint)
        if checkpoint.config.get("name") in PRETRAINING:
            name, kwargs, assumed = "", checkpoint.config["kwargs"] | given, list[str]()
        else:
            name, kwargs, assumed = architecture(translated, given)
        network = build(checkpoint.config.get("name", name), **kwargs)
        options.setdefault("source_grid", translated.grid or list(network.patch_embed.grid))  # type: ignore[union-attr,arg-type]
        state, report = transfer(translated, network, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    load_state(network, state)
    report.notes += [f"assumed {assumption}" for assumption in assumed]
    return network.eval(), describe(checkpoint, translated, checkpoint.config.get("name", name), network), report


def describe(checkpoint: Checkpoint, translated: Translated, name: str, network: nn.Module) -> dict[str, Any]:
    """What goes into config.json beside the network's arguments: classes and input, as far as the source says."""
    kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    extra: dict[str, Any] = {
        "input": {**checkpoint.config.get("input", {}), "frames": kwargs["num_frames"], "size": kwargs["image_size"],
                  **input_of(checkpoint, translated.format.input)},
        "converted_from": {"source": checkpoint.source, "format": translated.format.name},
    }  # fmt: skip
    labels = checkpoint.config.get("id2label", {})
    if len(labels) == kwargs.get("num_classes", 0) > 0:
        extra["id2label"] = {str(number): label for number, label in labels.items()}
    return {"name": name, "extra": extra}
