"""Score every video of a list exactly once, on any number of ranks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from configs.schema import Config
from evaluation.partial import PartialScores
from evaluation.scores import Scores, has_label
from pipelines.batch_loader import BatchLoader
from pipelines.data.multi_label import LabelSets
from pipelines.feature_loader import FeatureLoader
from training.figures import draw_pretraining
from training.objective import build_task
from training.pretraining_tasks import PretrainingTask, mean_loss
from utils.device import autocast
from utils.distributed import World
from utils.timer import IntervalTimer

# The function that gives the probabilities (B, K) of clips, clips (B, V, C, T, H, W), the seeds of their videos ->
# classes (B, columns).
FurtherTest = Callable[[Callable[[Tensor], Tensor], Tensor, Any], Tensor]


class ScoreTable:
    """Scores by sample index, on the device, so that no value is read back before the end.

    One more row than videos takes what must not be scored.
    """

    def __init__(self, num_videos: int, device: torch.device, tensors: Mapping[str, Tensor] | None = None):
        self.num_videos, self.device = num_videos, device
        self.tensors = {name: tensor.to(device) for name, tensor in (tensors or {}).items()}

    def update(self, sample_index: Tensor, **values: Tensor) -> None:
        """Write the values of a batch; a negative sample_index (B,) marks what must not be scored."""
        row = torch.where(sample_index < 0, self.num_videos, sample_index)
        values["scored"] = torch.ones(len(row), device=self.device)
        for name, value in values.items():
            if name not in self.tensors:
                self.tensors[name] = torch.zeros(self.num_videos + 1, *value.shape[1:], device=self.device)
            self.tensors[name].index_copy_(0, row, value)

    def all_reduce(self, world: World) -> dict[str, Tensor]:
        """Add up the tables of all ranks and return them on the host, without the extra row."""
        for tensor in self.tensors.values():
            if world.size > 1:
                torch.distributed.all_reduce(tensor)
        return {name: tensor[:-1].cpu() for name, tensor in self.tensors.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tables on the host."""
        return {name: tensor.cpu() for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class ViewScorer:
    """Score videos by all their views; `num_clips` of them differ in time.

    A network that pools several clips is given as many at once, evenly spread over those of a video. Raises ValueError
    if num_clips is no multiple of them.
    """

    network: nn.Module
    num_clips: int
    dtype: torch.dtype
    average: str
    multi_label: bool = False  # a sigmoid takes the place of the softmax

    def __post_init__(self) -> None:
        if self.num_clips % self.pooled:
            raise ValueError(
                f"eval.num_clips={self.num_clips}: expected a multiple of {self.pooled}, which the network pools"
            )

    @property
    def pooled(self) -> int:
        """Return how many clips the network is given at once."""
        return getattr(self.network, "num_clips", 1)

    def after_clips(self, video: Tensor) -> Tensor:
        """(B, V, C, T, H, W) -> (B, clips, K): the mean (or maximum) over the first views, of so many clips."""
        clips = rearrange(video, "B (L groups) C T H W -> (B groups) L C T H W", L=self.pooled)
        with autocast(video.device, self.dtype):
            logits = self.network(clips if self.pooled > 1 else clips.squeeze(1)).float()
        views = logits if self.average == "logits" else self.to_probs(logits)
        clips_of_video = self.num_clips // self.pooled
        if self.average == "max":
            return reduce(views, "(B L crops) K -> B L K", "max", B=len(video), L=clips_of_video).cummax(1).values
        means = reduce(views, "(B L crops) K -> B L K", "mean", B=len(video), L=clips_of_video)
        return means.cumsum(1) / torch.arange(1, clips_of_video + 1, device=video.device)[:, None]

    def to_probs(self, logits: Tensor) -> Tensor:
        """(..., K) -> (..., K): probabilities that add up to 1, or of several labels one for each class."""
        return logits.sigmoid() if self.multi_label else F.softmax(logits, dim=-1)

    def probs(self, after_clips: Tensor) -> Tensor:
        """(B, clips, K) -> (B, K): the probabilities after the last clip."""
        return self.to_probs(after_clips[:, -1]) if self.average == "logits" else after_clips[:, -1]

    def __call__(self, video: Tensor) -> Tensor:
        """(B, V, C, T, H, W) -> probabilities (B, K)."""
        return self.probs(self.after_clips(video))


def is_correct(after_clips: Tensor, label: Tensor) -> Tensor:
    """(B, clips, K), label (B,) or (B, K) -> (B, clips, 2) float: whether one is first, and among the first five."""
    best = has_label(after_clips.topk(min(5, after_clips.shape[-1])).indices, label)
    return torch.stack([best[..., 0], best.any(-1)], dim=-1).float()


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    loader: BatchLoader,
    world: World,
    dtype: torch.dtype = torch.float32,
    *,
    average: str = "probs",
    partial: PartialScores | None = None,
    further_tests: Mapping[str, FurtherTest] | None = None,
) -> Scores:
    """Score every video of a validation or test loader once.

    The score is the mean probability over the views of a video, the softmax of their mean logits, or the maximum of
    each class (ViewScorer); with several labels per video a sigmoid takes the place of the softmax. With
    `partial` the scores are saved every minute and when interrupted, and continued from there. `further_tests` score
    the same decoded clips in other ways.
    """
    multi_label, tests = isinstance(loader.targets, LabelSets), further_tests or {}
    scorer = ViewScorer(network, loader.source.views.num_clips, dtype, average, multi_label)
    was_training = network.training
    network.eval()
    state = partial.load() if partial else {}
    table = ScoreTable(len(loader.videos), loader.device, state.get("tables"))
    if state:
        loader.load_state_dict(state["loader"])
    timer, position = IntervalTimer(1), loader.state_dict()  # the loader is a batch ahead while one is scored

    def save() -> None:
        if partial and table.tensors:
            partial.save({"tables": table.state_dict(), "loader": position})

    try:
        for batch in progress(loader, "eval", world):
            video = batch.video if batch.video.ndim == 6 else batch.video[:, None]
            after = scorer.after_clips(video)
            values = {"probs": scorer.probs(after), "correct": is_correct(after, batch.label)}
            for name, test in tests.items():
                values[f"predicted.{name}"] = test(scorer, video, batch.seeds).float()
            table.update(batch.sample_index, **values)
            position = loader.state_dict()
            if timer.due():
                save()
    except BaseException:
        save()
        raise
    network.train(was_training)
    loader.release_memory()
    tables = table.all_reduce(world)
    failed = {index: reason for part in world.gather(loader.bad_videos) for index, reason in part.items()}
    return Scores(
        probs=tables["probs"],
        label=all_labels(loader),
        scored=tables["scored"] > 0,
        failed=failed,
        padded=len(loader) * loader.source.batch_size * world.size - len(loader.videos),
        correct=tables["correct"] > 0,
        pooled_clips=scorer.pooled,
        predicted={name: tables[f"predicted.{name}"].long() for name in tests},
    )


def all_labels(loader: BatchLoader) -> Tensor:
    """Return the labels of all videos of a loader: (n,) int64, or of several per video (n, K) float32."""
    rows = [video.label for video in loader.videos]
    return torch.tensor(rows) if loader.targets is None else torch.from_numpy(loader.targets[rows])


def progress(loader: BatchLoader | FeatureLoader, description: str, world: World) -> tqdm:
    """Wrap a loader in a progress bar on the terminal of the main process."""
    return tqdm(
        loader,
        desc=description,
        unit="batch",
        initial=loader.batch_index,
        total=len(loader),
        leave=False,
        disable=not (world.is_main and sys.stderr.isatty()),
    )


def evaluate_pretraining(
    cfg: Config, network: nn.Module, loader: BatchLoader, world: World, output_dir: Path, dtype: torch.dtype
) -> str:
    """Write the loss and the predictions of a pre-training, summary.json and predictions.png; return the lines to
    print."""
    task = build_task(cfg, network)
    assert isinstance(task, PretrainingTask)
    loss, baseline, (batch, out) = mean_loss(network, task, loader, loader.device, dtype)
    if world.is_main:
        figure = draw_pretraining(task, batch, out, cfg.data.mean, cfg.data.std)
        output_dir.mkdir(parents=True, exist_ok=True)
        figure.savefig(output_dir / "predictions.png", dpi=90)
        with SummaryWriter(str(output_dir.parent.parent / "tb")) as tensorboard:
            tensorboard.add_figure("predictions", figure)
        summary = {
            "videos": len(loader.videos),
            "loss": loss,
            "mean_target_loss": baseline,
            "masks": task.description,
        }
        (output_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    written = f"written: {output_dir}/{{predictions.png,summary.json}}"
    return f"{task.description}\nloss {loss:.4f}, loss of predicting the mean target {baseline:.4f}\n{written}"
