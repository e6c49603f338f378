"""Train one network on many devices: replicas (DDP), or weights sharded over the processes (FSDP2).

All processes of a run call these functions together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

_GATHERED = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
_FULL = dcp.StateDictOptions(full_state_dict=True)


def distribute(
    network: nn.Module, world_size: int, device: torch.device, *, shard: bool, grad_accum_steps: int
) -> nn.Module:
    """Return the module that the training step calls.

    `shard`: weights, gradients and optimizer state are sharded block by block; the network is changed in place, so its
    optimizer is built afterwards. Otherwise each process has a replica.
    """
    if shard:
        mesh = init_device_mesh(device.type, (world_size,))
        # The blocks of a network, of the encoder in it and its teacher, and of an attentive pooler.
        parts = [getattr(network, name, None) for name in ("backbone", "teacher", "pooler")]
        parts += [probe.pooler for probe in getattr(network, "probes", ()) if hasattr(probe, "pooler")]
        blocks = [block for part in (*parts, network) for block in own_blocks(part)]
        for block in dict.fromkeys(blocks):  # `blocks` of a FrameEncoder are those of its backbone
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network
    if world_size == 1:
        return network
    # The same parameters take part in every step, but under no_sync() DDP cannot keep its first graph.
    return DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=grad_accum_steps == 1)


def own_blocks(module: nn.Module | None) -> Iterator[nn.Module]:
    """Return the transformer blocks of a module: spatial and temporal ones, those of a decoder or a predictor."""
    for name in ("blocks", "temporal_blocks", "decoder_blocks", "predictor_blocks"):
        yield from getattr(module, name, ())


@contextlib.contextmanager
def sync_gradients(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Average the gradients of the backward pass inside over the processes if enabled; otherwise only add them up."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
        yield
    elif isinstance(model, DistributedDataParallel) and not enabled:
        with model.no_sync():
            yield
    else:
        yield


def is_sharded(network: nn.Module) -> bool:
    """Tell whether each process has only a part of the weights."""
    return isinstance(network, FSDPModule)


def full_tensor(value: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def network_state(network: nn.Module) -> dict[str, Any]:
    """Return all weights; of a sharded network in the first process, and nothing in the others."""
    return dcp.get_model_state_dict(network, options=_GATHERED) if is_sharded(network) else network.state_dict()


def optimizer_state(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """Return the optimizers' states as network_state() does; of a sharded network one, by the names of parameters."""
    if is_sharded(network):
        return [dcp.get_optimizer_state_dict(network, optimizers, options=_GATHERED)]
    return [optimizer.state_dict() for optimizer in optimizers]


def load_optimizer_state(
    network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], states: Sequence[dict[str, Any]]
) -> None:
    """Restore what optimizer_state() returned. Raises ValueError if only one of the two is sharded."""
    is_filled = any(state["state"] for state in states)
    by_name = any(isinstance(key, str) for state in states for key in state["state"])
    if is_filled and by_name != is_sharded(network):
        parallel = "fsdp" if by_name else "ddp"
        raise ValueError(f"checkpoint was saved with run.parallel={parallel}: set run.parallel={parallel}")
    if is_sharded(network):
        dcp.set_optimizer_state_dict(network, optimizers, states[0], options=_FULL)
        return
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)


def load_network_state(network: nn.Module, state: dict[str, Any]) -> None:
    """Fill a sharded network from a complete state."""
    dcp.set_model_state_dict(network, dict(state), options=_FULL)
