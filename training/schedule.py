"""Learning rate and weight decay of each optimizer step: pure functions."""

import math
from collections.abc import Sequence

SCHEDULES = ("cosine", "step", "constant")


def rate_at(
    place: float,
    total: float,
    warmup: float,
    lr: float,
    min_lr: float = 0.0,
    schedule: str = "cosine",
    drops: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """The learning rate of 0-based step `place` of `total`: linear warm-up from min_lr, then the schedule.

    cosine: half a cosine down to min_lr (`cosine_lr`); step: lr, times gamma from each of `drops` on; constant: lr.
    """
    if schedule == "cosine":
        return cosine_lr(place, total, warmup, lr, min_lr)
    if place < warmup:
        return min_lr + (place + 1) / (warmup + 1) * (lr - min_lr)
    return lr * gamma ** sum(place >= drop for drop in drops) if schedule == "step" else lr


def decay_at(place: float, total: float, weight_decay: float, end: float) -> float:
    """The weight decay of 0-based step `place`: half a cosine from weight_decay to `end` (DINO, section 5)."""
    return end + 0.5 * (weight_decay - end) * (1.0 + math.cos(math.pi * min(place / total, 1.0)))


def cosine_lr(step: float, total_steps: float, warmup_steps: float, lr: float, min_lr: float = 0.0) -> float:
    """The learning rate of 0-based `step`: linear from min_lr up to lr, then half a cosine down to min_lr.

    It is lr at step == warmup_steps and min_lr from step == total_steps on; the ends that would be min_lr itself,
    often 0, lie just outside the run, so that no step is wasted on them.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps={warmup_steps}: must be >= 0 and less than total_steps={total_steps}")
    if not 0.0 <= min_lr <= lr:
        raise ValueError(f"min_lr={min_lr}: must lie between 0 and lr={lr}")
    if step < 0:
        raise ValueError(f"step={step}: must be >= 0")
    if step < warmup_steps:
        share = (step + 1) / (warmup_steps + 1)
    else:
        progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return min_lr + share * (lr - min_lr)
