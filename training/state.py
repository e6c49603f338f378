"""Training state: model, optimizers, GradScaler and EMA, stepped, saved and restored together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from networks import weights
from networks.jepa import JEPA
from training import parallel
from training.optimizers import clip_gradients

_KEYS = {"network", "optimizers", "scaler", "ema"}


@dataclass(frozen=True)
class TrainState:
    """The network, the `model` around it (DDP) that the training step calls, its optimizers, GradScaler and EMA.

    There is one optimizer, or one for each probe of a grid: then gradients are clipped, and steps skipped, for each
    probe alone.
    """

    network: nn.Module
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None

    @property
    def eval_model(self) -> nn.Module:
        """The network that is evaluated and saved: the EMA if there is one."""
        return self.ema.module if self.ema else self.network

    def optimizer_step(self, clip_grad_norm: float, per_param: bool = False) -> Tensor:
        """Unscale and clip the gradients, step, zero them, update the EMA and the teacher of a JEPA.

        Returns the norm () of the gradients before clipping. A step whose norm is not finite changes no weight that is
        trained; a teacher and the EMA still move on. Of several optimizers the norm is that over those whose own norm
        is finite, if there are any.
        """
        norms = []
        for optimizer in self.optimizers:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if all(parameter.grad is None for parameter in parameters):  # of a probe that is trained no longer
                continue
            self.scaler.unscale_(optimizer)
            norm = parallel.full_tensor(clip_gradients(parameters, clip_grad_norm, per_param))
            self._step(optimizer, norm)
            optimizer.zero_grad()
            norms.append(norm)
        self.scaler.update()
        if isinstance(self.network, JEPA):
            self.network.update_teacher()
        if self.ema:
            self.ema.update(self.network)
        return norms[0] if len(norms) == 1 else _finite_norm(torch.stack(norms))

    def _step(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Step unless the norm of the gradients is not finite; a fused optimizer is told so on the device, no sync."""
        if self.scaler.is_enabled() or optimizer.defaults.get("fused"):
            if not self.scaler.is_enabled():  # the fused step changes nothing where found_inf is 1
                optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.scaler.step(optimizer)
        elif norm.isfinite():  # a sync
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes in training. All processes call it; it is complete in the first one."""
        return {
            "network": parallel.network_state(self.network),
            "optimizers": parallel.optimizer_state(self.network, self.optimizers),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what state_dict() returned. Raises ValueError if it belongs to another network, or is no such state.

        Hyperparameters of the optimizers are those of the configuration, which may have changed since.
        """
        if missing := _KEYS - state.keys():
            raise ValueError(f"not the checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
        if self.ema and not state["ema"]:
            raise ValueError("checkpoint has no EMA weights: resume with optim.ema_decay=0")
        if parallel.is_sharded(self.network):
            parallel.load_network_state(self.network, state["network"])
        else:
            weights.load_state(self.network, state["network"])
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        configured = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        parallel.load_optimizer_state(self.network, self.optimizers, state["optimizers"])
        loaded = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, hyperparameters in zip(loaded, configured, strict=True):
            group.update(hyperparameters)
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            weights.load_state(self.ema.module, state["ema"])


def _finite_norm(norms: Tensor) -> Tensor:
    """Return the norm () over the finite ones of several norms (n,); not a number if there are none."""
    finite = norms.isfinite()
    total = torch.linalg.vector_norm(norms.where(finite, torch.zeros_like(norms)))
    return total.where(finite.any(), torch.full_like(total, torch.nan))
