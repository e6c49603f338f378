"""Training state: model, optimizer, GradScaler and EMA, stepped, saved and restored together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from networks import weights
from training import parallel
from training.optimizers import clip_gradients

_KEYS = {"network", "optimizer", "scaler", "ema"}


@dataclass(frozen=True)
class TrainState:
    """The network, the `model` around it (DDP) that the training step calls, its optimizer, GradScaler and EMA."""

    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None

    @property
    def eval_model(self) -> nn.Module:
        """The network that is evaluated and saved: the EMA if there is one."""
        return self.ema.module if self.ema else self.network

    @property
    def skips_on_device(self) -> bool:
        """True if the fused optimizer can skip a step where `found_inf` says so, without a sync."""
        return bool(self.optimizer.defaults.get("fused"))

    def optimizer_step(self, clip_grad_norm: float, per_param: bool = False) -> Tensor:
        """Unscale and clip the gradients, step, zero them and update the EMA. Returns their norm () before clipping.

        A step whose gradient norm is not finite changes no weight.
        """
        self.scaler.unscale_(self.optimizer)
        norm = parallel.full_tensor(clip_gradients(self.network.parameters(), clip_grad_norm, per_param))
        self._step(norm)
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.network)
        return norm

    def _step(self, norm: Tensor) -> None:
        if self.scaler.is_enabled() or self.skips_on_device:
            if not self.scaler.is_enabled():  # the fused step changes nothing where found_inf is 1
                self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.scaler.step(self.optimizer)
        elif norm.isfinite():  # a sync
            self.optimizer.step()
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes in training. All processes call it; it is complete in the first one."""
        return {
            "network": parallel.network_state(self.network),
            "optimizer": parallel.optimizer_state(self.network, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what state_dict() returned. Raises ValueError if it belongs to another network, or is no such state.

        Hyperparameters of the optimizer are those of the configuration, which may have changed since.
        """
        if missing := _KEYS - state.keys():
            raise ValueError(f"not the checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
        if self.ema and not state["ema"]:
            raise ValueError("checkpoint has no EMA weights: resume with optim.ema_decay=0")
        if parallel.is_sharded(self.network):
            parallel.load_network_state(self.network, state["network"])
        else:
            weights.load_state(self.network, state["network"])
        groups = self.optimizer.param_groups
        configured = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        parallel.load_optimizer_state(self.network, self.optimizer, state["optimizer"])
        for group, hyperparameters in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(hyperparameters)
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            weights.load_state(self.ema.module, state["ema"])
