"""Adapters: a few parameters that are trained in a network whose own are fixed.

    lora        low-rank matrices beside linear layers, of any network
    bias        all biases, of any network (BitFit; Ben Zaken et al., 2021)
    prompt      learned tokens in each block, of networks with plain attention
    st_adapter  convolutions over time in an image encoder on frames
    aim         attention over time in an image encoder on frames

lora and bias can be merged: the network is then a plain one with other weights.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from networks.adapters.frame_adapters import add_aim, add_st_adapter
from networks.adapters.lora import add_lora, merge_lora
from networks.adapters.prompts import add_prompts
from networks.student import PROJECTION

MERGEABLE = ("lora", "bias")
ADAPTERS = (*MERGEABLE, "prompt", "st_adapter", "aim")
# Trained as a whole beside any adapter: the classifier, the attentive pooler before it, and what a student adds.
HEADS = ("head.", "pooler.", PROJECTION)


def add_adapter(network: nn.Module, name: str, **args: Any) -> list[str]:
    """Put an adapter into a network, in place, and return the names of the parameters that it trains.

    The network keeps what it was given as `network.adapter`. Raises ValueError for an unknown name or argument, and for
    a network that the adapter does not fit.
    """
    if hasattr(network, "adapter"):
        raise ValueError(f"adapter {name}: the network has one already: {network.adapter}")
    if name not in ADAPTERS:
        raise ValueError(f"adapter {name}: expected one of {', '.join(ADAPTERS)}")
    try:
        trained = _add(network, name, args)
    except TypeError as error:
        raise ValueError(f"adapter {name}: {error}") from error
    network.adapter = {"name": name, **args}  # type: ignore[assignment]
    return trained


def _add(network: nn.Module, name: str, args: dict[str, Any]) -> list[str]:
    if name == "lora":
        return add_lora(network, HEADS, **args)
    if name == "prompt":
        return add_prompts(network, **args)
    if name == "st_adapter":
        return add_st_adapter(network, **args)
    if name == "aim":
        return add_aim(network, **args)
    return _biases(network, **args)


def _biases(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters() if re.search(r"(^|[._])bias$", name)]


def is_mergeable(network: nn.Module) -> bool:
    """Tell whether merge_adapter() makes a network a plain one, or leaves it as it is because it is one."""
    adapter: dict[str, Any] | None = getattr(network, "adapter", None)
    return adapter is None or adapter["name"] in MERGEABLE


def merge_adapter(network: nn.Module) -> None:
    """Make a network with an adapter a plain one that gives the same logits, in place; one without stays as it is.

    Raises ValueError for an adapter that has modules of its own.
    """
    if not is_mergeable(network):
        name = network.adapter["name"]  # type: ignore[index]
        raise ValueError(
            f"the network has an adapter ({name}) that cannot be merged into its weights; only "
            f"{' and '.join(MERGEABLE)} can"
        )
    merge_lora(network)
    vars(network).pop("adapter", None)
