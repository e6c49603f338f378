"""An adapter in a folder: adapter.safetensors, the parameters that were trained, and config.json, which names the base.

The base is the checkpoint that training began with. Its weights are not kept again: they are read when the network is
loaded, and must be the same, which a number for each tensor (`checksum`) tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from networks.adapters import add_adapter, merge_adapter
from networks.weights import load_pretrained
from networks.weights.read import WEIGHTS, Checkpoint, read_safetensors
from networks.weights.save_load import describe, load_network, load_state, write_folder
from networks.weights.source_config import CONFIG, parse_source_config

ADAPTER_WEIGHTS = "adapter.safetensors"
TOLERANCE = 1e-4  # of the norm of a tensor; resizing position embeddings rounds differently on other machines


class Base(NamedTuple):
    """The checkpoint whose weights are fixed: where it is, how it was adapted, and the checksums of these weights."""

    source: str
    pretrained_args: dict[str, Any]
    checksums: dict[str, float]


def describe_base(source: str, pretrained_args: Mapping[str, Any], network: nn.Module, trained: Iterable[str]) -> Base:
    """Describe the checkpoint that a network was filled from, before training changes the `trained` parameters."""
    is_local = not source.startswith(("timm:", "hf:"))
    path = str(Path(source).resolve()) if is_local else source
    trained = set(trained)
    fixed = {key: tensor for key, tensor in network.state_dict().items() if key not in trained}
    return Base(path, dict(pretrained_args), {key: checksum(tensor) for key, tensor in fixed.items()})


def checksum(tensor: Tensor) -> float:
    """Return a projection of the values on fixed numbers, which differ, so that other values and orders are told."""
    values = tensor.detach().flatten().double().cpu()
    return (values * torch.arange(1, len(values) + 1, dtype=torch.float64).cos()).sum().item()


def find_other_weights(network: nn.Module, checksums: Mapping[str, float]) -> list[str]:
    """Return the keys whose weights are others than those that the checksums are of."""
    state = network.state_dict()
    limits = {key: TOLERANCE * (state[key].double().norm().item() + 1e-12) for key in checksums}
    return [key for key, value in checksums.items() if not abs(checksum(state[key]) - value) <= limits[key]]


def save_adapter(
    folder: str | Path, network: nn.Module, name: str, extra: Mapping[str, Any], state: Mapping[str, Tensor], base: Base
) -> None:
    """Write the folder; `state` has the trained parameters, `extra` is added to config.json."""
    named = {"source": base.source, "pretrained_args": base.pretrained_args}
    config = {**describe(network, name, extra), "base": named}
    metadata = {"checksums": json.dumps(base.checksums)}
    write_folder(Path(folder), state, {CONFIG: config}, metadata, weights_file=ADAPTER_WEIGHTS)


def base_exists(base: Base) -> bool:
    """Tell whether a base is where it was; what has to be downloaded counts as there."""
    return base.source.startswith(("timm:", "hf:")) or Path(base.source).exists()


def load_adapter(network: nn.Module, folder: str | Path, config: Mapping[str, Any], source: str = "") -> None:
    """Fill a new network from the base of an adapter's folder, or from `source`; add the adapter and fill it, too.

    Raises ValueError if the base cannot be read, or has other weights than the adapter was trained with.
    """
    path, base = Path(folder) / ADAPTER_WEIGHTS, config["base"]
    try:
        load_pretrained(network, source or base["source"], **base["pretrained_args"])
    except ValueError as error:
        hint = "if it was moved, eval.py takes model.pretrained=PATH, and networks.weights merge base=PATH"
        raise ValueError(f"the base of the adapter: {error}\n  {hint}") from error
    add_adapter(network, **config["adapter"])
    try:
        load_state(network, network.state_dict() | read_safetensors(path))
        with safe_open(path, "pt") as file:
            checksums = json.loads(file.metadata()["checksums"])
        differing = find_other_weights(network, checksums)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if differing:
        where, some = source or base["source"], f"{len(differing)} tensors, {differing[0]} ..."
        raise ValueError(
            f"{where} has other weights than when the adapter was trained ({some}): expected the same ones"
        )


def weights_file(folder: Path) -> Path:
    """Return the file with the trained weights in a network's folder: of an adapter, or of all of it."""
    adapter = folder / ADAPTER_WEIGHTS
    return adapter if adapter.is_file() else folder / WEIGHTS


def read_adapter(source: str) -> Checkpoint | None:
    """Return a run or folder with an adapter as a checkpoint of the plain network that it stands for.

    None if there is no adapter. Raises ValueError for one that cannot be merged.
    """
    folders = (Path(source), Path(source) / "best")
    folder = next((folder for folder in folders if (folder / ADAPTER_WEIGHTS).is_file()), None)
    if folder is None:
        return None
    network, config = load_network(folder)
    merge_adapter(network)
    plain = {key: value for key, value in config.items() if key not in ("adapter", "base")}
    plain["id2label"] = {str(number): name for number, name in config.get("id2label", {}).items()}
    return Checkpoint(source=source, state=network.state_dict(), config=parse_source_config(plain, {}))
