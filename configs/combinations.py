"""Refuse values of different keys that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:  # the schema calls this module
    from configs.schema import Config


def check_combinations(cfg: Config) -> None:
    """Raise an error of pydantic's with the first key whose value contradicts another."""
    _check_data(cfg)
    _check_training(cfg)
    _check_adapter(cfg)
    _check_probe(cfg)
    _check_eval(cfg)


def _check_data(cfg: Config) -> None:
    data = cfg.data
    _require(
        data.batch_size % data.aug_repeats == 0,
        "data.aug_repeats",
        data.aug_repeats,
        f"a divisor of data.batch_size={data.batch_size}",
    )
    (low, high), expected = data.crop_scale, "0 < low <= high <= 1"
    _require(0 < low <= high <= 1, "data.crop_scale", data.crop_scale, expected)
    low, high = data.crop_ratio
    _require(0 < low <= high, "data.crop_ratio", data.crop_ratio, "0 < low <= high")
    low, high = data.short_side_range
    expected = f"data.image_size={data.image_size} <= low <= high"
    fits = data.crop != "scale_jitter" or data.image_size <= low <= high
    _require(fits, "data.short_side_range", data.short_side_range, expected)
    _require(min(data.std) > 0, "data.std", data.std, "numbers above 0")
    if cfg.task.is_pretraining:
        for key in ("mixup", "cutmix", "random_erasing"):
            _require(not getattr(data, key), f"data.{key}", getattr(data, key), f"0 with task.name={cfg.task.name}")


def _check_training(cfg: Config) -> None:
    o, task = cfg.optim, cfg.task
    because = f"with task.name={task.name}"
    same_rate = o.layer_decay == 1 or not task.is_pretraining
    _require(same_rate, "optim.layer_decay", o.layer_decay, f"1 {because}, which trains a decoder, too")
    ratio, predicts_pixels = task.decoder_mask_ratio, task.name not in ("maskfeat", "jepa")
    _require(predicts_pixels or not ratio, "task.decoder_mask_ratio", ratio, f"0 {because}")
    _require(predicts_pixels or task.norm_pix_loss, "task.norm_pix_loss", "no", f"yes {because}")
    _check_objective(cfg)
    own_masks = task.name != "jepa" or (task.mask == "auto" and task.mask_ratio == "auto")
    key, value = ("task.mask", task.mask) if task.mask != "auto" else ("task.mask_ratio", task.mask_ratio)
    _require(own_masks, key, value, "auto with task.name=jepa")
    uses_hog = task.name not in ("mae", "jepa") or (not task.hog_window and task.hog_gradient == "sobel")
    key, expected = ("hog_window", "0") if task.hog_window else ("hog_gradient", "sobel")
    _require(uses_hog, f"task.{key}", getattr(task, key), f"{expected} {because}")
    _require(0 <= min(o.betas) <= max(o.betas) < 1, "optim.betas", o.betas, "numbers of 0 to below 1")
    if task.name != "classify":
        for key, default in (("backbone_lr_scale", 1), ("head_epochs", 0)):
            _require(getattr(o, key) == default, f"optim.{key}", getattr(o, key), f"{default} {because}")
        _require(not cfg.run.fit, "run.fit", "yes", f"no {because}")
        _require(not cfg.run.keep_checkpoints, "run.keep_checkpoints", cfg.run.keep_checkpoints, f"0 {because}")
    _require(not (o.head_epochs and cfg.run.parallel == "fsdp"), "optim.head_epochs", o.head_epochs, "0 with fsdp")
    twice = bool(o.head_epochs and cfg.model.freeze)
    _require(not twice, "optim.head_epochs", o.head_epochs, f"0 with model.freeze={cfg.model.freeze}")
    _require(o.head_epochs < o.epochs, "optim.head_epochs", o.head_epochs, f"less than optim.epochs={o.epochs}")
    _require(not (cfg.run.fit and cfg.run.parallel == "fsdp"), "run.fit", "yes", "no with run.parallel=fsdp")
    no_milestones = o.schedule == "step" or not o.milestones
    _require(no_milestones, "optim.milestones", list(o.milestones), "none unless optim.schedule=step")
    _require(
        not (o.ema_decay and cfg.run.parallel == "fsdp"), "optim.ema_decay", o.ema_decay, "0 with run.parallel=fsdp"
    )
    shorter = o.warmup_epochs < o.epochs
    _require(shorter, "optim.warmup_epochs", o.warmup_epochs, f"less than optim.epochs={o.epochs}, for instance 0")
    _require(o.min_lr <= o.lr, "optim.min_lr", o.min_lr, f"at most optim.lr={o.lr}")


def _check_objective(cfg: Config) -> None:
    """Check the keys of the section task that only classifiers use, and those that depend on each other."""
    task, because = cfg.task, f"with task.name={cfg.task.name}"
    if task.is_pretraining:
        _require(not cfg.data.balance, "data.balance", cfg.data.balance, f"nothing {because}")
        for key in ("label_smoothing", "logit_adjustment", "class_balance_beta"):
            _require(not getattr(task, key), f"task.{key}", getattr(task, key), f"0 {because}")
        _require(not task.loss_args, "task.loss_args", task.loss_args, f"nothing {because}")
        _require(task.loss == "auto", "task.loss", task.loss, f"auto {because}, which has its own")
    corrected = not (task.logit_adjustment and task.class_balance_beta)
    expected = "0 with task.logit_adjustment, which corrects the same"
    _require(corrected, "task.class_balance_beta", task.class_balance_beta, expected)
    for key in ("distillation", "distillation_alpha", "distillation_tau"):
        unused = not task.teacher or (key == "distillation_tau" and task.distillation == "features")
        is_default = getattr(task, key) == type(task).model_fields[key].default
        of_logits = f" and task.distillation={task.distillation}" if task.teacher else ""
        expected = f"its default with task.teacher={task.teacher}{of_logits}"
        _require(is_default or not unused, f"task.{key}", getattr(task, key), expected)
    _require(not task.teacher or task.name == "classify", "task.teacher", task.teacher, f"none {because}")
    smoothable = task.loss in ("auto", "cross_entropy", "poly", "bce", "focal") or not task.label_smoothing
    _require(smoothable, "task.label_smoothing", task.label_smoothing, f"0 with task.loss={task.loss}")
    for key in ("logit_adjustment", "class_balance_beta"):
        once = not (cfg.data.balance and getattr(task, key))
        _require(once, "data.balance", cfg.data.balance, f"nothing with task.{key}, which corrects the same")
    softmax = task.loss in ("auto", "cross_entropy", "focal", "poly", "gce") and not cfg.data.multi_label
    sigmoid = f"0 with {'data.multi_label=yes' if cfg.data.multi_label else f'task.loss={task.loss}'}, a sigmoid"
    _require(softmax or not task.logit_adjustment, "task.logit_adjustment", task.logit_adjustment, sigmoid)
    if cfg.data.multi_label:
        _check_multi_label(cfg)
    else:
        _require(cfg.eval.metric != "map", "eval.metric", "map", "another one, or data.multi_label=yes")


def _check_multi_label(cfg: Config) -> None:
    data, task, because = cfg.data, cfg.task, "with data.multi_label=yes"
    _require(
        task.name != "probe", "data.multi_label", "yes", "no with task.name=probe; model.freeze=backbone trains a head"
    )
    for key in ("max_per_class", "eval_max_per_class", "balance"):
        _require(not getattr(data, key), f"data.{key}", getattr(data, key), f"nothing {because}")
    for_several = task.loss in ("auto", "bce", "focal", "asymmetric")
    _require(for_several, "task.loss", task.loss, f"auto, bce, focal or asymmetric {because}")
    _require(cfg.eval.metric != "macro_top1", "eval.metric", cfg.eval.metric, f"auto, map, top1 or loss {because}")
    for key in ("perturbations", "rlt_thresholds", "features_path"):
        _require(not getattr(cfg.eval, key), f"eval.{key}", getattr(cfg.eval, key), f"nothing {because}")


def _check_adapter(cfg: Config) -> None:
    name, model = cfg.adapter.name, cfg.model
    for key in cfg.adapter.unused:
        expected = f"its default, as adapter.name={name} does not use it"
        _require(False, f"adapter.{key}", getattr(cfg.adapter, key), expected)
    if not name:
        return
    because = f"with adapter.name={name}"
    _require(cfg.task.name == "classify", "adapter.name", name, f"none with task.name={cfg.task.name}")
    _require(bool(model.pretrained), "model.pretrained", "", f"a checkpoint {because}, which trains little else")
    _require(not model.freeze, "model.freeze", model.freeze, f"nothing {because}, which fixes all but the head")


def _check_probe(cfg: Config) -> None:
    data, o, p = cfg.data, cfg.optim, cfg.probe
    if cfg.task.name != "probe":
        return
    because = "with task.name=probe"
    _require(bool(p.kinds), "probe.kinds", "", "one kind of probe or more")
    for key, values in (("lr", p.lr), ("weight_decay", p.weight_decay)):
        _require(all(value >= 0 for value in values), f"probe.{key}", list(values), "numbers of 0 or more")
    _require(o.lr > 0, "optim.lr", o.lr, f"a number above 0 {because}")
    _require(not cfg.model.freeze, "model.freeze", cfg.model.freeze, f"nothing {because}, which freezes the network")
    _require(not o.ema_decay, "optim.ema_decay", o.ema_decay, f"0 {because}")
    _require(o.layer_decay == 1, "optim.layer_decay", o.layer_decay, f"1 {because}")
    _require(o.weight_decay_end == "constant", "optim.weight_decay_end", o.weight_decay_end, f"constant {because}")
    sharded = cfg.run.parallel == "fsdp"
    _require(not (sharded and p.halving_epochs), "probe.halving_epochs", p.halving_epochs, "0 with run.parallel=fsdp")
    whole = cfg.eval.num_clips % data.num_clips == 0
    expected = f"a multiple of data.num_clips={data.num_clips}, which are pooled together"
    _require(whole, "eval.num_clips", cfg.eval.num_clips, expected)


def _check_eval(cfg: Config) -> None:
    e, size, task = cfg.eval, cfg.data.image_size, cfg.task
    known = {"probe": ("auto", "top1")}.get(task.name, ("auto", "loss") if task.is_pretraining else (e.metric,))
    _require(e.metric in known, "eval.metric", e.metric, f"{' or '.join(known)} with task.name={task.name}")
    _require(e.num_crops in (1, 3), "eval.num_crops", e.num_crops, "1 or 3")
    letterbox = cfg.data.crop == "letterbox"
    _require(not letterbox or e.num_crops == 1, "eval.num_crops", e.num_crops, "1 with data.crop=letterbox")
    low, high = e.shots
    _require(0 <= low <= high, "eval.shots", list(e.shots), "two numbers of videos, the smaller one first")
    lowest = min(e.rlt_thresholds, default=0)
    _require(lowest >= 0, "eval.rlt_thresholds", list(e.rlt_thresholds), "numbers of 0 or more")
    large = isinstance(e.short_side, str) or e.short_side >= size
    _require(large, "eval.short_side", e.short_side, f"image_size, 8/7, or at least data.image_size={size}")


def _require(holds: bool, key: str, value: Any, expected: str) -> None:
    if not holds:
        raise PydanticCustomError("combination", f"{key}={value}: expected {expected}".replace("{", "{{"))
