"""Resource use of this process tree and of the whole machine (Linux, /proc), and of a GPU."""

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


class Usage(NamedTuple):
    """A reading of the counters; the difference of two readings is what the work between them cost."""

    wall_s: float
    tree_cpu_s: float  # of this process and its descendants, including those that ended and were reaped
    machine_cpu_s: float
    read_bytes: int  # read by this process and its descendants, from files (also the page cache) and pipes

    @staticmethod
    def now() -> Usage:
        """Read all counters."""
        return Usage(time.perf_counter(), process_tree_cpu_s(), machine_cpu_s(), process_tree_read_bytes())


def cpu_used_by_others(before: Usage, after: Usage) -> float:
    """Return the number of cores that other processes of the machine used between two readings, on average."""
    machine = after.machine_cpu_s - before.machine_cpu_s
    tree = after.tree_cpu_s - before.tree_cpu_s
    return round(max(machine - tree, 0) / (after.wall_s - before.wall_s), 2)


def descendants() -> list[int]:
    """List this process and all its descendants."""
    children = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                children[int(_stat_fields(int(folder.name))[1])].append(int(folder.name))
    pids = [os.getpid()]
    for pid in pids:
        pids += children[pid]
    return pids


def _stat_fields(pid: int) -> list[str]:
    """Read /proc/PID/stat from the field `state` on: state, parent, ..., utime, stime, and those of reaped children."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_tree_cpu_s() -> float:
    """Return the CPU seconds of this process and its descendants, in kernel ticks of 10 ms per process."""
    ticks = 0
    for pid in descendants():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _stat_fields(pid)[11:15]))
    return ticks / _TICK


def process_tree_read_bytes(pids: Iterable[int] | None = None) -> int:
    """Return the bytes read so far by `pids`, by default this process and its descendants."""
    total = 0
    for pid in descendants() if pids is None else pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/io").read_text().split()[1])
    return total


def process_tree_memory_mib() -> float:
    """Return the memory of this process and its descendants; shared memory counts once."""
    total = 0
    for pid in descendants():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def gpu_memory_mib(device: torch.device) -> float:
    """Return the memory of a GPU that is in use, including that of DALI and the decoders; 0 for a CPU."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 2**20


def machine_cpu_s() -> float:
    """Return the CPU seconds that all processes of the machine have used; idle time and disk waits do not count."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICK


def wait_until_idle(timeout_s: float = 60.0) -> None:
    """Wait until this process tree is idle, so that what one case reads ahead does not slow the next one down.

    Prints a warning if it is still busy after `timeout_s` seconds.
    """
    end = time.perf_counter() + timeout_s
    before = process_tree_cpu_s()
    while time.perf_counter() < end:
        time.sleep(0.15)
        now = process_tree_cpu_s()
        if now - before <= 0.02:
            return
        before = now
    print(
        f"warning: background work still running after {timeout_s:.0f} s; the next measurement may be affected",
        flush=True,
    )


@functools.cache
def load_nvml() -> Any:
    """Return nvidia-ml-py's module, initialized; None, with a message, if it or the driver's library is missing."""
    try:
        import pynvml
    except ImportError:
        print("utilization of GPU and NVDEC is unknown: pip install nvidia-ml-py", flush=True)
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        print(f"utilization of GPU and NVDEC is unknown: {error}", flush=True)
        return None
    return pynvml


class GpuUtilization:
    """Sample the utilization of a GPU and its video decoders inside a with block, every 50 ms.

    The driver's figures are means over up to a second. On a CPU, and where the driver reports nothing, there are no
    samples.
    """

    def __init__(self, device: torch.device):
        self.device, self._stop = device, threading.Event()
        self.samples: list[tuple[int, int]] = []  # percent of the GPU and of its decoders
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuUtilization:
        if self.device.type == "cuda" and (nvml := load_nvml()):
            self._thread = threading.Thread(target=self._sample, args=(nvml,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _sample(self, nvml: Any) -> None:
        with contextlib.suppress(nvml.NVMLError):  # not every card reports it
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(self.device).uuid}")
            while not self._stop.wait(0.05):
                gpu = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
                self.samples.append((gpu, nvml.nvmlDeviceGetDecoderUtilization(handle)[0]))

    def means(self) -> dict[str, float]:
        """Return both means as fractions; empty without samples."""
        if not self.samples:
            return {}
        gpu, decoder = (sum(column) / 100 / len(self.samples) for column in zip(*self.samples, strict=True))
        return {"gpu_busy": gpu, "nvdec_busy": decoder}
