"""A network in a folder: model.safetensors (weights) and config.json (how to build it, and how to use it)."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from networks import build
from networks.weights.read import CONFIG, WEIGHTS, read_json, read_safetensors, shorten
from utils.files import replacing


def save(
    folder: str | Path,
    network: nn.Module,
    name: str,
    extra: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes what `load` reads. `extra` (id2label, input normalisation, ...) goes beside name and kwargs; `state` are
    the weights, where the network itself holds only some of them.

    Each file is written to a temporary name and renamed: an interrupted save leaves the old file, never half a new one.
    """
    config = {"name": name, "kwargs": network.kwargs}
    clash = sorted(config.keys() & (extra or {}).keys())
    if clash:
        raise ValueError(f"extra may not hold {', '.join(clash)}: save writes these itself")
    write_folder(Path(folder), network.state_dict() if state is None else state, {CONFIG: config | dict(extra or {})})


def write_folder(
    folder: Path, state: Mapping[str, Tensor], texts: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """model.safetensors and JSON files, each whole or not at all."""
    contents = {name: json.dumps(text, indent=2, ensure_ascii=False) + "\n" for name, text in texts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # renames all once all are written
        new = {name: stack.enter_context(replacing(folder / name)) for name in (WEIGHTS, *contents)}
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, new[WEIGHTS], metadata)
        for name, content in contents.items():
            new[name].write_text(content, encoding="utf-8")


def load(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """-> the network on the CPU in eval mode, and its config; id2label has its integer keys back, which JSON lacks."""
    config_path, weights_path = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    config = read_config(config_path)
    try:
        network = build(config["name"], **config["kwargs"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_path}: cannot build the network: {error}") from error
    try:
        load_state(network, read_safetensors(weights_path))
    except ValueError as error:
        raise ValueError(f"{weights_path}: {error}") from error
    return network.eval(), config


def read_config(path: Path) -> dict[str, Any]:
    """config.json as `save` wrote it."""
    config = read_json(path)
    for key, kind in (("name", str), ("kwargs", dict)):
        if not isinstance(config.get(key), kind):
            raise ValueError(f"{path}: key {key!r} is missing or not a {kind.__name__}")
    if "id2label" in config:
        try:
            config["id2label"] = {int(number): label for number, label in config["id2label"].items()}
        except (AttributeError, ValueError) as error:
            raise ValueError(f"{path}: id2label must map class numbers to names: {error}") from error
    return config


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Strict: `state` has every key of the network, in its shape, and no other; if not, nothing is loaded."""
    own = network.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "wrong shape": [
            f"{key} {tuple(state[key].shape)}, the network has {tuple(tensor.shape)}"
            for key, tensor in own.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    lines = [f"{len(found)} {what}: {shorten(found)}" for what, found in problems.items() if found]
    if lines:
        raise ValueError("the weights do not fit the network\n  " + "\n  ".join(lines))
    network.load_state_dict(state)
