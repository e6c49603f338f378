"""What changes while a network is trained, and all of it as one state to save and go on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from networks import weights
from training import parallel

_KEYS = {"network", "optimizer", "scaler", "ema"}


@dataclass(frozen=True)
class Learner:
    """The network being trained, `model` around it that the step calls, its optimiser, fp16's scaler, the average."""

    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None

    @property
    def best(self) -> nn.Module:
        """What is evaluated and saved: the average of the weights if there is one."""
        return self.ema.module if self.ema else self.network

    @property
    def skips_on_device(self) -> bool:
        """Whether the optimiser leaves all as it is where `found_inf` says so, without the host's help."""
        return bool(self.optimizer.defaults.get("fused"))

    def update(self, norm: torch.Tensor) -> None:
        """A step of the optimiser, unless the gradients' norm is not finite; gradients are let go of."""
        if self.scaler.is_enabled() or self.skips_on_device:
            if not self.scaler.is_enabled():  # the fused step leaves everything as it is where found_inf is 1
                self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.scaler.step(self.optimizer)
        elif norm.isfinite():  # waits for the device
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.network)

    def state(self) -> dict[str, Any]:
        """For every process of the run to ask for; whole in the first one."""
        return {
            "network": parallel.network_state(self.network),
            "optimizer": parallel.optimizer_state(self.network, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo state(). Raises ValueError if it is of another network, or no such state."""
        if missing := _KEYS - state.keys():
            raise ValueError(f"not the checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
        if self.ema and not state["ema"]:
            raise ValueError("it holds no average of the weights; go on with optim.ema=0")
        if parallel.is_sharded(self.network):
            parallel.load_network_state(self.network, state["network"])
        else:
            weights.load_state(self.network, state["network"])
        groups = self.optimizer.param_groups
        asked = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        parallel.load_optimizer_state(self.network, self.optimizer, state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, asked, strict=True):
            group.update(options)  # of the configuration, which may have changed since
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            weights.load_state(self.ema.module, state["ema"])
