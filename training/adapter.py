"""Train an adapter, the head, and what the checkpoint does not give, in a network whose other weights are fixed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import nn

from configs.schema import Config
from networks.adapters import HEADS, add_adapter
from networks.weights.adapter import Base, describe_base


class TrainedAdapter(NamedTuple):
    """The names of the parameters that are trained, and the checkpoint that has the others."""

    keys: list[str]
    base: Base

    def state_dict(self) -> dict[str, Any]:
        """Return what last.pt keeps, so that a resumed run need not read the checkpoint again."""
        return {"keys": self.keys, "base": self.base._asdict()}


def start_adapter(network: nn.Module, cfg: Config, not_given: Collection[str]) -> TrainedAdapter:
    """Put the adapter of a configuration into a network that was filled from a checkpoint; fix everything else but keys
    that were `not_given`, also those that start as zeros or copies. Raises ValueError for a network that it does not
    fit."""
    keys = train_adapter_only(network, cfg, not_given)
    return TrainedAdapter(keys, describe_base(cfg.model.pretrained, cfg.model.pretrained_args, network, keys))


def train_adapter_only(network: nn.Module, cfg: Config, others: Collection[str] = ()) -> list[str]:
    """Put the adapter of a configuration into a network; train it, the head and `others`, and return their names."""
    keys = {*_add(network, cfg), *others}
    names = [name for name, _ in network.named_parameters() if name in keys or name.startswith(HEADS)]
    _train_only(network, names)
    return names


def resume_adapter(network: nn.Module, cfg: Config, saved: Mapping[str, Any]) -> TrainedAdapter:
    """Put it into the network of a run that goes on, whose weights are loaded later, and train what was trained.

    Raises ValueError for another adapter.
    """
    if not saved:
        raise ValueError(f"adapter.name={cfg.adapter.name}: the run that is resumed trains no adapter: run.resume=no")
    added = _add(network, cfg)
    names = {name for name, _ in network.named_parameters()}
    if not set(added) <= set(saved["keys"]) <= names:
        raise ValueError("adapter: the run that is resumed trains another one; expected its keys, or run.resume=no")
    _train_only(network, saved["keys"])
    return TrainedAdapter(list(saved["keys"]), Base(**saved["base"]))


def _add(network: nn.Module, cfg: Config) -> list[str]:
    try:
        return add_adapter(network, cfg.adapter.name, **cfg.adapter.args)
    except ValueError as error:
        raise ValueError(f"adapter.name={cfg.adapter.name} with model.name={cfg.model.name}: {error}") from None


def _train_only(network: nn.Module, keys: Collection[str]) -> None:
    trained = set(keys)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
