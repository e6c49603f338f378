"""Evaluate a run: every video scored exactly once, from clips x crops views of one decode.

    python eval.py runs/NAME                                  the multi-view test of its configuration
    python eval.py runs/NAME eval.clips=10 eval.crops=3       other views
    python eval.py runs/NAME data.test=other/list.txt
    python eval.py configs/NAME.yaml model.init=FILE          a recipe with the weights of any checkpoint that we read,
                                                              in runs/NAME_of_FILE

Writes RUN/eval/<clips>x<crops>/{summary.json, predictions.csv, per_class.csv}; of a MaskFeat pre-training the loss and
a picture of what it predicts, in RUN/eval/pretraining/. A video that cannot be read counts as
wrong and is named; it is never replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from configs import schema
from configs.report import Scores, write_report
from configs.runs import run_path
from networks import weights
from networks.attention import attended
from networks.configured import build_network, build_task, initialise
from networks.hog import draw_cells
from networks.tasks import MaskFeat
from pipelines.listfiles import is_there
from pipelines.lists import class_names
from pipelines.loader import Batch, VideoLoader, build_loader
from pipelines.show import draw_rows, draw_strips, pixels, warmed
from pipelines.source import Unreadable
from pipelines.world import World


@torch.inference_mode()
def evaluate(network: nn.Module, loader: VideoLoader, world: World, dtype: torch.dtype = torch.float32) -> Scores:
    """Score every video of a val or test loader once, on any number of ranks: mean probability over its views."""
    training = network.training
    network.eval()
    clips, device = loader.source.clips, loader.device
    # Row n takes what must not be scored; adding to a table on the device keeps the host out of the loop.
    table: Tensor | None = None
    count = torch.zeros(len(clips) + 1, device=device)
    for batch in tqdm(
        loader, desc="eval", unit="step", leave=False, disable=not (world.is_first and sys.stderr.isatty())
    ):
        video = batch.video if batch.video.ndim == 6 else batch.video[:, None]
        views = video.shape[1]
        with autocast(device, dtype):
            logits = network(rearrange(video, "B V C T H W -> (B V) C T H W"))
        probability = reduce(F.softmax(logits.float(), dim=-1), "(B V) K -> B K", "mean", V=views)
        if table is None:
            table = torch.zeros(len(clips) + 1, probability.shape[1], device=device)
        row = torch.where(batch.sample < 0, len(clips), batch.sample)
        table.index_copy_(0, row, probability)
        count.index_fill_(0, row, 1)
    network.train(training)
    assert table is not None
    if world.size > 1:
        torch.distributed.all_reduce(table)
        torch.distributed.all_reduce(count)
    failed = {row: why for part in world.gather(loader.bad) for row, why in part.items()}
    label = torch.tensor([clip.label for clip in clips])
    padded = len(loader) * loader.source.batch * world.size - len(clips)
    return Scores(table[:-1].cpu(), label, count[:-1].cpu() > 0, failed, padded)


@torch.inference_mode()
def pretraining_loss(
    network: nn.Module, task: MaskFeat, loader: VideoLoader, world: World, dtype: torch.dtype = torch.float32
) -> tuple[float, float, tuple[Batch, dict[str, Tensor]]]:
    """Mean loss over the videos of a val loader and that of predicting the mean HOG of each batch, masks being the same
    each time; and the first batch with what the task made of it."""
    training = network.training
    network.eval()
    sums = torch.zeros(3, device=loader.device)
    first = None
    for batch in loader:
        with autocast(loader.device, dtype):
            out = task(network, batch)
        first = first or (batch, out)
        scored = (batch.sample >= 0).float()
        sums += torch.stack([(out["losses"] * scored).sum(), (out["baselines"] * scored).sum(), scored.sum()])
    network.train(training)
    if world.size > 1:
        torch.distributed.all_reduce(sums)
    loss, baseline, count = sums.tolist()
    assert first is not None
    return loss / max(count, 1), baseline / max(count, 1), first


def draw_hog(
    batch: Batch, out: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], clips: int = 6
) -> Figure:
    """MaskFeat at work on some clips, on that frame of each of which most is hidden: masked input, predicted HOG,
    original HOG, the frame."""
    video = batch.video[:, 0] if batch.video.ndim == 6 else batch.video
    frames = pixels(video[:clips], mean, std)
    numbers, (_, t, f) = out["target"].shape[-1], out["frames"].shape
    hidden_cells = reduce(out["mask"].float(), "B t h w -> B t 1", "sum") * out["frames"]
    side = round((numbers // 27) ** 0.5)  # HOG cells along a token

    def cells(tokens: Tensor) -> np.ndarray:
        grid = rearrange(tokens.float(), "h w (C o a b) -> C o (h a) (w b)", C=3, a=side, b=side)
        return draw_cells(grid.mean(0)).numpy()

    rows = []
    for clip in range(len(frames)):
        token_frame, part = divmod(int(hidden_cells[clip].argmax()), f)
        frame = frames[clip, token_frame * (frames.shape[1] // t) + part]
        hidden = out["mask"][clip, token_frame].cpu().numpy()
        grey = np.kron(hidden, np.ones((frame.shape[0] // hidden.shape[0], frame.shape[1] // hidden.shape[1])))
        masked = np.where(grey[..., None] > 0, 127, frame).astype(np.uint8)
        rows.append([masked, *(cells(out[key][clip, token_frame, part]) for key in ("prediction", "target")), frame])
    return draw_rows(rows, ["masked input", "predicted HOG", "original HOG", "frame"])


def draw_attention(
    network: nn.Module, video: Tensor, titles: Sequence[str], mean: Sequence[float], std: Sequence[float],
    rollout: bool = False,
) -> Figure:  # fmt: skip
    """Clips (B, C, T, H, W), and below each what the network looks at in it."""
    frames = pixels(video, mean, std)
    training = network.training
    heat = attended(network.eval(), video.float(), rollout).cpu().numpy()
    network.train(training)
    rows = np.stack([frames, warmed(frames, heat)], axis=1).reshape(-1, *frames.shape[1:])
    return draw_strips(rows, [line for title in titles for line in (title, "attention")])


def evaluate_pretraining(
    cfg: schema.Config, network: nn.Module, loader: VideoLoader, world: World, folder: Path, dtype: torch.dtype
) -> str:
    """predictions.png and summary.json in `folder`; returns the lines to print."""
    task = build_task(cfg, network)
    assert isinstance(task, MaskFeat)
    loss, baseline, (batch, out) = pretraining_loss(network, task, loader, world, dtype)
    if world.is_first:
        figure = draw_hog(batch, out, cfg.data.mean, cfg.data.std)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "predictions.png", dpi=90)
        with SummaryWriter(str(folder.parent.parent / "tb")) as board:
            board.add_figure("predictions", figure)
        text = json.dumps({"videos": len(loader.source.clips), "loss": loss, "mean_hog": baseline}, indent=1)
        (folder / "summary.json").write_text(text + "\n")
    written = f"written: {folder}{os.sep}{{predictions.png,summary.json}}"
    return f"loss {loss:.4f}, predicting the mean HOG {baseline:.4f}\n{written}"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision in `dtype`; float32 means none."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def choose_device(wanted: str, world: World) -> torch.device:
    """`auto` takes this rank's GPU if there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device=cuda: torch finds no GPU; use run.device=auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)


def choose_dtype(amp: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 without."""
    if amp == "auto":
        amp = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[amp]


def load_run(source: Path, overrides: Sequence[str]) -> tuple[schema.Config, Path, nn.Module, list[str]]:
    """The configuration of a run, its folder, its best network in eval mode and the class names; or those of a recipe,
    with the weights of its model.init."""
    if source.suffix == ".yaml" and source.is_file():
        cfg = schema.load(source, overrides)
        if not cfg.model.init:
            raise ValueError(f"{source}: a recipe has no weights; give model.init=CHECKPOINT, or a run folder")
        lists = [path for path in (cfg.data.train, cfg.data.test, cfg.data.val) if path]
        classes = class_names(next(filter(is_there, lists), cfg.data.train), cfg.data.classes)
        torch.manual_seed(cfg.run.seed)  # for what the checkpoint leaves as initialised
        network = build_network(cfg, len(classes)).eval()
        print(initialise(network, cfg, classes, whole=True))
        place = run_path(cfg)  # not the run's own folder, whose results are of its own weights
        return cfg, place.with_name(f"{place.name}_of_{Path(cfg.model.init).name}"), network, classes
    if not (source / "config.yaml").exists():
        raise ValueError(f"{source}: not a run folder (it has no config.yaml)")
    if not (source / "best").exists():
        raise ValueError(f"{source}: no checkpoint in it yet: best/ is written after the first validation")
    if any(word.removeprefix("--").startswith("data.classes=") for word in overrides):
        raise ValueError("data.classes: a run keeps the classes that it was trained for")
    cfg = schema.load(source / "config.yaml", overrides)
    network, config = weights.load(source / "best")
    names = config["id2label"]
    return cfg, source, network, [names[number] for number in range(len(names))]


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nKeys:\n{schema.help_text()}")
        return 0 if arguments else 2
    try:
        world = World.from_env()
        cfg, folder, network, classes = load_run(Path(arguments[0]), arguments[1:])
        device = choose_device(cfg.run.device, world)
        dtype = choose_dtype(cfg.run.amp, device)
        if world.size > 1:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        split = "val" if cfg.task.name == "maskfeat" else "test"
        loader = build_loader(cfg, split, classes, world, device, half=dtype is not torch.float32)
        network.to(device)
        if cfg.task.name == "maskfeat":
            lines = evaluate_pretraining(cfg, network, loader, world, folder / "eval" / "pretraining", dtype)
        else:
            scores = evaluate(network, loader, world, dtype)
            views = f"{cfg.eval.clips}x{cfg.eval.crops}"
            place = folder / "eval" / views
            if world.is_first:
                lines = write_report(place, scores, loader.source.clips, classes, views)
                lines += f"\nwritten: {place}{os.sep}{{summary.json,predictions.csv,per_class.csv}}"
    except (ValueError, Unreadable) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.py: interrupted", file=sys.stderr)
        return 130
    if world.is_first:
        print(lines)
    if world.size > 1:
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
