"""Score every video of a list once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from configs import loading
from evaluation.partial import Kept
from evaluation.scores import Scores
from pipelines.loader import VideoLoader
from training.figures import draw_hog
from training.setup import build_task
from training.tasks import MaskFeat, mean_loss
from utils.device import autocast
from utils.distributed import World
from utils.timer import Clock


@torch.inference_mode()
def evaluate(
    network: nn.Module, loader: VideoLoader, world: World, dtype: torch.dtype = torch.float32,
    average: str = "probability", kept: Kept | None = None,
) -> Scores:  # fmt: skip
    """Score every video of a val or test loader once, on any number of ranks: mean probability over its views, or what
    their mean logits give. With `kept` the scores are kept every minute and when interrupted, and gone on with."""
    training = network.training
    network.eval()
    n, device, clips = len(loader.source.clips), loader.device, loader.source.views.clips
    count = torch.arange(1, clips + 1, device=device)[:, None]
    # Row n takes what must not be scored; adding to tables on the device keeps the host out of the loop.
    state = kept.load() if kept else {}
    tables: dict[str, Tensor] = {name: table.to(device) for name, table in state.get("tables", {}).items()}
    if state:
        loader.load_state_dict(state["loader"])
    clock, done = Clock(1), loader.state_dict()  # done: the loader is a batch ahead while one is scored

    def keep() -> None:
        if kept and tables:
            held = {name: table.cpu() for name, table in tables.items()}
            kept.save({"tables": held, "loader": done})

    try:
        for batch in progress(loader, "eval", world):
            video = batch.video if batch.video.ndim == 6 else batch.video[:, None]
            with autocast(device, dtype):
                logits = network(rearrange(video, "B V C T H W -> (B V) C T H W")).float()
            views = F.softmax(logits, dim=-1) if average == "probability" else logits
            of_clips = reduce(views, "(B L crops) K -> B L K", "mean", B=len(video), L=clips)
            after = of_clips.cumsum(1) / count
            best = after.topk(min(5, after.shape[-1])).indices == batch.label[:, None, None]
            found = {
                "probability": after[:, -1] if average == "probability" else F.softmax(after[:, -1], dim=-1),
                "hits": torch.stack([best[..., 0], best.any(-1)], dim=-1).float(),
                "scored": torch.ones(len(video), device=device),
            }
            row = torch.where(batch.sample < 0, n, batch.sample)
            for name, values in found.items():
                if name not in tables:
                    tables[name] = torch.zeros(n + 1, *values.shape[1:], device=device)
                tables[name].index_copy_(0, row, values)
            done = loader.state_dict()
            if clock.due():
                keep()
    except BaseException:
        keep()
        raise
    network.train(training)
    loader.release_memory()
    for table in tables.values():
        if world.size > 1:
            torch.distributed.all_reduce(table)
    failed = {row: why for part in world.gather(loader.bad) for row, why in part.items()}
    label = torch.tensor([clip.label for clip in loader.source.clips])
    padded = len(loader) * loader.source.batch * world.size - n
    host = {name: table[:-1].cpu() for name, table in tables.items()}
    return Scores(host["probability"], label, host["scored"] > 0, failed, padded, host["hits"] > 0)


def progress(loader: VideoLoader, text: str, world: World) -> tqdm:
    """A bar on the first process's terminal."""
    hidden = not (world.is_first and sys.stderr.isatty())
    return tqdm(loader, desc=text, unit="step", initial=loader.step, total=len(loader), leave=False, disable=hidden)


def evaluate_pretraining(
    cfg: loading.Config, network: nn.Module, loader: VideoLoader, world: World, folder: Path, dtype: torch.dtype
) -> str:
    """predictions.png and summary.json in `folder`; returns the lines to print."""
    task = build_task(cfg, network)
    assert isinstance(task, MaskFeat)
    loss, baseline, (batch, out) = mean_loss(network, task, loader, loader.device, dtype)
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
