"""Train a video network.

    python train.py configs/demo.yaml                              a recipe
    python train.py configs/demo.yaml optim.lr=1e-3 data.batch=8   the same with other values
    python train.py --help                                         every key, its default and meaning
    torchrun --standalone --nproc-per-node 8 train.py configs/X.yaml

The same command again continues where the run stopped. Ctrl-C and SIGTERM save a checkpoint first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from configs import schema
from configs.runs import RunFolder, draw_curves, find_checkpoint, load_checkpoint, read_metrics
from configs.steps import Meter, Stop, log_line
from eval import autocast, choose_device, choose_dtype, draw_hog, evaluate, pretraining_loss
from networks import weights
from networks.configured import build_network, build_task, freeze, initialise
from networks.optim import build_optimizer, cosine_lr
from networks.tasks import MaskFeat
from pipelines.lists import class_names
from pipelines.loader import Batch, VideoLoader, build_loader
from pipelines.mixing import Mixing
from pipelines.show import draw_strips
from pipelines.source import Unreadable
from pipelines.world import World


def train(cfg: schema.Config) -> int:
    """Train as configured, from the last checkpoint if there is one; returns the exit status (not 0 if stopped)."""
    world = World.from_env()
    device = choose_device(cfg.run.device, world)
    dtype = choose_dtype(cfg.run.amp, device)
    torch.set_num_threads(cfg.run.threads or max(1, len(os.sched_getaffinity(0)) - 1))
    if world.size > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    classes = class_names(cfg.data.train, cfg.data.classes)
    half = dtype is not torch.float32
    loader = build_loader(cfg, "train", classes, world, device, half)
    val_loader = build_loader(cfg, "val", classes, world, device, half) if cfg.data.val else None

    checkpoint = find_checkpoint(cfg)
    torch.manual_seed(cfg.run.seed)
    network = build_network(cfg, len(classes))
    if cfg.model.freeze:
        freeze(network)
    report = initialise(network, cfg, classes) if cfg.model.init and not checkpoint else ""
    network.to(device)
    compiled = cfg.run.compile == "yes" or (cfg.run.compile == "auto" and device.type == "cuda")
    if compiled:
        network.compile()
    model = network if world.size == 1 else DistributedDataParallel(network, gradient_as_bucket_view=True)
    task = build_task(cfg, network, compiled)
    mix = Mixing(len(classes), cfg.data.mixup, cfg.data.cutmix, cfg.data.erase)
    o = cfg.optim
    optimizer = build_optimizer(network, o.name, o.lr, o.weight_decay, o.betas, fused=True, layer_decay=o.layer_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    torch.manual_seed(cfg.run.seed + 1 + world.rank)  # dropout differs between ranks, the weights do not

    folder = RunFolder(cfg) if world.is_first else None
    say = folder.say if folder else lambda line: None
    step = 0
    if checkpoint:
        state = load_checkpoint(checkpoint)
        try:
            restore(state, network, optimizer, scaler, loader)
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from None
        step = state["step"]
        say(f"resumed from {checkpoint}: epoch {loader.epoch}, step {step}")
        for line in schema.changes(schema.load_text(state["config"]), cfg):
            say(f"  changed since: {line}")
        if folder:
            folder.forget_after(step)
    elif folder:
        folder.start_over()
        if report:
            say(report)

    total_steps, warmup_steps = o.epochs * len(loader), round(o.warmup_epochs * len(loader))
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    say(f"{cfg.model.name}: {millions:.2f} M parameters; {device}, {str(dtype).split('.')[1]}; "
        f"{len(loader)} steps an epoch; run folder {folder.path if folder else ''}")  # fmt: skip

    def save() -> None:
        if folder:
            folder.save_last(snapshot(cfg, network, optimizer, scaler, loader, step))
            folder.write_bad_videos((loader.source.clips[row].path, why) for row, why in sorted(loader.bad.items()))

    def validate() -> None:
        if val_loader and isinstance(task, MaskFeat):
            loss, baseline, _ = pretraining_loss(network, task, val_loader, world, dtype)
            say(f"epoch {loader.epoch}  val: loss {loss:.4f}  mean HOG {baseline:.4f}")
            before = [r["loss"] for r in read_metrics(folder.path) if r["kind"] == "val"] if folder else []
            if folder:
                folder.record("val", step, epoch=loader.epoch, loss=loss, baseline=baseline)
            if loss > min(before, default=loss):
                return
        elif val_loader:
            scores = evaluate(network, val_loader, world, dtype)
            best_before = (
                max((r["top1"] for r in read_metrics(folder.path) if r["kind"] == "val"), default=-1) if folder else 0
            )
            say(f"epoch {loader.epoch}  val: top-1 {100 * scores.topk(1):.2f} %  top-5 {100 * scores.topk(5):.2f} %  "
                f"loss {scores.loss:.4f}  {scores.coverage()}")  # fmt: skip
            if folder:
                folder.record(
                    "val", step, epoch=loader.epoch, loss=scores.loss, top1=scores.topk(1), top5=scores.topk(5)
                )
            if scores.topk(1) < best_before:
                return
        if folder:
            weights.save(folder.path / "best", network, cfg.model.name, description(cfg, classes))

    stop = Stop()
    with stop:
        if checkpoint and step and not loader.step and not world.gather(validated(folder, step))[0]:
            validate()  # the run was stopped between the end of the epoch and its validation
        for epoch in range(loader.epoch, o.epochs):
            meter = Meter(device)
            for batch in meter.waiting(progress(loader, f"epoch {epoch + 1}/{o.epochs}", world)):
                # --- the training step ----------------------------------------------------------------------------
                rate = cosine_lr(step, total_steps, warmup_steps, o.lr, o.min_lr)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                batch = mix(batch) if mix else batch
                with autocast(device, dtype):
                    out = task(model, batch)
                scaler.scale(out["loss"]).backward()
                scaler.unscale_(optimizer)
                norm = clip_grad_norm_(network.parameters(), o.clip_grad or float("inf"))
                if not scaler.is_enabled():  # the fused step leaves everything as it is where found_inf is 1
                    optimizer.found_inf = (~norm.isfinite()).float()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                step += 1
                # --------------------------------------------------------------------------------------------------
                meter.add(out, batch, norm)
                due = meter.steps == cfg.run.log_every or loader.step == len(loader)
                if due:
                    row = {"lr": rate, **meter.read()}
                    if folder:
                        folder.record("train", step, epoch=epoch + 1, **row)
                    say(f"epoch {epoch + 1}  step {step}/{total_steps}  " + log_line(row))
                    if row["bad_in_a_row"] > cfg.run.max_bad_steps:
                        raise ValueError(
                            f"the loss was not finite for {row['bad_in_a_row']:.0f} steps in a row "
                            f"(run.max_bad_steps={cfg.run.max_bad_steps}); lower optim.lr"
                        )
                if stop.agreed(world.gather, due or world.size == 1):
                    break
            save()
            if stop.signal:
                break
            if folder and isinstance(task, MaskFeat):
                if epoch + 1 == o.epochs or epoch % cfg.task.show_epochs == 0:
                    show(folder, "clips", draw_hog(batch, out, cfg.data.mean, cfg.data.std), step)
            elif folder and (epoch + 1 == o.epochs or epoch % max(1, o.epochs // 5) == 0):
                show(folder, "clips", draw_guesses(cfg, batch, out["logits"], classes), step)
            with stop.at_once():
                validate()
            if folder:
                draw_curves(folder.path)
    if loader.bad:
        say(f"{len(loader.bad)} videos could not be read and were replaced, see bad_videos.csv")
    if stop.signal:
        say(f"stopped by {stop.signal.name} at step {step}; the same command continues from the last checkpoint")
    elif folder:
        for name, what in (("best", "network: model.safetensors, config.json"), ("curves.png", "loss and accuracy"),
                           ("clips.png", "training clips and what was predicted"), ("metrics.jsonl", "every figure"),
                           ("tb", "TensorBoard: tensorboard --logdir " + str(folder.path))):  # fmt: skip
            say(f"  {folder.path / name}  {what}")
    if folder:
        folder.close()
    if world.size > 1:
        torch.distributed.destroy_process_group()
    return 128 + stop.signal if stop.signal else 0


def description(cfg: schema.Config, classes: Sequence[str]) -> dict:
    """What somebody needs beside the weights to use them: class names and how the input is made."""
    return {
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "input": {"frames": cfg.data.frames, "stride": cfg.data.stride, "size": cfg.data.size,
                  "mean": list(cfg.data.mean), "std": list(cfg.data.std)},
    }  # fmt: skip


def snapshot(
    cfg: schema.Config,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: VideoLoader,
    step: int,
) -> dict:
    """All that the rest of the run depends on."""
    return {
        "network": network.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
        "loader": loader.state_dict(), "bad": dict(loader.bad), "step": step, "config": schema.dump(cfg),
        "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }  # fmt: skip


def restore(
    state: dict, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loader: VideoLoader
) -> None:
    """Undo snapshot(). Raises ValueError if the checkpoint is of another network or no checkpoint of a run at all."""
    missing = {"network", "optimizer", "scaler", "loader", "bad", "rng", "cuda_rng", "step", "config"} - state.keys()
    if missing:
        raise ValueError(f"not the checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
    weights.load_state(network, state["network"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    loader.load_state_dict(state["loader"])
    loader.bad.update(state["bad"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] and len(state["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda_rng"])


def validated(folder: RunFolder | None, step: int) -> bool:
    return folder is None or any(r["kind"] == "val" and r["step"] == step for r in read_metrics(folder.path))


def show(folder: RunFolder, name: str, figure: Figure, step: int) -> None:
    """NAME.png in the run folder, and TensorBoard."""
    figure.savefig(folder.path / f"{name}.png", dpi=90)
    folder.board.add_figure(name, figure, step)


def draw_guesses(cfg: schema.Config, batch: Batch, logits: Tensor, classes: Sequence[str]) -> Figure:
    """Training clips as the network saw them, with label and prediction."""
    guess = logits.argmax(-1).tolist()
    titles = [
        f"{classes[right]}, predicted {classes[g]}" for right, g in zip(batch.classes.tolist(), guess, strict=True)
    ]
    return draw_strips(batch.video[:6], titles[:6], cfg.data.mean, cfg.data.std)


def progress(loader: VideoLoader, text: str, world: World) -> tqdm:
    return tqdm(
        loader,
        desc=text,
        unit="step",
        initial=loader.step,
        total=len(loader),
        leave=False,
        disable=not (world.is_first and sys.stderr.isatty()),
    )


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status: 0 done, 2 a mistake in the configuration or the data, 128 + n a signal."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nKeys:\n{schema.help_text()}")
        return 0 if arguments else 2
    try:
        recipe = arguments[0] if "=" not in arguments[0] else None
        return train(schema.load(recipe, arguments[1:] if recipe else arguments))
    except (ValueError, Unreadable) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted before the first step", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
