"""What the kernel says of this process tree and of the others on the machine (Linux, /proc)."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

_TICK = os.sysconf("SC_CLK_TCK")


class Clock(NamedTuple):
    """A reading; the difference of two says what a stretch of work cost. Times in seconds."""

    wall: float
    own: float  # CPU time of this process and all that descend from it, dead ones included once they are reaped
    busy: float  # CPU time of the whole machine
    read: int  # bytes that they have read, from files (the page cache too) and pipes

    @staticmethod
    def now() -> Clock:
        return Clock(time.perf_counter(), own_seconds(), busy_seconds(), own_bytes())


def descendants() -> list[int]:
    """This process and all that descend from it."""
    children = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                children[int(_stat(int(folder.name))[1])].append(int(folder.name))
    found = [os.getpid()]
    for pid in found:
        found += children[pid]
    return found


def _stat(pid: int) -> list[str]:
    """What follows the name in brackets: state, parent, ..., utime, stime, reaped children's utime and stime."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def own_seconds() -> float:
    """CPU seconds of this process and its descendants, in steps of a kernel tick (10 ms) a process."""
    ticks = 0
    for pid in descendants():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / _TICK


def own_bytes(pids: Iterable[int] | None = None) -> int:
    """That this process and its descendants have read so far, or the processes that are named."""
    total = 0
    for pid in descendants() if pids is None else pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/io").read_text().split()[1])
    return total


def own_mebibytes() -> float:
    """Memory of this process and its descendants, what they share counted once."""
    total = 0
    for pid in descendants():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def gpu_mebibytes(device: torch.device) -> float:
    """Memory of a GPU that is in use, DALI's and the decoders' too; 0 for a CPU."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 2**20


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used: neither idle nor waiting for a disk."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICK


def settle(longest: float = 60.0) -> None:
    """Wait until this process tree works no more: its read-ahead is done and takes nothing from the next case. Says so
    if it goes on for longer."""
    end = time.perf_counter() + longest
    before = own_seconds()
    while time.perf_counter() < end:
        time.sleep(0.15)
        now = own_seconds()
        if now - before <= 0.02:
            return
        before = now
    print(f"after {longest:.0f} s something still works: what is measured next has it beside", flush=True)


@functools.cache
def driver_library() -> Any:
    """nvidia-ml-py's module, ready; None, said once, where it or the driver's part of it is not installed."""
    try:
        import pynvml
    except ImportError:
        print("pip install nvidia-ml-py to see how busy GPU and NVDEC are", flush=True)
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        print(f"how busy GPU and NVDEC are cannot be seen: {error}", flush=True)
        return None
    return pynvml


class GpuUse:
    """How busy a GPU and its video decoders are inside a with block, by the driver's account, means of up to a second,
    asked every 50 ms; on a CPU, and where the driver does not tell, nothing is known of it."""

    def __init__(self, device: torch.device):
        self.device, self.seen, self._stop = device, list[tuple[int, int]](), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuUse:
        if self.device.type == "cuda" and (nvml := driver_library()):
            self._thread = threading.Thread(target=self._ask, args=(nvml,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _ask(self, nvml: Any) -> None:
        with contextlib.suppress(nvml.NVMLError):  # not every card tells
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(self.device).uuid}")
            while not self._stop.wait(0.05):
                gpu = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
                self.seen.append((gpu, nvml.nvmlDeviceGetDecoderUtilization(handle)[0]))

    def shares(self) -> dict[str, float]:
        """Means of both, 0 to 1."""
        if not self.seen:
            return {}
        gpu, decoder = (sum(column) / 100 / len(self.seen) for column in zip(*self.seen, strict=True))
        return {"gpu_busy": gpu, "nvdec_busy": decoder}
