"""One network on many devices: data-parallel copies (DDP), or its weights spread over the processes (FSDP2).

All functions are for every process of the run alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

_WHOLE = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
_FULL = dcp.StateDictOptions(full_state_dict=True)


def distribute(network: nn.Module, processes: int, device: torch.device, shard: bool, accumulate: int) -> nn.Module:
    """What the training step calls. `shard` spreads weights, gradients and optimiser, a unit for each block, and
    changes the network in place, before its optimiser is built; else each process keeps all of it."""
    if shard:
        mesh = init_device_mesh(device.type, (processes,))
        for name in ("blocks", "temporal_blocks"):
            for block in getattr(getattr(network, "backbone", network), name, ()):
                fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network
    if processes == 1:
        return network
    # The same parameters take part in every step; but under no_sync() DDP cannot hold on to its first graph.
    return DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=accumulate == 1)


@contextlib.contextmanager
def synchronised(model: nn.Module, now: bool) -> Iterator[None]:
    """Gradients of the backward pass inside are averaged over the processes if `now`, else only added up here."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
        yield
    elif isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
    else:
        yield


def is_sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def whole(value: Tensor) -> Tensor:
    """A number that each process holds a part of."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def network_state(network: nn.Module) -> dict[str, Any]:
    """All weights, in the first process where they are spread (elsewhere nothing then)."""
    return dcp.get_model_state_dict(network, options=_WHOLE) if is_sharded(network) else network.state_dict()


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All of the optimiser, as network_state(); by parameters' names where it is spread."""
    if is_sharded(network):
        return dcp.get_optimizer_state_dict(network, optimizer, options=_WHOLE)
    return optimizer.state_dict()


def load_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Undo optimizer_state(). Raises ValueError if one is spread and the other is not."""
    named = any(isinstance(key, str) for key in state["state"])
    if state["state"] and named != is_sharded(network):
        raise ValueError(f"the optimiser was saved with run.shard={'full' if named else 'no'}; go on with that")
    if is_sharded(network):
        dcp.set_optimizer_state_dict(network, optimizer, state, options=_FULL)
    else:
        optimizer.load_state_dict(state)


def load_network_state(network: nn.Module, state: dict[str, Any]) -> None:
    """Fill a spread network from a whole state."""
    dcp.set_model_state_dict(network, dict(state), options=_FULL)
