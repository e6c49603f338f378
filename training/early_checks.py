"""Find what is wrong with a configuration before its lists are read, which takes minutes where they are long."""

from __future__ import annotations

from collections.abc import Collection

import torch

from configs.schema import Config
from networks.adapters import ADAPTERS
from pipelines.data.feature_shards import is_feature_folder
from training.adapter import train_adapter_only
from training.objective import build_loss
from training.setup import build_network, freeze

_NUM_CLASSES = 2  # of the head of a network that is only built to see whether it can be


def check_adapter_keys(cfg: Config, given: Collection[str]) -> None:
    """Raise ValueError if the command line sets the keys of an adapter, but not which one."""
    loose = sorted(key for key in given if key.startswith("adapter.") and key != "adapter.name")
    if loose and not cfg.adapter.name:
        raise ValueError(f"{loose[0]}: expected adapter.name as well: {', '.join(ADAPTERS)}")


def check_network_and_loss(cfg: Config) -> None:
    """Build the network, what is fixed of it or its adapter, and the loss, on the meta device: without any numbers.

    Raises ValueError for keys that do not fit. Of a network on features it is not known yet what it gets.
    """
    if not cfg.task.is_pretraining:
        build_loss(cfg, [1] * _NUM_CLASSES, torch.device("cpu"))
    if is_feature_folder(cfg.data.train):
        return
    with torch.device("meta"):
        network = build_network(cfg, _NUM_CLASSES)
        if cfg.model.freeze:
            freeze(network, cfg.model.freeze)
        if cfg.adapter.name:
            train_adapter_only(network, cfg)
