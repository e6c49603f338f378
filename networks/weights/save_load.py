"""A network in a folder: model.safetensors (weights) and config.json (how to build it, and how to use it).

With an adapter there may be adapter.safetensors instead, what was trained beside the weights of another checkpoint.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from networks import build
from networks.adapters import add_adapter
from networks.weights.read import WEIGHTS, read_safetensors, shorten
from networks.weights.source_config import CONFIG, read_json
from utils.files import atomic_path


def save_network(
    folder: str | Path,
    network: nn.Module,
    name: str,
    extra: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the files that `load` reads.

    `extra` (id2label, normalization of the input ...) is added to config.json beside name and kwargs. `state` are the
    weights if the network itself holds only some of them. Each file is written to a temporary name and renamed, so an
    interrupted save leaves the old file.
    """
    config = describe(network, name, extra)
    write_folder(Path(folder), network.state_dict() if state is None else state, {CONFIG: config})


def describe(network: nn.Module, name: str, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return config.json: how to build the network, with its adapter if it has one, and `extra`."""
    adapter: dict[str, Any] | None = getattr(network, "adapter", None)
    config = {"name": name, "kwargs": network.kwargs, **({"adapter": adapter} if adapter else {})}
    reserved_keys = sorted({"name", "kwargs", "adapter", "base"} & (extra or {}).keys())
    if reserved_keys:
        raise ValueError(f"extra may not contain {', '.join(reserved_keys)}: save writes these itself")
    return config | dict(extra or {})


def write_folder(
    folder: Path,
    state: Mapping[str, Tensor],
    json_files: Mapping[str, Any],
    metadata: dict[str, str] | None = None,
    weights_file: str = WEIGHTS,
) -> None:
    """Write the weights and JSON files, each completely or not at all."""
    contents = {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in json_files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # renames all files once all are written
        paths = {name: stack.enter_context(atomic_path(folder / name)) for name in (weights_file, *contents)}
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, paths[weights_file], metadata)
        for name, content in contents.items():
            paths[name].write_text(content, encoding="utf-8")
            paths[weights_file].chmod(paths[name].stat().st_mode)  # safetensors lets only the owner read its files


def load_network(folder: str | Path, base: str = "") -> tuple[nn.Module, dict[str, Any]]:
    """Return the network on the CPU in eval mode, and its config, in which the keys of id2label are integers again.

    `base` is where the base of an adapter is now, if it was moved. A network with an adapter still has it;
    `networks.adapters.merge_adapter` makes it a plain one.
    """
    config_path, weights_path = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    config = read_config(config_path)
    try:
        network = build(config["name"], **config["kwargs"])
        if "base" in config:
            from networks.weights.adapter import load_adapter  # here, as its base may be a folder of this kind

            load_adapter(network, folder, config, base)
            return network.eval(), config
        if "adapter" in config:
            add_adapter(network, **config["adapter"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_path}: cannot build the network: {error}") from error
    try:
        load_state(network, read_safetensors(weights_path))
    except ValueError as error:
        raise ValueError(f"{weights_path}: {error}") from error
    return network.eval(), config


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json as `save` writes it. Raises ValueError if a key is missing or has another type."""
    config = read_json(path)
    for key, cls in (("name", str), ("kwargs", dict)):
        if not isinstance(config.get(key), cls):
            raise ValueError(f"{path}: key {key!r} is missing or not a {cls.__name__}")
    if "id2label" in config:
        try:
            config["id2label"] = {int(number): label for number, label in config["id2label"].items()}
        except (AttributeError, ValueError) as error:
            raise ValueError(f"{path}: id2label must map class numbers to names: {error}") from error
    return config


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load exactly the keys of the network in their shapes. Raises ValueError and loads nothing if `state` differs."""
    target_state = network.state_dict()
    problems = {
        "missing": [key for key in target_state if key not in state],
        "unexpected": [key for key in state if key not in target_state],
        "wrong shape": [
            f"{key} {tuple(state[key].shape)}, the network has {tuple(target.shape)}"
            for key, target in target_state.items()
            if key in state and state[key].shape != target.shape
        ],
    }
    lines = [f"{len(keys)} {problem}: {shorten(keys)}" for problem, keys in problems.items() if keys]
    if lines:
        raise ValueError("the weights do not fit the network\n  " + "\n  ".join(lines))
    network.load_state_dict(state)
