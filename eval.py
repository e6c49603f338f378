"""Evaluate a run: every video scored exactly once, from clips x crops views of one decode.

    python eval.py runs/NAME                                  the multi-view test of its configuration
    python eval.py runs/NAME eval.clips=10 eval.crops=3       other views
    python eval.py runs/NAME data.test=other/list.txt

Writes RUN/eval/<clips>x<crops>/{summary.json, predictions.csv, per_class.csv}. A video that cannot be read counts as
wrong and is named; it is never replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from tqdm import tqdm

from configs import schema
from configs.runs import write_csv
from networks import weights
from pipelines.lists import Clip
from pipelines.loader import VideoLoader, build_loader
from pipelines.source import Unreadable
from pipelines.world import World


@dataclass(frozen=True)
class Scores:
    """Class probabilities of each video, (n, classes) float32 on the host; `scored` (n,) bool: False if it failed."""

    probability: Tensor
    label: Tensor  # (n,) int64
    scored: Tensor
    failed: dict[int, str]  # row of the list -> reason
    padded: int  # places of the last batch that no video was left for

    def topk(self, k: int) -> float:
        """Share of all videos, unreadable ones included as wrong, whose label is among the k best."""
        best = self.probability.topk(min(k, self.probability.shape[1])).indices
        hit = (best == self.label[:, None]).any(1) & self.scored
        return hit.double().mean().item()

    @property
    def loss(self) -> float:
        """Mean negative log probability of the label over the videos that were scored."""
        chosen = self.probability[self.scored, self.label[self.scored]]
        return -chosen.clamp_min(1e-12).log().mean().item()

    def coverage(self) -> str:
        n = len(self.label)
        return (
            f"coverage: {int(self.scored.sum())} of {n} videos scored, {len(self.failed)} failed, {self.padded} padded"
        )


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


def write_report(folder: Path, scores: Scores, clips: Sequence[Clip], classes: Sequence[str], views: str) -> str:
    """summary.json, predictions.csv and per_class.csv in `folder`; returns the lines to print."""
    folder.mkdir(parents=True, exist_ok=True)
    best = scores.probability.topk(min(5, len(classes)))
    rows = []
    for row, clip in enumerate(clips):
        guesses = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
        named = [text for number, share in guesses for text in (classes[number], f"{share:.4f}")]
        state = "scored" if scores.scored[row] else f"failed: {scores.failed.get(row, 'unknown')}"
        rows.append([clip.path, classes[clip.label], state, *(named if scores.scored[row] else [])])
    guess_columns = [f"{what}{i + 1}" for i in range(best.indices.shape[1]) for what in ("class", "score")]
    write_csv(folder / "predictions.csv", ["video", "label", "state", *guess_columns], rows)

    right = (best.indices[:, 0] == scores.label) & scores.scored
    per_class = []
    for number, name in enumerate(classes):
        of_class = scores.label == number
        if of_class.any():
            hits, total = int(right[of_class].sum()), int(of_class.sum())
            per_class.append([name, total, hits, f"{hits / total:.4f}"])
    write_csv(folder / "per_class.csv", ["class", "videos", "right", "top1"], per_class)

    summary = {
        "views": views, "videos": len(clips), "scored": int(scores.scored.sum()), "failed": len(scores.failed),
        "padded": scores.padded, "top1": scores.topk(1), "top5": scores.topk(5), "loss": scores.loss,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    worst = sorted(per_class, key=lambda entry: float(entry[3]))[:3]
    return "\n".join([
        f"test {views}: top-1 {100 * scores.topk(1):.2f} %  top-5 {100 * scores.topk(5):.2f} %",
        scores.coverage(),
        *(f"  failed: {clips[row].path}: {why}" for row, why in sorted(scores.failed.items())),
        "worst classes: " + ", ".join(f"{name} {hits}/{total}" for name, total, hits, _ in worst),
    ])  # fmt: skip


def load_run(folder: Path, overrides: Sequence[str]) -> tuple[schema.Config, nn.Module, list[str]]:
    """The configuration of a run, its best network in eval mode, and the class names."""
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{folder}: not a run folder (it has no config.yaml)")
    if not (folder / "best").exists():
        raise ValueError(f"{folder}: no checkpoint in it yet: best/ is written after the first validation")
    cfg = schema.load(folder / "config.yaml", overrides)
    network, config = weights.load(folder / "best")
    names = config["id2label"]
    return cfg, network, [names[number] for number in range(len(names))]


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nKeys:\n{schema.help_text()}")
        return 0 if arguments else 2
    try:
        world = World.from_env()
        folder = Path(arguments[0])
        cfg, network, classes = load_run(folder, arguments[1:])
        device = choose_device(cfg.run.device, world)
        dtype = choose_dtype(cfg.run.amp, device)
        if world.size > 1:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        loader = build_loader(cfg, "test", classes, world, device, half=dtype is not torch.float32)
        scores = evaluate(network.to(device), loader, world, dtype)
    except (ValueError, Unreadable) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.py: interrupted", file=sys.stderr)
        return 130
    if world.is_first:
        views = f"{cfg.eval.clips}x{cfg.eval.crops}"
        print(write_report(folder / "eval" / views, scores, loader.source.clips, classes, views))
        print(f"written: {folder / 'eval' / views}{os.sep}{{summary.json,predictions.csv,per_class.csv}}")
    if world.size > 1:
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
