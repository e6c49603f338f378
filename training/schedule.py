"""Learning rate and weight decay of every optimizer step: pure functions of the step, so that a run resumes exactly.

(timm's schedulers keep state; these are functions, which makes resuming bit-exact.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from configs.schema import Optim


@dataclass(frozen=True)
class Schedule:
    """The lr and weight decay of all steps of a run, counted from the first epoch."""

    optim: Optim
    steps_per_epoch: int
    clips_per_step: int

    @property
    def peak_lr(self) -> float:
        """The lr after warm-up, scaled to the clips of a step."""
        return scaled_lr(self.optim, self.clips_per_step, self.optim.lr)

    def scheduled_lr(self, step: int, lr: float) -> float:
        """Return the lr of a 0-based step if the peak is `lr`, not scaled yet; min_lr is in proportion to it."""
        o = self.optim
        peak = scaled_lr(o, self.clips_per_step, lr)
        return lr_at(
            step,
            o.epochs * self.steps_per_epoch,
            round(o.warmup_epochs * self.steps_per_epoch),
            peak,
            min_lr=min(o.min_lr * peak / o.lr, peak) if o.lr else 0.0,  # min(): rounding may exceed the peak
            schedule=o.schedule,
            milestones=[epoch * self.steps_per_epoch for epoch in o.milestones],
            gamma=o.gamma,
        )

    def apply(self, optimizers: Sequence[torch.optim.Optimizer], step: int) -> float:
        """Set lr and weight decay of a 0-based step in all parameter groups; return the lr before layer decay.

        A group with `peak_lr` (of a probe) has that one, not optim.lr."""
        o, total_steps = self.optim, self.optim.epochs * self.steps_per_epoch
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = self.scheduled_lr(step, group.get("peak_lr", o.lr)) * group["lr_scale"]
            if o.weight_decay_end != "constant":
                weight_decay = weight_decay_at(step, total_steps, o.weight_decay, o.weight_decay_end)
                group["weight_decay"] = group["decays"] * weight_decay
        return self.scheduled_lr(step, o.lr)


def scaled_lr(optim: Optim, clips_per_step: int, lr: float) -> float:
    """Return an lr, scaled linearly from optim.lr_base_batch clips to those of a step."""
    return lr * (clips_per_step / optim.lr_base_batch if optim.lr_base_batch else 1)


def lr_at(  # noqa: PLR0913  # the parameters of a schedule
    step: float,
    total_steps: float,
    warmup_steps: float,
    lr: float,
    *,
    min_lr: float = 0.0,
    schedule: str = "cosine",
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """Return the lr of a 0-based step: linear warm-up from min_lr, then the schedule.

    cosine: half a cosine down to min_lr (`cosine_lr`); step: lr times gamma from each milestone on; constant: lr.
    """
    if schedule == "cosine":
        return cosine_lr(step, total_steps, warmup_steps, lr, min_lr)
    if step < warmup_steps:
        return min_lr + (step + 1) / (warmup_steps + 1) * (lr - min_lr)
    return lr * gamma ** sum(step >= milestone for milestone in milestones) if schedule == "step" else lr


def weight_decay_at(step: float, total_steps: float, weight_decay: float, end: float) -> float:
    """Return the weight decay of a 0-based step: half a cosine from weight_decay to `end` (DINO, section 5)."""
    return end + 0.5 * (weight_decay - end) * (1.0 + math.cos(math.pi * min(step / total_steps, 1.0)))


def cosine_lr(step: float, total_steps: float, warmup_steps: float, lr: float, min_lr: float = 0.0) -> float:
    """Return the lr of a 0-based step: linear from min_lr up to lr, then half a cosine down to min_lr.

    It is lr at step == warmup_steps and min_lr from step == total_steps on; the ends at which it would be min_lr
    itself, often 0, lie just outside the run, so that no step is wasted on them."""
    # 1) check the arguments
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps={warmup_steps}: expected 0 or more, and less than total_steps={total_steps}")
    if not 0.0 <= min_lr <= lr:
        raise ValueError(f"min_lr={min_lr}: expected a number between 0 and lr={lr}")
    if step < 0:
        raise ValueError(f"step={step}: expected 0 or more")
    # 2) linear warm-up
    if step < warmup_steps:
        fraction = (step + 1) / (warmup_steps + 1)
    # 3) cosine decay
    else:
        progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
        fraction = 0.5 * (1.0 + math.cos(math.pi * progress))
    return min_lr + fraction * (lr - min_lr)
