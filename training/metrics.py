"""Sum up training metrics on the device and read them once per log interval, and write them as a line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor


class Labeled(Protocol):
    """The part of a batch that StepMetrics reads."""

    @property
    def label(self) -> Tensor: ...  # (B, ...)


BatchT = TypeVar("BatchT", bound=Labeled)
_PARTS = ("label_loss", "distillation_loss")  # of a loss that is made of two
_SUMS = ("loss", "finite_losses", "correct", "baseline", "grad_norm", "finite_norms", *_PARTS)


class StepMetrics:
    """Sums since the last log line. Tensors stay on the device until compute_and_reset(), the one sync per interval."""

    def __init__(self, device: torch.device):
        self.device = device
        self._zero = torch.zeros((), device=device)
        self._streak = self._longest_streak = self._zero  # consecutive steps with gradients that are not finite
        self.sync_every = 1  # steps in about five seconds, the same on all processes
        self.reset()

    def reset(self) -> None:
        """Begin an interval. The streak of steps that are not finite continues."""
        self._sums = {name: self._zero for name in _SUMS}
        self.num_batches, self.num_steps, self.num_clips, self._data_seconds = 0, 0, 0, 0.0
        self._start = time.perf_counter()
        self._spans: list[tuple[Any, Any]] = []  # begin and end of computing: CUDA events, or seconds

    def timed(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """Yield the batches and time how long each is waited for; computing begins when a batch is there."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self._data_seconds += time.perf_counter() - before
            if batch is None:
                return
            self._begin = self._now()
            yield batch

    def update(self, out: dict[str, Tensor], batch: Labeled) -> None:
        """Count a batch after its backward pass; `out` is what the task returned."""
        self._classifies = "logits" in out
        correct = self._zero
        if self._classifies:
            correct = is_right(out["logits"].argmax(-1), batch.label).sum(-1).mean()  # the mean over probes
        loss = out.get("mean_loss", out["loss"]).detach().float()
        self._parts = [name for name in _PARTS if name in out]
        self._add(loss=loss, finite_losses=loss.isfinite(), correct=correct, baseline=out.get("baseline", self._zero))
        self._add(**{name: out[name] * loss.isfinite() for name in self._parts})
        self.num_batches += 1
        self.num_clips += len(batch.label)
        self._spans.append((self._begin, self._now()))

    def update_step(self, grad_norm: Tensor) -> None:
        """Count an optimizer step after its last batch; `grad_norm` () is the norm of all gradients."""
        finite = grad_norm.isfinite()  # an overflow in fp16 spoils the gradients alone
        self._add(grad_norm=grad_norm.detach().float(), finite_norms=finite)
        self._streak = (self._streak + 1) * ~finite
        self._longest_streak = torch.maximum(self._streak, self._longest_streak)
        self.num_steps += 1
        self._spans[-1] = (self._spans[-1][0], self._now())  # the step belongs to the computing of its last batch

    def compute_and_reset(self, world_size: int = 1) -> dict[str, float]:
        """Return the metrics of the interval and begin the next one. All processes call it together.

        Means are over what was finite and over all processes, clips_per_s is that of all, time fractions are those of
        this process.
        """
        seconds = torch.tensor(time.perf_counter() - self._start, device=self.device)
        stacked = torch.stack([*self._sums.values(), seconds])
        if world_size > 1:
            torch.distributed.all_reduce(stacked)
        numbers = torch.cat([stacked / world_size, self._longest_streak[None]]).tolist()  # the one sync
        sums = dict(zip((*_SUMS, "seconds", "nonfinite_streak"), numbers, strict=True))
        self.sync_every = max(1, int(5 * self.num_steps / sums["seconds"]))
        row = {
            "loss": _mean(sums["loss"], sums["finite_losses"]),
            **{name: _mean(sums[name], sums["finite_losses"]) for name in self._parts},
            "grad_norm": _mean(sums["grad_norm"], sums["finite_norms"]),
            **self._score(sums),
            **self._times(world_size),
            "skipped_steps": self.num_steps - sums["finite_norms"],
            "nonfinite_streak": sums["nonfinite_streak"],
            "clips": world_size * self.num_clips,
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            row["gpu_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
            row["gpu_used_gib"] = (total - free) / 2**30  # with DALI's pools, NVDEC's sessions and other processes
        self.reset()
        return row

    def _add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value.float().nan_to_num(0, 0, 0)

    def _score(self, sums: dict[str, float]) -> dict[str, float]:
        if self._classifies:
            return {"top1": sums["correct"] / self.num_clips}
        return {"baseline": sums["baseline"] / self.num_batches}

    def _times(self, world_size: int) -> dict[str, float]:
        on_gpu = self.device.type == "cuda"
        compute = sum(a.elapsed_time(b) / 1000 if on_gpu else b - a for a, b in self._spans)
        wall = time.perf_counter() - self._start
        # On a GPU the host may wait for data while the device still computes: only the rest of that time is lost.
        data = min(self._data_seconds, max(wall - compute, 0)) if on_gpu else self._data_seconds
        return {
            "clips_per_s": world_size * self.num_clips / wall,
            "data_time_frac": data / wall,
            "compute_frac": compute / wall,
            "other_frac": max(0.0, 1 - (data + compute) / wall),
            "seconds": wall,
        }

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def is_right(predicted: Tensor, label: Tensor) -> Tensor:
    """Tell whether classes ([P,] B) are right, as 0 and 1: label (B,), or targets (B, K) in which they are the largest.

    That is one of several labels, or of a mixed clip the one with the larger share.
    """
    if label.ndim == 1:
        return (predicted == label).float()
    shares = label.expand(*predicted.shape, -1).gather(-1, predicted[..., None])[..., 0]
    return ((shares > 0) & (shares == label.amax(-1))).float()


def _mean(total: float, count: float) -> float:
    return total / count if count else float("nan")


def log_line(row: dict[str, float], multi_label: bool = False) -> str:
    """Write a training row of metrics.jsonl for people."""
    skipped = f"  {row['skipped_steps']:.0f} steps skipped: gradients not finite" if row["skipped_steps"] else ""
    memory = f"  {row['gpu_gib']:.1f} GiB of torch, {row['gpu_used_gib']:.1f} in use" if "gpu_gib" in row else ""
    right = "hit@1" if multi_label else "top-1"
    score = f"{right} {100 * row['top1']:.1f} %" if "top1" in row else f"mean target {row['baseline']:.4f}"
    parts = ", ".join(f"{name.removesuffix('_loss')} {row[name]:.4f}" for name in _PARTS if name in row)
    made_of = f" ({parts})" if parts else ""
    return (
        f"loss {row['loss']:.4f}{made_of}  {score}  lr {row['lr']:.2e}  "
        f"{row['clips_per_s']:.1f} clips/s (data {100 * row['data_time_frac']:.0f} %, "
        f"compute {100 * row['compute_frac']:.0f} %, other {100 * row['other_frac']:.0f} %){memory}{skipped}"
    )
