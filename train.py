"""Train a video network.

    python train.py configs/demo/demo.yaml                              a recipe
    python train.py configs/demo/demo.yaml optim.lr=1e-3 data.batch=8   the same with other values
    python train.py --help                                         every key, its default and meaning
    torchrun --standalone --nproc-per-node 8 train.py configs/X.yaml

The same command again continues where the run stopped. Ctrl-C and SIGTERM save a checkpoint first.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from configs import loading
from evaluation.evaluate import evaluate, progress
from networks import weights
from pipelines.data.dataset import class_names
from pipelines.decode.decoder_choice import AUTO_SHARE
from pipelines.loader import Batch, VideoLoader, build_loader
from pipelines.mixup import Mixing
from pipelines.sample_source import Unreadable
from pipelines.sampling.order import torch_seed
from training.figures import draw_attention, draw_hog
from training.history import is_best, read_metrics, summary
from training.metrics import Meter, log_line
from training.optimizers import clip_gradients
from training.parallel import is_sharded, network_state, synchronised, whole
from training.profiler import profiled
from training.run_dir import LAST, PREVIOUS, RunFolder, find_checkpoint, run_path
from training.setup import (
    build_learner,
    build_network,
    build_task,
    describe,
    describe_step,
    freeze,
    initialise,
    peak_rate,
    set_rates,
)
from training.signals import Stop
from training.state import Learner
from training.tasks import MaskFeat, mean_loss
from utils.checkpoint_io import load_checkpoint
from utils.device import autocast, choose_device, choose_dtype
from utils.distributed import World
from utils.plotting import draw_strips, pixels
from utils.timer import Clock

LESS_MEMORY = (
    "What takes less: a smaller data.batch (optim.batch=N keeps the clips of a step, in several batches), "
    "model.args.checkpoint_blocks=N, run.amp=bf16, fewer data.frames, or on several GPUs run.shard=full."
)


def train(cfg: loading.Config) -> int:
    """Train as configured, from the last checkpoint if there is one; returns the exit status (not 0 if stopped)."""
    world = World.from_env()
    device = choose_device(cfg.run.device, world.local_rank)
    dtype = choose_dtype(cfg.run.amp, device)
    torch.set_num_threads(cfg.run.threads or max(1, len(os.sched_getaffinity(0)) - 1))
    if not torch.distributed.is_initialized():
        world.connect(device.type)

    classes = world.first(lambda: class_names(cfg.data.train, cfg.data.classes))
    half = dtype is not torch.float32
    resumed = find_checkpoint(cfg) if world.is_first else None
    if (path := world.first(lambda: resumed and resumed[0])) and not resumed:
        resumed = path, load_checkpoint(path)
    if resumed and cfg.data.pyav_share == AUTO_SHARE:  # as chosen when the run began
        cfg = with_share(cfg, loading.load_text(resumed[1].get("config", "")).data.pyav_share)
    loader = build_loader(cfg, "train", classes, world, device, half)
    if cfg.data.decoder in ("auto", "both") and loader.source.decoders.uses_dali:
        cfg = with_share(cfg, loader.source.decoders.pyav_share)
    val_loader = build_loader(cfg, "val", classes, world, device, half) if cfg.data.val else None

    torch.manual_seed(cfg.run.seed)
    network = build_network(cfg, len(classes))
    if cfg.model.freeze:
        freeze(network, cfg.model.freeze)
    report = initialise(network, cfg, classes) if cfg.model.init and not resumed else ""
    learner, compiled = build_learner(cfg, network.to(device), world.size, dtype, loader.source.accumulate)
    task = build_task(cfg, network, compiled)
    mix = Mixing(len(classes), cfg.data.mixup, cfg.data.cutmix, cfg.data.erase)

    folder = RunFolder(cfg) if world.is_first else None
    say = folder.say if folder else lambda line: None
    step = 0
    if resumed:
        step = restore(resumed, learner, loader, cfg, folder)
    elif folder:
        folder.start_over()
        folder.board.add_text("config", f"```yaml\n{loading.dump(cfg)}```")
        if report:
            say(f"weights of {cfg.model.init}\n{report}")

    o, accumulate = cfg.optim, loader.source.accumulate
    epoch_steps, clips = len(loader) // accumulate, (cfg.data.batch, world.size, accumulate)
    peak = peak_rate(o, clips)
    total_steps = step + (o.epochs - loader.epoch) * epoch_steps - loader.step // accumulate
    if folder and (step < total_steps or not resumed):
        folder.write_config(cfg)
    say(f"{describe(cfg, network, dtype)}; run folder {run_path(cfg)}")
    say(f"{epoch_steps} steps an epoch, each of {describe_step(o, clips)}")

    def save() -> None:
        loader.share_faults()
        state = {**learner.state(), "loader": loader.state_dict(), "step": step, "config": loading.dump(cfg)}
        if folder:
            folder.save_last(state)
            folder.write_bad_videos((loader.source.clips[row].path, why) for row, why in sorted(loader.bad.items()))

    def validate() -> None:
        if val_loader and isinstance(task, MaskFeat):
            loss, baseline, _ = mean_loss(learner.best, task, val_loader, val_loader.device, dtype)
            val_loader.release_memory()
            say(f"epoch {loader.epoch}  val: loss {loss:.4f}  mean HOG {baseline:.4f}")
            found = {"loss": loss, "baseline": baseline}
        elif val_loader:
            scores = evaluate(learner.best, val_loader, world, dtype, cfg.eval.average)
            say(f"epoch {loader.epoch}  val: top-1 {100 * scores.topk(1):.2f} %  top-5 {100 * scores.topk(5):.2f} %  "
                f"loss {scores.loss:.4f}  {scores.coverage()}")  # fmt: skip
            found = {"loss": scores.loss, "top1": scores.topk(1), "top5": scores.topk(5)}
        else:
            found = {}
        if world.first(lambda: not found or is_best(found, read_metrics(run_path(cfg)))):
            state = network_state(learner.best)  # asked of all processes, where each holds a part
            if folder:
                about = description(cfg, classes)
                folder.save_best(lambda place: weights.save(place, learner.best, cfg.model.name, about, state))
        if folder and found:
            folder.record("val", step, epoch=loader.epoch, **found)

    stop, clock = Stop(alone=world.size == 1), Clock(cfg.run.save_minutes)
    with stop, profiled(cfg.run.profile, folder and folder.path / "profile", say) as profiler_step:
        if resumed and step and not loader.step and not world.gather(validated(folder, step))[0]:
            validate()  # the run was stopped between the end of the epoch and its validation
        meter = Meter(device)
        for epoch in range(loader.epoch, o.epochs):
            meter.restart()
            for batch in meter.waiting(progress(loader, f"epoch {epoch + 1}/{o.epochs}", world)):
                # --- the training step ----------------------------------------------------------------------------
                torch.manual_seed(torch_seed(cfg.run.seed, epoch, loader.step, world.rank))  # dropout
                last = loader.step % accumulate == 0
                batch = mix(batch) if mix else batch
                with synchronised(learner.model, last), autocast(device, dtype):
                    out = task(learner.model, batch)
                    learner.scaler.scale(out["loss"] / accumulate).backward()
                norm = None
                if last:
                    at = epoch * epoch_steps + loader.step // accumulate - 1
                    rate = set_rates(learner.optimizer, o, at, epoch_steps, peak)
                    learner.scaler.unscale_(learner.optimizer)
                    norm = whole(clip_gradients(network.parameters(), o.clip_grad, o.clip == "each"))
                    learner.update(norm)
                    step += 1
                # --------------------------------------------------------------------------------------------------
                meter.add(out, batch, norm)
                if not last:
                    continue
                profiler_step()
                due = meter.steps == cfg.run.log_every or loader.step == len(loader)
                if due:
                    row = {"lr": rate, **meter.read(world.size)}
                    loader.share_faults()
                    if folder:
                        folder.record("train", step, epoch=epoch + 1, **row)
                    say(f"epoch {epoch + 1}  step {step}/{total_steps}  " + log_line(row))
                    if row["bad_in_a_row"] > cfg.run.max_bad_steps:
                        raise ValueError(
                            f"the loss was not finite for {row['bad_in_a_row']:.0f} steps in a row "
                            f"(run.max_bad_steps={cfg.run.max_bad_steps}); lower optim.lr"
                        )
                if due or world.size == 1 or meter.steps % meter.every == 0:  # torchrun kills after 30 s
                    if stop.agreed(world.gather):
                        break
                    if world.gather(clock.due())[0]:
                        save()
            save()
            if stop.signal:
                break
            shown = cfg.task.show_epochs if isinstance(task, MaskFeat) else max(1, o.epochs // 5)
            if folder and (epoch + 1 == o.epochs or epoch % shown == 0):
                pictures(folder, cfg, network, batch, out, classes, step)
            with stop.at_once():
                validate()
            if folder:
                folder.draw_curves()
    return finish(folder, loader, stop, step, world)


def with_share(cfg: loading.Config, share: float) -> loading.Config:
    """The configuration with data.pyav_share as a number that a resumed run keeps."""
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, pyav_share=share))


def description(cfg: loading.Config, classes: Sequence[str]) -> dict:
    """What somebody needs beside the weights to use them: class names and how the input is made."""
    return {
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "input": {"frames": cfg.data.frames, "stride": cfg.data.stride, "size": cfg.data.size,
                  "mean": list(cfg.data.mean), "std": list(cfg.data.std)},
    }  # fmt: skip


def restore(
    found: tuple[Path, dict], learner: Learner, loader: VideoLoader, cfg: loading.Config, folder: RunFolder | None
) -> int:
    """Go on from a checkpoint; returns how many steps were made."""
    path, state = found
    try:
        if missing := {"loader", "step", "config"} - state.keys():
            raise ValueError(f"not the checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
        if (other := loading.load_text(state["config"]).optim.name) != cfg.optim.name:
            raise ValueError(f"it is of optim.name={other}, not {cfg.optim.name}; go on with that, or run.resume=no")
        learner.load(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    loader.load_state_dict(state["loader"])
    if folder:
        if path == folder.path / PREVIOUS:  # and not the unreadable one becomes the next that is kept
            (folder.path / LAST).unlink(missing_ok=True)
        folder.say(f"resumed from {path}: epoch {loader.epoch}, step {state['step']}")
        for line in loading.changes(loading.load_text(state["config"]), cfg):
            folder.say(f"  changed since: {line}")
        folder.forget_after(state["step"])
    return state["step"]


def pictures(
    folder: RunFolder, cfg: loading.Config, network: nn.Module, batch: Batch, out: dict[str, Tensor],
    classes: Sequence[str], step: int,
) -> None:  # fmt: skip
    """clips.png: the last batch, and what the network made of it; attention.png: what it looked at."""
    mean, std = cfg.data.mean, cfg.data.std
    if "prediction" in out:
        folder.show("clips", draw_hog(batch, out, mean, std), step)
        return
    pairs = zip(batch.classes.tolist(), out["logits"].argmax(-1).tolist(), strict=True)
    titles = [f"{classes[right]}, predicted {classes[guess]}" for right, guess in pairs][:6]
    folder.show("clips", draw_strips(pixels(batch.video[:6], mean, std), titles), step)
    if not is_sharded(network):  # else all processes would have to look
        folder.show("attention", draw_attention(network, batch.video[:3], titles[:3], mean, std), step)


def finish(folder: RunFolder | None, loader: VideoLoader, stop: Stop, step: int, world: World) -> int:
    """The last lines; returns the exit status."""
    status = 128 + stop.signal if stop.signal else 0
    if folder:
        if stop.signal:
            folder.say(f"stopped by {stop.signal.name} at step {step}; the same command goes on from the checkpoint")
        else:
            folder.say(summary(read_metrics(folder.path)))
            for name, what in (("best", "network: model.safetensors, config.json"), ("curves.png", "loss and accuracy"),
                               ("clips.png", "clips and predictions; attention.png"), ("metrics.jsonl", "every figure"),
                               ("tb", f"TensorBoard: tensorboard --logdir {folder.path}")):  # fmt: skip
                folder.say(f"  {folder.path / name}  {what}")
        if loader.bad:
            folder.say(f"{len(loader.bad)} videos could not be read and were replaced, see bad_videos.csv")
        if folder.trouble:
            folder.say(f"not all of it could be written: {', '.join(sorted(folder.trouble))}")
            status = status or 1
        folder.close()
    if world.size > 1:
        torch.distributed.destroy_process_group()
    return status


def validated(folder: RunFolder | None, step: int) -> bool:
    return folder is None or any(r["kind"] == "val" and r["step"] == step for r in read_metrics(folder.path))


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status: 0 done, 2 a mistake in the configuration or the data, 128 + n a signal."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nKeys:\n{loading.help_text()}")
        return 0 if arguments else 2
    try:
        recipe = arguments[0] if "=" not in arguments[0] else None
        return train(loading.load(recipe, arguments[1:] if recipe else arguments))
    except (ValueError, Unreadable) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        print(f"train.py: out of memory: {str(error).splitlines()[0]}\n{LESS_MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted before the first step", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
