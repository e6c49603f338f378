"""Validate all probes of a grid in one pass over the videos."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from evaluation.evaluate import ScoreTable, progress
from networks.probed_encoder import ProbeGrid
from pipelines.batch_loader import BatchLoader
from pipelines.feature_loader import FeatureLoader
from training.probe_grid import ProbeResult
from utils.device import autocast
from utils.distributed import World


@torch.inference_mode()
def evaluate_probes(
    grid: ProbeGrid, loader: BatchLoader | FeatureLoader, world: World, dtype: torch.dtype
) -> tuple[dict[int, ProbeResult], str]:
    """Score every video once with each active probe; also return the coverage as a line.

    The loader yields the clips whose tokens are pooled, of one crop: video (B, L, C, T, H, W). A video that cannot be
    read counts as wrong, and is left out of the loss.
    """
    was_training = grid.training
    grid.eval()
    table = ScoreTable(len(loader.videos), loader.device)
    for batch in progress(loader, "eval", world):
        with autocast(loader.device, dtype):
            logits: Any = grid(batch.video).float()  # (P, B, K)
        best = logits.topk(min(5, logits.shape[-1])).indices == batch.label[:, None]
        losses = [F.cross_entropy(part, batch.label, reduction="none") for part in logits]
        values = torch.stack([best[..., 0].float(), best.any(-1).float(), torch.stack(losses)], dim=-1)
        table.update(batch.sample_index, values=values.transpose(0, 1))
    grid.train(was_training)
    loader.release_memory()
    tables = table.all_reduce(world)
    scored = tables["scored"].double()
    sums = (tables["values"].double() * scored[:, None, None]).sum(0)  # (P, 3)
    n, count = len(scored), int(scored.sum())
    results = {
        index: ProbeResult(top1 / n, top5 / n, loss / max(count, 1))
        for index, (top1, top5, loss) in zip(grid.active, sums.tolist(), strict=True)
    }
    return results, f"{count} of {n} videos scored"
