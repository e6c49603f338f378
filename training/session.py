"""One training run: what its functions share, how it is set up, resumed and saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from configs import loading
from configs.schema import Config
from networks import weights
from networks.adapters import HEADS
from networks.probed_encoder import ProbeGrid
from networks.student import make_student
from networks.weights.adapter import base_exists
from networks.weights.report import CREATED
from pipelines.data.dataset import count_labels
from pipelines.data.feature_shards import is_feature_folder
from pipelines.feature_loader import FeatureLoader
from pipelines.loader import EvalVideoLoader, VideoLoader
from pipelines.tuning.tune import SECONDS, tune
from training.adapter import TrainedAdapter, resume_adapter, start_adapter
from training.checkpoint_input import apply_input_spec, keep_saved_input
from training.distillation import load_teacher
from training.early_checks import check_adapter_keys, check_network_and_loss
from training.fit import fit, keep_fit
from training.history import read_metrics
from training.objective import build_task
from training.parallel import distribute
from training.pretraining_tasks import PretrainingTask
from training.probe_grid import active_probes, probe_settings
from training.run_dir import RunDir
from training.schedule import Schedule
from training.setup import (
    Checkpoint,
    build_loaders,
    build_network,
    build_state,
    freeze,
    init_from_pretrained,
    is_compiled,
    load_resume_checkpoint,
)
from training.state import TrainState
from training.tasks import Classify
from utils.device import choose_device, choose_dtype, clip_dtype
from utils.distributed import World


@dataclass
class Training:
    """Everything that a training run consists of. `step` counts the optimizer steps made."""

    cfg: Config
    world: World
    dtype: torch.dtype
    classes: list[str]
    train_loader: VideoLoader | FeatureLoader
    val_loader: EvalVideoLoader | FeatureLoader | None
    state: TrainState
    task: Classify | PretrainingTask
    schedule: Schedule
    run_dir: RunDir
    step: int = 0
    adapter: TrainedAdapter | None = None
    num_train_videos: Sequence[int] = ()  # of each class

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.train_loader.device


def set_up(cfg: Config, world: World, given: Collection[str] = ()) -> tuple[Training, Checkpoint | None, str]:
    """Build everything for training; also return the checkpoint to resume from and the report on the weights.

    `given` are keys, data.num_workers, that data.tune leaves alone.
    """
    check_adapter_keys(cfg, given)
    device = choose_device(cfg.run.device, world.local_rank)
    dtype = choose_dtype(cfg.run.precision, device)
    if not torch.distributed.is_initialized():
        world.init_process_group(device.type)
    checkpoint = load_resume_checkpoint(cfg, world)
    source: weights.Checkpoint | None = None
    input_lines: list[str] = []
    saved = loading.parse_config(checkpoint[1].get("config", "")) if checkpoint else None
    if saved:  # keep what was chosen when the run began
        if saved.model.pretrained:  # its clips may have come from the checkpoint
            cfg = keep_saved_input(cfg, saved)
        if cfg.data.pyav_share == "auto":
            cfg = loading.replace_values(cfg, "data", pyav_share=saved.data.pyav_share)
    elif cfg.model.pretrained:
        source = weights.read_checkpoint(cfg.model.pretrained)
        cfg, input_lines = apply_input_spec(cfg, weights.input_spec(source))
    check_network_and_loss(cfg)
    if cfg.run.fit:
        cfg, line = keep_fit(cfg, saved) if saved and saved.run.fit else fit(cfg, world)
        input_lines.append(line)
    compiled = is_compiled(cfg, device)
    teacher = load_teacher(cfg, device, dtype, compiled) if cfg.task.teacher else None
    if cfg.data.tune:
        cfg = tune_data(cfg, saved, given, device, dtype, world)
    data, (train_loader, val_loader) = cfg.data, build_loaders(cfg, device, dtype, world)
    classes = train_loader.classes
    decoders = train_loader.source.decoders if isinstance(train_loader, VideoLoader) else None
    if data.decoder in ("auto", "both") and decoders and decoders.uses_dali:
        cfg = loading.replace_values(cfg, "data", pyav_share=decoders.pyav_share)

    torch.manual_seed(cfg.run.seed)
    network = build_network(cfg, len(classes))
    lines, adapter = prepare_weights(network, cfg, source, checkpoint, classes)
    if teacher and cfg.task.distillation == "features":
        make_student(network, teacher.feature_dim)
    elif teacher:
        teacher.check_classes(classes)
    accumulate, num_train_videos = train_loader.grad_accum_steps, count_classes(train_loader)
    training = Training(
        cfg=cfg,
        world=world,
        dtype=dtype,
        classes=classes,
        train_loader=train_loader,
        val_loader=val_loader,
        state=build_state(cfg, network.to(device), world.size, dtype, accumulate),
        task=build_task(cfg, network, compiled, num_train_videos, teacher),
        schedule=Schedule(cfg.optim, len(train_loader) // accumulate, data.batch_size * world.size * accumulate),
        run_dir=RunDir(cfg.run, enabled=world.is_main),
        adapter=adapter,
        num_train_videos=num_train_videos,
    )
    return training, checkpoint, "\n".join([*lines, *input_lines])


def count_classes(loader: VideoLoader | FeatureLoader) -> list[int]:
    """Count the training videos of each class."""
    if isinstance(loader, VideoLoader):
        return loader.dataset.count_videos()
    return count_labels((video.label for video in loader.videos), len(loader.classes))


def prepare_weights(
    network: nn.Module,
    cfg: Config,
    source: weights.Checkpoint | None,
    checkpoint: Checkpoint | None,
    classes: Sequence[str],
) -> tuple[list[str], TrainedAdapter | None]:
    """Fill a new network from model.pretrained and fix the weights that are not trained; those of a checkpoint to
    resume are loaded later. Returns what became of the keys, and the adapter if one is trained."""
    name, lines, adapter = cfg.adapter.name, list[str](), None
    if cfg.model.freeze:
        freeze(network, cfg.model.freeze)
    if source:
        report = init_from_pretrained(network, source, cfg.model, classes)
        lines = [f"weights of {cfg.model.pretrained}", report.text()]
        created = [record.target for record in report.with_status(CREATED)]
        adapter = start_adapter(network, cfg, created) if name else None
    elif cfg.task.name == "probe" and not checkpoint:
        lines = ["the encoder has random weights; model.pretrained=CHECKPOINT gives it trained ones"]
    if name and checkpoint:
        adapter = resume_adapter(network, cfg, checkpoint[1].get("adapter") or {})
        if not base_exists(adapter.base):
            lines = [f"the base of the adapter is not at {adapter.base.source}: best/ cannot be used without it"]
    return lines, adapter


def tune_data(  # noqa: PLR0913  # what set_up() knows by then
    cfg: Config,
    saved: Config | None,
    given: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
    world: World,
) -> Config:
    """Return the configuration with the fastest workers, threads, prefetch and decoder, as data.tune asks.

    Keys that are `given` stay. Decoders round pixels differently, so a decoder or share that the recipe names stays,
    too, and a resumed run keeps those that were `saved`.
    """
    choosers = {"decoder", "pyav_share"}
    fixed = {key.removeprefix("data.") for key in given} | choosers & cfg.data.model_fields_set
    if saved:
        if "decoder" not in fixed:
            cfg = loading.replace_values(cfg, "data", decoder=saved.data.decoder)
        fixed |= choosers
    if not cfg.data.train or is_feature_folder(cfg.data.train):
        return cfg  # the loader says what is missing; features need no decoder
    data = tune(
        cfg.data, fixed=fixed, device=device, dtype=clip_dtype(dtype), seed=cfg.run.seed, world=world, seconds=SECONDS
    )
    return cfg.model_copy(update={"data": data})


def resume(t: Training, checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint. Raises ValueError if it belongs to another network or optimizer."""
    path, content = checkpoint
    try:
        if missing := {"loader", "step", "config"} - content.keys():
            raise ValueError(f"not the checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
        saved_cfg = loading.parse_config(content["config"])
        name, saved_name = t.cfg.optim.name, saved_cfg.optim.name
        if saved_name != name:
            raise ValueError(
                f"checkpoint was trained with optim.name={saved_name}, the configuration has {name}: set "
                f"optim.name={saved_name} or run.resume=no"
            )
        t.state.load_state_dict(content)
    except ValueError as error:
        hint = "to begin anew, take another run.name, or run.resume=no"
        raise ValueError(f"{path}: {error}\n  {hint}") from None
    t.train_loader.load_state_dict(content["loader"])
    t.step = content["step"]
    t.run_dir.resume_from(path, t.step)
    t.run_dir.log(f"resumed from {path}: {t.train_loader.epoch} epochs done, step {t.step}")
    stop_probes(t)
    for line in loading.diff_configs(saved_cfg, t.cfg):
        t.run_dir.log(f"  changed since: {line}")


def stop_probes(t: Training) -> None:
    """Stop the probes that the validations so far have ruled out. All processes call it together."""
    grid, halving_epochs = t.state.network, t.cfg.probe.halving_epochs
    if not isinstance(grid, ProbeGrid) or not halving_epochs:
        return
    settings, last_epoch = probe_settings(t.cfg), t.cfg.optim.epochs

    def find_active() -> list[int]:  # the last validation stops none, as no epoch follows it
        rows = [row for row in read_metrics(t.run_dir.path) if row.get("epoch", 0) < last_epoch]
        return active_probes(rows, settings, halving_epochs)

    active = t.world.broadcast(find_active)
    stopped = [index for index in grid.active if index not in active]
    if not stopped:
        return
    for index in stopped:
        grid.stop(index)
    # DDP expects gradients of the parameters that were trained when it was built.
    accumulate = t.train_loader.grad_accum_steps
    model = distribute(grid, t.world.size, t.device, shard=False, grad_accum_steps=accumulate)
    t.state = dataclasses.replace(t.state, model=model)
    names = ", ".join(settings[index].name for index in stopped)
    t.run_dir.log(f"  {len(active)} of {len(settings)} probes go on; stopped: {names}")


def choose_trained_parts(t: Training, epoch: int) -> None:
    """Train only the head in the first optim.head_epochs epochs, then everything. All processes call it together."""
    if not t.cfg.optim.head_epochs:
        return
    head_only = epoch < t.cfg.optim.head_epochs
    in_optimizer = {id(p) for optimizer in t.state.optimizers for g in optimizer.param_groups for p in g["params"]}
    others = [
        parameter
        for name, parameter in t.state.network.named_parameters()
        if id(parameter) in in_optimizer and not name.startswith(HEADS)
    ]
    if all(parameter.requires_grad is not head_only for parameter in others):
        return
    for parameter in others:
        parameter.requires_grad_(not head_only)
    # DDP expects gradients of the parameters that were trained when it was built.
    accumulate = t.train_loader.grad_accum_steps
    model = distribute(t.state.network, t.world.size, t.device, shard=False, grad_accum_steps=accumulate)
    t.state = dataclasses.replace(t.state, model=model)
    t.run_dir.log("only the head is trained" if head_only else "the whole network is trained from here on")


def steps_left(t: Training) -> int:
    """Count the optimizer steps from the position of the loader to the end of the run."""
    loader = t.train_loader
    steps_done = loader.batch_index // loader.grad_accum_steps
    return (t.cfg.optim.epochs - loader.epoch) * t.schedule.steps_per_epoch - steps_done


def save_checkpoint(t: Training) -> None:
    """Write last.pt and bad_videos.csv. All processes call it together."""
    loader = t.train_loader
    loader.share_faults()
    position = {"loader": loader.state_dict(), "step": t.step, "config": loading.dump_config(t.cfg)}
    adapter = t.adapter.state_dict() if t.adapter else {}
    t.run_dir.save_last({**t.state.state_dict(), **position, "adapter": adapter})
    t.run_dir.write_bad_videos((loader.videos[index].name, why) for index, why in sorted(loader.bad_videos.items()))
