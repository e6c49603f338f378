"""Train a video network.

    python train.py configs/demo/demo.yaml                                    train a recipe
    python train.py configs/demo/demo.yaml optim.lr=1e-3 data.batch_size=8    the same with other values
    python train.py --help                                                    every key, its default and meaning
    python train.py --schema                                                  all of it as JSON schema, for editors
    torchrun --standalone --nproc-per-node 8 train.py configs/k400/NAME.yaml  on eight GPUs

The same command again continues where the run stopped. Ctrl-C and SIGTERM save a checkpoint first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from configs import loading
from configs.schema import Config
from evaluation.evaluate import progress
from evaluation.validate import is_validated, validate
from networks.layers import AttentionLayout
from networks.probed_encoder import ProbeGrid
from networks.weights.adapter import weights_file
from pipelines.batch_loader import Batch
from pipelines.sample_source import TooManyUnreadableVideos
from pipelines.sampling.order import torch_seed
from training.distillation import Distill
from training.figures import draw_attention, draw_predictions, draw_pretraining
from training.history import read_metrics, summarize_run, validations_since_best
from training.metrics import StepMetrics, log_line
from training.objective import describe_balance
from training.parallel import is_sharded, sync_gradients
from training.pretraining_tasks import PretrainingTask
from training.probe_grid import describe_probes, probe_settings
from training.profiler import profile_steps
from training.session import Training, choose_trained_parts, resume, save_checkpoint, set_up, steps_left
from training.setup import describe_network, describe_step
from training.signals import GracefulStop
from utils.cli import USER_ERROR, run_command
from utils.device import autocast
from utils.distributed import World
from utils.timer import IntervalTimer

OOM_HINT = (
    "What takes less memory: a smaller data.batch_size (optim.global_batch_size=N keeps the clips per step, in several "
    "batches), model.args.checkpoint_blocks=N, run.precision=bf16, fewer data.num_frames, or on several GPUs "
    "run.parallel=fsdp."
)


class LastBatch(NamedTuple):
    """The last batch of an epoch and what the task made of it."""

    batch: Batch
    out: dict[str, Tensor]


def train(cfg: Config, given: Collection[str] = ()) -> int:
    """Train as configured, from the last checkpoint if there is one. Returns the exit status (not 0 if stopped).

    `given` are the keys that the command line sets.
    """
    world = World.from_env()
    torch.set_num_threads(cfg.run.cpu_threads or max(1, len(os.sched_getaffinity(0)) - 1))
    t, checkpoint, report = set_up(cfg, world, given)
    if checkpoint:
        resume(t, checkpoint)
    else:
        t.run_dir.reset(t.cfg)
    if report:
        t.run_dir.log(report)
    total_steps = t.step + steps_left(t)
    if t.step < total_steps or not checkpoint:
        t.run_dir.write_config(t.cfg)
    t.run_dir.log(f"{describe_network(cfg.model.name, t.state.network, t.dtype)}; run folder {t.run_dir.path}")
    accumulate = t.train_loader.grad_accum_steps
    step_text = describe_step(t.schedule, t.cfg.data.batch_size, world.size, accumulate)
    t.run_dir.log(f"{t.schedule.steps_per_epoch} steps per epoch, each of {step_text}")
    if balance := describe_balance(t.cfg, t.num_train_videos):
        t.run_dir.log(balance)
    if isinstance(t.task, PretrainingTask | Distill):
        t.run_dir.log(t.task.description)
    if cfg.task.name == "probe":
        t.run_dir.log(describe_probes(probe_settings(t.cfg)))

    metrics, timer = StepMetrics(t.device), IntervalTimer(cfg.run.checkpoint_minutes)
    profile_dir = t.run_dir.path / "profile" if world.is_main else None
    stop = GracefulStop(single_process=world.size == 1)
    with stop, profile_steps(cfg.run.profile_steps, profile_dir, t.run_dir.log) as after_step:
        if checkpoint and t.step and not t.train_loader.batch_index and not world.broadcast(lambda: is_validated(t)):
            validate(t)  # the run was stopped between the end of the epoch and its validation
        for epoch in range(t.train_loader.epoch, cfg.optim.epochs):
            if stops_early(t):
                break
            choose_trained_parts(t, epoch)
            last = train_epoch(t, epoch, total_steps, metrics, stop, timer, after_step)
            save_checkpoint(t)
            if stop.signal:
                break
            if last and world.is_main and (epoch + 1 == cfg.optim.epochs or epoch % figure_interval(t) == 0):
                save_figures(t, last)
            with stop.interruptible():
                validate(t)
            t.run_dir.draw_curves()
    return finish(t, stop)


def train_epoch(  # noqa: PLR0913  # the objects that live longer than an epoch
    t: Training,
    epoch: int,
    total_steps: int,
    metrics: StepMetrics,
    stop: GracefulStop,
    timer: IntervalTimer,
    after_step: Callable[[], None],
) -> LastBatch | None:
    """Train to the end of an epoch, or until a signal arrives. Returns the last batch."""
    cfg, loader, state, schedule, world = t.cfg, t.train_loader, t.state, t.schedule, t.world
    accumulate = loader.grad_accum_steps
    metrics.reset()
    batches = metrics.timed(progress(loader, f"epoch {epoch + 1}/{cfg.optim.epochs}", world))
    batch: Batch | None = None
    out: dict[str, Tensor] = {}
    for step_in_epoch in range(loader.batch_index // accumulate, schedule.steps_per_epoch):
        # --- the training step ----------------------------------------------------------------------------------------
        for i in range(accumulate):
            batch = next(batches)
            torch.manual_seed(torch_seed(cfg.run.seed, epoch, loader.batch_index, world.rank))  # of dropout
            with sync_gradients(state.model, i + 1 == accumulate), autocast(t.device, t.dtype):
                out = t.task(state.model, batch)
                state.scaler.scale(out["loss"] / accumulate).backward()
            metrics.update(out, batch)
        lr = schedule.apply(state.optimizers, epoch * schedule.steps_per_epoch + step_in_epoch)
        grad_norm = state.optimizer_step(cfg.optim.clip_grad_norm, cfg.optim.clip_mode == "per_param")
        # --------------------------------------------------------------------------------------------------------------
        metrics.update_step(grad_norm)
        t.step += 1
        after_step()
        is_due = metrics.num_steps == cfg.run.log_interval or loader.batch_index == len(loader)
        asks_others = is_due or metrics.num_steps % metrics.sync_every == 0
        if is_due:
            log_metrics(t, {"lr": lr, **metrics.compute_and_reset(world.size)}, epoch, total_steps)
        # All ranks must stop together: torchrun sends SIGKILL 30 s after the first one exits.
        if asks_others or world.size == 1:
            if stop.sync(world.gather):
                break
            if world.gather(timer.due())[0]:
                save_checkpoint(t)
    else:
        next(batches, None)  # there is none: the loader turns to the next epoch
    return LastBatch(batch, out) if batch else None


def log_metrics(t: Training, row: dict[str, float], epoch: int, total_steps: int) -> None:
    """Write a row of metrics. Raises ValueError if the loss has not been finite for too long."""
    t.train_loader.share_faults()
    t.run_dir.record("train", t.step, epoch=epoch + 1, **row)
    t.run_dir.log(f"epoch {epoch + 1}  step {t.step}/{total_steps}  {log_line(row, t.cfg.data.multi_label)}")
    if row["nonfinite_streak"] > t.cfg.run.max_nonfinite_steps:
        raise ValueError(
            f"the loss was not finite for {row['nonfinite_streak']:.0f} consecutive steps "
            f"(run.max_nonfinite_steps={t.cfg.run.max_nonfinite_steps}): lower optim.lr"
        )


def stops_early(t: Training) -> bool:
    """Tell whether run.patience ends the run here, and say so. All processes call it together."""
    patience, metric = t.cfg.run.patience, t.cfg.eval.metric
    waited = t.world.broadcast(lambda: validations_since_best(read_metrics(t.run_dir.path), metric)) if patience else 0
    if patience and waited >= patience:
        validations = f"{waited} validation{'s' * (waited > 1)}"
        t.run_dir.log(f"stopped early: {validations} without a better one; more run.patience continues")
    return bool(patience) and waited >= patience


def figure_interval(t: Training) -> int:
    """Return how many epochs lie between two figures: five or so in all, of a pre-training task.figure_epochs."""
    return t.cfg.task.figure_epochs if isinstance(t.task, PretrainingTask) else max(1, t.cfg.optim.epochs // 5)


def save_figures(t: Training, last: LastBatch) -> None:
    """Write clips.png, the last batch with predictions, and attention.png, what a classifier looked at."""
    (batch, out), mean, std = last, t.cfg.data.mean, t.cfg.data.std
    if batch.video.ndim == 3:  # features: there are no frames to show
        return
    if isinstance(t.task, PretrainingTask):
        t.run_dir.save_figure("clips", draw_pretraining(t.task, batch, out, mean, std), t.step)
        return
    network, logits = t.state.network, out["logits"]
    shows_attention = not is_sharded(network)  # which would need all processes for its forward pass
    if isinstance(network, ProbeGrid):  # the first probe that is still trained, and the first clip of each video
        network, logits = network.select(network.active[0]), logits[0]
        batch = batch if batch.video.ndim == 5 else batch._replace(video=batch.video[:, 0])
    figure, titles = draw_predictions(batch, logits, t.classes, mean, std)
    t.run_dir.save_figure("clips", figure, t.step)
    # Of a probe without a pooler it would be the encoder's own attention, whose weights may not fit in memory.
    layout: AttentionLayout | None = network.attention_layout  # type: ignore[assignment]
    if shows_attention and layout is not None and layout.kind != "unrolled":
        attention = draw_attention(network, batch.video[:3], titles[:3], mean, std)
        t.run_dir.save_figure("attention", attention, t.step)


def finish(t: Training, stop: GracefulStop) -> int:
    """Log the last lines and close everything. Returns the exit status."""
    status = 128 + stop.signal if stop.signal else 0
    if t.world.is_main:
        path = t.run_dir.path
        if stop.signal:
            t.run_dir.log(f"stopped by {stop.signal.name} at step {t.step}; the same command continues from here")
        else:
            keeps_last = isinstance(t.task, PretrainingTask) and t.task.keeps_last
            t.run_dir.log(summarize_run(read_metrics(path), keeps_last, t.cfg.eval.metric))
            files = {
                "best": f"network: {weights_file(path / 'best').name}, config.json",
                "curves.png": "loss, and accuracy or the loss relative to that of the mean target",
                "clips.png": "clips and predictions",
                "attention.png": "attention of the network",
                "probes.csv": "the best validation of each probe; probes.png",
                "metrics.jsonl": "every figure",
                "tb": f"TensorBoard: tensorboard --logdir {path}",
            }
            there = {name: text for name, text in files.items() if (path / name).exists()}
            t.run_dir.log("\n".join(f"  {path / name}  {text}" for name, text in there.items()))
        if t.train_loader.bad_videos:
            count = len(t.train_loader.bad_videos)
            t.run_dir.log(f"{count} videos could not be read and were replaced: see bad_videos.csv")
        if t.run_dir.failed_writes:
            t.run_dir.log(f"not everything could be written: {', '.join(sorted(t.run_dir.failed_writes))}")
            status = status or 1
        t.run_dir.close()
    if t.world.size > 1:
        torch.distributed.destroy_process_group()
    return status


def main(argv: Sequence[str]) -> int:
    """Run the command: 0 done, 2 an error in the configuration or the data, 128 + n stopped by signal n."""
    if list(argv) == ["--schema"]:
        print(loading.json_schema())
        return 0

    def work(arguments: Sequence[str]) -> int:
        recipe = arguments[0] if "=" not in arguments[0] else None
        overrides = arguments[1:] if recipe else arguments
        return train(loading.load_config(recipe, overrides), loading.override_keys(overrides))

    try:
        return run_command(
            "train.py",
            lambda: f"{__doc__}\nKeys:\n{loading.help_text()}",
            work,
            argv,
            errors=(ValueError, TooManyUnreadableVideos),
            interrupted="interrupted before the first step",
        )
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        print(f"train.py: out of memory: {str(error).splitlines()[0]}\n{OOM_HINT}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
