"""How the steps of a run are timed and counted, and how a signal ends them."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
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


class Clock:
    """Says when so many minutes are over; 0 means never."""

    def __init__(self, minutes: float):
        self.seconds, self.start = 60 * minutes, time.monotonic()

    def due(self) -> bool:
        """Whether they are, since the last time that they were."""
        if not self.seconds or time.monotonic() - self.start < self.seconds:
            return False
        self.start = time.monotonic()
        return True


class Stop:
    """Turns Ctrl-C and SIGTERM into `signal`, read after each step; of a process that is `alone` a second Ctrl-C, or a
    signal inside at_once(), interrupts. Others are waited for, and torchrun passes on what the processes got already.

    Leaving the block swallows that interruption: all that matters was saved before.
    """

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self.signal: signal.Signals | None = None  # that all processes know of
        self._received: signal.Signals | None = None
        self._wait = True

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is KeyboardInterrupt and self.signal is not None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, nothing is lost by stopping at once."""
        self._wait = not self.alone
        if self._received and self.alone:
            self._interrupt()
        yield
        self._wait = True

    def agreed(self, gather: Callable[[signal.Signals | None], list[signal.Signals | None]]) -> bool:
        """Whether the run stops after this step, for all processes to ask together: a signal to one stops all."""
        self.signal = next((s for s in gather(self._received) if s), None)
        return bool(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second, self._received = self._received is not None, signal.Signals(number)
        if self.alone and (second and number == signal.SIGINT or not self._wait):
            self._interrupt()

    def _interrupt(self) -> None:
        self.signal = self._received
        raise KeyboardInterrupt
