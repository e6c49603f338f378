"""How the steps of a run are timed and counted, and how a signal ends them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor


class Labelled(Protocol):
    @property
    def label(self) -> Tensor: ...  # (B, ...)
    @property
    def classes(self) -> Tensor: ...  # (B,)


BatchT = TypeVar("BatchT", bound=Labelled)


class Meter:
    """Sums over the steps since the last log line; what lies on the device is read there, in read() only."""

    def __init__(self, device: torch.device):
        self.device = device
        self.bad_run = torch.zeros(2, device=device)  # steps in a row that were not finite: now, and the longest run
        self.zero = torch.zeros((), device=device)
        self.every = 1  # steps of about five seconds, the same on all processes
        self.restart()

    def restart(self) -> None:
        """Begin an interval; what was not finite in a row counts on."""
        # loss and how often finite, hits, baseline; gradient norm and how often finite; seconds
        self.sums = torch.zeros(7, device=self.device)
        self.batches, self.steps, self.clips, self.data = 0, 0, 0, 0.0
        self.start = time.perf_counter()
        self.spans: list[tuple[Any, Any]] = []  # begin and end of each step: CUDA events, or seconds

    def waiting(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """The batches, timing how long each is waited for; computing begins when one is there."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self.data += time.perf_counter() - before
            if batch is None:
                return
            self.begin = self._now()
            yield batch

    def add(self, out: dict[str, Tensor], batch: Labelled, norm: Tensor | None) -> None:
        """Count a batch, whose computing ends here, and the step if it has one: `norm` () of the gradients."""
        self.classifies = "logits" in out
        hits = (out["logits"].argmax(-1) == batch.classes).sum() if self.classifies else self.zero
        loss = out["loss"].detach().float()
        values = [loss, loss.isfinite().float(), hits.float(), out.get("baseline", self.zero), *[self.zero] * 3]
        if norm is not None:
            good = norm.isfinite()  # an overflow in fp16 spoils the gradients alone
            values[4:6] = [norm.detach().float(), good.float()]
            run = (self.bad_run[0] + 1) * ~good
            self.bad_run = torch.stack([run, torch.maximum(run, self.bad_run[1])])
            self.steps += 1
        self.sums += torch.stack(values).nan_to_num(0, 0, 0)
        self.batches += 1
        self.clips += len(batch.label)
        self.spans.append((self.begin, self._now()))

    def read(self, processes: int = 1) -> dict[str, float]:
        """Means over the interval (of what was finite) and all processes, clips/s of all, shares of this one's time;
        then starts anew. For all processes to ask together."""
        self.sums[6] = time.perf_counter() - self.start
        if processes > 1:
            torch.distributed.all_reduce(self.sums)
        sums = torch.cat([self.sums / processes, self.bad_run[1:]]).tolist()  # the interval's one sync
        loss, finite, hits, baseline, norm, good, seconds, bad_run = sums
        self.every = max(1, int(5 * self.steps / seconds))
        score = {"top1": hits / self.clips} if self.classifies else {"baseline": baseline / self.batches}
        on_gpu = self.device.type == "cuda"
        compute = sum(a.elapsed_time(b) / 1000 if on_gpu else b - a for a, b in self.spans)
        wall = time.perf_counter() - self.start
        # On a GPU the host may wait for data while the device still computes: only the rest of it is lost.
        data = min(self.data, max(wall - compute, 0)) if on_gpu else self.data
        row = {
            "loss": loss / finite if finite else float("nan"), "grad_norm": norm / good if good else float("nan"),
            **score, "clips_per_s": processes * self.clips / wall,
            "data": data / wall, "compute": compute / wall, "other": max(0.0, 1 - (data + compute) / wall),
            "bad_steps": self.steps - good, "bad_in_a_row": bad_run, "clips": processes * self.clips, "seconds": wall,
        }  # fmt: skip
        if on_gpu:
            row["gpu_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
            free, total = torch.cuda.mem_get_info(self.device)
            row["gpu_used_gib"] = (total - free) / 2**30  # DALI's pools and NVDEC's sessions too, and other processes
        self.restart()
        return row

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def log_line(row: dict[str, float]) -> str:
    """A training row of metrics.jsonl for people."""
    bad = f"  {row['bad_steps']:.0f} steps skipped, gradients not finite" if row["bad_steps"] else ""
    memory = f"  {row['gpu_gib']:.1f} GiB of torch, {row['gpu_used_gib']:.1f} in use" if "gpu_gib" in row else ""
    score = f"top-1 {100 * row['top1']:.1f} %" if "top1" in row else f"mean HOG {row['baseline']:.4f}"
    return (
        f"loss {row['loss']:.4f}  {score}  lr {row['lr']:.2e}  "
        f"{row['clips_per_s']:.1f} clips/s (waiting for data {100 * row['data']:.0f} %, "
        f"computing {100 * row['compute']:.0f} %, other {100 * row['other']:.0f} %){memory}{bad}"
    )
