"""Build from a configuration what a network learns: a task, with its loss and its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from configs.schema import Config
from networks.jepa import JEPA
from networks.maskfeat import MaskFeat
from networks.pretraining import MaskedAutoencoder, PretrainingNetwork
from pipelines.sampling.order import BALANCE_POWERS
from training.distillation import Distill, Teacher
from training.losses import Loss, adjusted_offsets, effective_weights
from training.pretraining_tasks import JEPATask, MAETask, MaskFeatTask, PretrainingTask
from training.tasks import Classify, ClassifyByProbes


def build_loss(cfg: Config, class_counts: Sequence[int], device: torch.device) -> Loss:
    """Build the loss of a classifier; `class_counts` are the training videos of each class."""
    task = cfg.task
    corrections: dict[str, Any] = {}
    if task.logit_adjustment:
        corrections["logit_offsets"] = adjusted_offsets(class_counts, task.logit_adjustment).to(device)
    if task.class_balance_beta:
        corrections["class_weights"] = effective_weights(class_counts, task.class_balance_beta).to(device)
    try:
        name = task.loss if task.loss != "auto" else "bce" if cfg.data.multi_label else "cross_entropy"
        options: dict[str, Any] = {"label_smoothing": task.label_smoothing, "multi_label": cfg.data.multi_label}
        return Loss(name, task.loss_args, **options, **corrections)
    except ValueError as error:
        raise ValueError(f"task.{error}") from None


def describe_balance(cfg: Config, num_train_videos: Sequence[int]) -> str:
    """Describe in a line what is done about classes of different sizes; "" if nothing is."""
    task, balance = cfg.task, cfg.data.balance
    sizes = [number for number in num_train_videos if number]
    if not sizes or not (balance or task.logit_adjustment or task.class_balance_beta):
        return ""
    text = f"classes of {min(sizes)} to {max(sizes)} videos; "
    if balance:
        shares = [size ** BALANCE_POWERS[balance] for size in sizes]
        times = [sum(sizes) * share / sum(shares) / size for share, size in zip(shares, sizes, strict=True)]
        return text + f"data.balance={balance}: a video comes {min(times):.2g} to {max(times):.2g} times in an epoch"
    if task.logit_adjustment:
        offsets = adjusted_offsets(sizes, task.logit_adjustment)
        return text + f"logits are adjusted by {offsets.min():.2g} to {offsets.max():.2g}"
    weights = effective_weights(sizes, task.class_balance_beta)
    return text + f"losses are weighed by {weights.min():.2g} to {weights.max():.2g}"


def build_task(
    cfg: Config,
    network: nn.Module,
    compiled: bool = False,
    class_counts: Sequence[int] = (),
    teacher: Teacher | None = None,
) -> Classify | PretrainingTask:
    """Build the task, which turns a batch into a loss. Raises ValueError for a network of another task."""
    task, data = cfg.task, cfg.data
    if not task.is_pretraining:
        loss = build_loss(cfg, class_counts, next(network.parameters()).device)
        if task.name == "probe":
            return ClassifyByProbes(loss)
        if teacher:
            return Distill(loss, teacher, task.distillation, task.distillation_alpha, task.distillation_tau)
        return Classify(loss)
    masks = task.mask, task.mask_ratio
    if task.name == "maskfeat" and isinstance(network, MaskFeat):
        hog: dict[str, Any] = {"window": task.hog_window, "gradient": task.hog_gradient}
        return MaskFeatTask(network, *masks, **hog, compiled=compiled)
    if task.name == "mae" and isinstance(network, MaskedAutoencoder):
        pixels: dict[str, Any] = {"normalize": task.norm_pix_loss, "mean": data.mean, "std": data.std}
        return MAETask(network, *masks, decoder_ratio=task.decoder_mask_ratio, **pixels)
    if task.name == "jepa" and isinstance(network, JEPA):
        return JEPATask(network)
    kind = "of another pre-training" if isinstance(network, PretrainingNetwork) else "a classifier"
    raise ValueError(f"task.name={task.name}: the network is {kind}")
