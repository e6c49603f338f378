"""Weights in and out of networks.

`save` and `load` keep a network in a folder. Checkpoints of other projects fill a network (`load_pretrained`) or become
such a folder (`convert`): read (any file -> tensors), rename_keys (their keys -> the names here, by the tables in
formats), adapt (to the sizes of the network), and a report of every key. `python -m networks.weights --help`.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks import PRETRAINING, build
from networks.argument_checks import check_choice
from networks.frame_encoder import FrameEncoder
from networks.pretraining import MaskedAutoencoder
from networks.weights.adapt import HEAD, adapt
from networks.weights.adapt_frame_encoder import adapt_frame_encoder
from networks.weights.formats import Format
from networks.weights.infer_architecture import infer_architecture
from networks.weights.input_spec import InputSpec, foreign_input_spec, own_input_spec
from networks.weights.read import Checkpoint, read_checkpoint
from networks.weights.rename_keys import RenamedWeights, Weights, rename_keys, without_prefix
from networks.weights.report import MAPPED, KeyRecord, KeyReport
from networks.weights.save_load import load_network, load_state, read_config, save_network
from networks.weights.source_config import describe_timm_vit

__all__ = [
    "Checkpoint",
    "convert",
    "input_spec",
    "load_network",
    "load_pretrained",
    "load_state",
    "read_checkpoint",
    "read_config",
    "save_network",
]

ADAPT_OPTIONS = ("inflation", "temporal", "head", "source_grid")


def input_spec(checkpoint: Checkpoint) -> InputSpec:
    """Return the clips that a checkpoint was trained on and its published test, as far as it tells."""
    config = checkpoint.config
    if config.network_kwargs is not None or config.input:  # what is exported to transformers has the latter, too
        return own_input_spec(config.input)
    file_format, num_classes, assumed = None, None, set()
    kwargs: dict[str, Any] = {}
    # What is wrong with the file is for load_pretrained() to say.
    with contextlib.suppress(ArithmeticError, LookupError, TypeError, ValueError):
        renamed = parse_checkpoint(checkpoint)
        file_format = renamed.format
        if file_format.architecture != "image":
            _, kwargs, assumptions = infer_architecture(renamed, {})
            assumed = {key for key in ("num_frames", "image_size") if any(f"{key}=" in text for text in assumptions)}
            num_classes = len(renamed.state["head.weight"]) if "head.weight" in renamed.state else None
    statistics = config.normalization(file_format.normalization if file_format else {})
    spec = foreign_input_spec(file_format, statistics, kwargs, num_classes=num_classes, assumed=assumed)
    told = set() if config.mean else {"mean", "std"}
    return dataclasses.replace(spec, published=spec.published | told)


def load_pretrained(
    network: nn.Module, source: str | Path | Checkpoint, labels: Sequence[str] | None = None, **options: Any
) -> KeyReport:
    """Fill `network` from a checkpoint of any known format, which may have been read before.

    `labels` are the class names that the network is for: a head of as many classes with other names is replaced too.
    `options` are those of networks.weights.adapt: inflation, temporal, head, source_grid.

    Raises ValueError and leaves the network as it is if the checkpoint cannot be read or does not fit.
    """
    unknown = options.keys() - set(ADAPT_OPTIONS)
    if unknown:
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}: expected {', '.join(ADAPT_OPTIONS)}")
    checkpoint, notes = without_probe(source if isinstance(source, Checkpoint) else read_checkpoint(source))
    source_labels = checkpoint.config.labels
    has_names = labels is not None and not all(label.isdecimal() for label in labels)  # numbers are not other names
    if source_labels and labels and has_names and normalize(source_labels) != normalize(labels):
        options["head"] = "new"
    try:
        if isinstance(network, FrameEncoder):
            default_stats: Mapping[str, Any] = {}
            state, report = adapt_to_frame_encoder(checkpoint, network, **options)
        else:
            renamed = parse_checkpoint(checkpoint)
            default_stats = renamed.format.normalization
            options.setdefault("source_grid", renamed.grid)
            state, report = adapt(renamed, network, **options)
    except (TypeError, ValueError) as error:  # TypeError: arguments in a config.json that its network does not take
        raise ValueError(f"{checkpoint.source}: {error}") from error
    load_state(network, state)
    report.notes += notes
    if any(record.target == "head.weight" and record.sources for record in report.records):
        same_names = " and the same names" if source_labels and has_names else ""
        report.notes.append(f"the head is kept: checkpoint and network have the same number of classes{same_names}")
    input_stats = checkpoint.config.normalization(default_stats)
    if input_stats["mean"] and input_stats["std"]:
        report.notes.append(
            f"trained on inputs normalized with mean {input_stats['mean']} and std {input_stats['std']}"
        )
    return report


def adapt_to_frame_encoder(
    checkpoint: Checkpoint, network: FrameEncoder, head: str = "auto", **options: Any
) -> tuple[dict[str, Tensor], KeyReport]:
    """Return a state dict for a network of image encoders on frames, and what became of every key."""
    check_choice("head", head, HEAD)
    given = [key for key, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: an image encoder on frames takes no such option")
    config, state, source_grid = checkpoint.config, checkpoint.state, None
    if config.network_kwargs is None:
        state = without_prefix(state)
    else:
        with torch.device("meta"):
            source = build(config.name, **config.network_kwargs)
        if isinstance(source, FrameEncoder):
            source_grid = source.patch_embed.grid[1:]
            heads = describe_timm_vit(source.backbone)["num_attention_heads"]
            config = dataclasses.replace(config, kwargs={"num_heads": heads})
    return adapt_frame_encoder(state, network, config=config, source_grid=source_grid, new_head=head == "new")


def normalize(labels: Sequence[str]) -> list[str]:
    return [label.replace("_", " ").lower().strip() for label in labels]


def parse_checkpoint(checkpoint: Checkpoint) -> RenamedWeights:
    """Rename the keys of a checkpoint; those in a folder of this project, which has a config.json, have their names."""
    config = checkpoint.config
    if config.problem:
        raise ValueError(config.problem)
    if config.network_kwargs is None:
        renamed = rename_keys(checkpoint.state)
        return dataclasses.replace(renamed, kwargs=renamed.kwargs | config.kwargs, grid=config.grid)
    with torch.device("meta"):
        network = build(config.name, **config.network_kwargs)
    is_pretraining, kwargs = config.name in PRETRAINING, config.network_kwargs
    backbone: Any = network.backbone if is_pretraining else network
    stored_keys = {key.removeprefix("backbone."): key for key in checkpoint.state}
    return RenamedWeights(
        format=Format(
            name=config.name,
            architecture=type(backbone).__name__.lower(),
            required_keys=(),
            pretraining=is_pretraining,
            missing_parts=("pooler",),  # a mean-pooled encoder can start a probe with an attentive pooler
        ),
        state=Weights({key: checkpoint.state[stored_key] for key, stored_key in stored_keys.items()}),
        records={
            key: KeyRecord(status=MAPPED, sources=(stored_key,), target=key) for key, stored_key in stored_keys.items()
        },
        dropped=[],
        kwargs=backbone.kwargs | {key: kwargs[key] for key in kwargs if key.startswith(("decoder_", "predictor_"))},
        notes=[],
        grid=list(backbone.patch_embed.grid),
    )


def without_probe(checkpoint: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """Return the encoder of a checkpoint that is a probe, and a note that the probe is dropped; others as they are."""
    kwargs = checkpoint.config.network_kwargs
    if checkpoint.config.name != "probed_encoder" or kwargs is None:
        return checkpoint, []
    args: dict[str, Any] = dict(kwargs.get("encoder_args") or {})
    sizes: dict[str, Any] = {key: kwargs[key] for key in ("num_frames", "image_size") if key in kwargs}
    config = dataclasses.replace(
        checkpoint.config,
        name=kwargs["encoder"],
        network_kwargs={**sizes, **args, "num_classes": 0, "pooling": "mean"},
        id2label={},
        labels=None,
        encoder=args.get("encoder", ""),
        encoder_args=args.get("encoder_args") or {},
    )
    state = {key.removeprefix("encoder."): t for key, t in checkpoint.state.items() if key.startswith("encoder.")}
    dropped = len(checkpoint.state) - len(state)
    note = f"the probe of the checkpoint ({kwargs.get('kind')}, {dropped} keys) is dropped"
    return Checkpoint(source=checkpoint.source, state=state, config=config), [note]


def convert(source: str | Path, **overrides: Any) -> tuple[nn.Module, dict[str, Any], KeyReport]:
    """Return the network that a checkpoint belongs to, its config for `save`, and what became of every key.

    `overrides` are arguments of the network, which take precedence over what the file tells, and options of `adapt`.
    """
    checkpoint, notes = without_probe(read_checkpoint(source))
    config = checkpoint.config
    options = {key: overrides.pop(key) for key in ADAPT_OPTIONS if key in overrides}
    try:
        renamed = parse_checkpoint(checkpoint)
        if config.network_kwargs is None:
            name, kwargs, assumed = infer_architecture(renamed, overrides)
        else:
            name, kwargs, assumed = config.name, config.network_kwargs | overrides, []
        network = build(name, **kwargs)
        if isinstance(network, FrameEncoder):
            state, report = adapt_to_frame_encoder(checkpoint, network, **options)
        else:
            options.setdefault("source_grid", renamed.grid or list(network.patch_embed.grid))  # type: ignore[union-attr,arg-type]
            state, report = adapt(renamed, network, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    load_state(network, state)
    report.notes += [*notes, *(f"assumed {assumption}" for assumption in assumed)]
    return network.eval(), {"name": name, "extra": describe_source(checkpoint, renamed.format, network)}, report


def describe_source(checkpoint: Checkpoint, file_format: Format, network: nn.Module) -> dict[str, Any]:
    """Return what config.json tells beside the network's arguments: its input and, if the source has them, classes."""
    kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    config, spec = checkpoint.config, input_spec(checkpoint)
    test = {"frame_stride": spec.frame_stride, "fps": spec.fps, "preset": spec.preset or None}
    if spec.num_frames != kwargs["num_frames"]:  # the strides are published for some numbers of frames only
        test = {"preset": test["preset"]}
    extra: dict[str, Any] = {
        "input": {
            **{key: value for key, value in test.items() if value is not None},
            **config.input,
            "num_frames": kwargs["num_frames"],
            "image_size": kwargs["image_size"],
            **config.normalization(file_format.normalization),
        },
        "converted_from": {"source": checkpoint.source, "format": file_format.name},
    }
    if config.task and isinstance(network, MaskedAutoencoder):
        extra["task"] = config.task
    if config.multi_label is not None and kwargs.get("num_classes"):
        extra["multi_label"] = config.multi_label
    if len(config.id2label) == kwargs.get("num_classes", 0) > 0:
        extra["id2label"] = {str(number): label for number, label in config.id2label.items()}
    return extra
