"""Decode the samples of each batch with a DALI graph, whatever befalls its workers and whatever DALI refuses."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.dali_graph import Graph, build_pipeline
from pipelines.dali_workers import Readers, SharedMemoryFull, check_shared_memory, reason_of
from pipelines.known_faults import REFUSED, UNREADABLE
from pipelines.sample_source import Info, Source, Unreadable

# What DALI reports of the machine, and no file is to blame for.
_NOT_OF_A_FILE = ("allocation failed", "bad_alloc", "CUDA runtime", "cudaError")
_STEP = Info._fields.index("step")


class Decoded(NamedTuple):
    """What a run of the graph yields: (B, V, C, T, H, W) and (B, 2) on the device, (B, 9) on the host."""

    video: torch.Tensor
    numbers: torch.Tensor
    info: np.ndarray

    @staticmethod
    def of(outputs: Sequence[Any]) -> Decoded:
        """Take over DALI's buffers; no pixel is copied."""
        video, numbers, info = (output.as_tensor() for output in outputs)
        return Decoded(torch.from_dlpack(video), torch.from_dlpack(numbers), np.array(info))


class BatchDecoder:
    """A graph and the processes that feed it, started when the first batch is asked for.

    A process that dies is replaced once for a batch. What DALI refuses fails the whole batch: `slow_steps` counts those
    that had to be decoded one sample at a time for it.
    """

    def __init__(self, source: Source, graph: Graph, device: torch.device):
        self.source, self.graph, self.device = source, graph, device
        self.slow_steps = 0
        self._unexplained = 0  # batches in a row that failed, and none of their samples by itself
        self.readers: Readers | None = None

    def restart(self) -> None:
        """Begin anew at the step that is asked for next."""
        self.readers = None

    def decode(self, step: int) -> Decoded:
        """Decode the samples of a batch; steps are asked for in order, from the last restart() on."""
        decoded: Decoded | None = None
        failure: Exception | None = None
        for attempt in range(2):
            try:
                decoded = self._run(step)
                break
            except SharedMemoryFull as error:
                self._abandon()
                raise Unreadable(str(error)) from None
            except Exception as error:  # of which kind, DALI decides where a reader has died: see what it is below
                if died := self.readers.died() if self.readers else "":
                    self._abandon()
                    if attempt:
                        raise Unreadable(f"{died}, again, while reading: {', '.join(self._paths(step))}") from None
                    print(f"{died}: the readers start anew at step {step}", file=sys.stderr, flush=True)
                    continue
                if not isinstance(error, RuntimeError):
                    if type(error) is not Exception:
                        raise
                    self.readers = None  # so DALI reports an exception in a worker: here it is raised as what it is
                failure = error
                break
        if decoded is None:  # one file that the decoder refuses fails the whole batch
            self.slow_steps += 1
            decoded = self._one_by_one(step, range(self.source.batch))
            self._note_failure(failure, step, decoded)
        else:
            self._unexplained = 0
            self._decode_again(step, decoded)
        assert (decoded.info[:, _STEP] == step).all(), f"the stream is out of step: {decoded.info} at {step}"
        return decoded

    def _note_failure(self, failure: Exception | None, step: int, decoded: Decoded) -> None:
        """Say why a batch failed of which no sample does by itself, memory for instance; raise Unreadable the third
        time in a row, since the whole run would go on that slowly."""
        infos = [Info(*row) for row in decoded.info.tolist()]
        rows = {info.row for info in infos} | {info.used for info in infos}
        if failure is None or any(self.source.faults.is_known(row, REFUSED, step + 1) for row in rows):
            self._unexplained = 0
            return
        self._unexplained += 1
        reason = f"DALI fails on a whole batch, and on none of its samples: {reason_of(failure)}"
        if self._unexplained == 3:
            raise Unreadable(f"{reason} (three times in a row)") from failure
        print(f"step {step}: decoded one by one, since {reason}", file=sys.stderr, flush=True)

    def _run(self, step: int) -> Decoded:
        if self.readers is None:
            source = dataclasses.replace(self.source, start=step)
            if self.graph.workers:
                check_shared_memory(shared_bytes(self.source, self.graph.prefetch))
            self.readers = Readers(build_pipeline(self.graph, source, self.source.batch))
        return Decoded.of(self.readers.run(self._stream()))

    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def _abandon(self) -> None:
        if self.readers:
            self.readers.abandon()
        self.readers = None

    def _paths(self, step: int) -> list[str]:
        return [self.source.clips[self.source.row_of(step, slot)[0]].path for slot in range(self.source.batch)]

    def _read_ahead(self, step: int) -> set[int]:
        """Return the rows of the batches that workers and DALI may have begun behind a step."""
        ahead = range(step + 1, step + 2 + 2 * self.graph.prefetch)
        return {self.source.row_of(later, slot)[0] for later in ahead for slot in range(self.source.batch)}

    def _decode_again(self, step: int, decoded: Decoded) -> None:
        """Replace the samples that a worker read before it could know of a fault."""
        faults = self.source.faults
        late = [
            slot
            for slot, info in enumerate(Info(*row) for row in decoded.info.tolist())
            if faults.is_known(info.used, UNREADABLE, step)
            or not info.by_pyav
            and faults.is_known(info.used, REFUSED, step)
        ]
        if late:
            again = self._one_by_one(step, late)
            for number, slot in enumerate(late):  # a list of numbers as index would wait for the device
                decoded.video[slot], decoded.numbers[slot] = again.video[number], again.numbers[number]
                decoded.info[slot] = again.info[number]

    def _one_by_one(self, step: int, slots: Sequence[int]) -> Decoded:
        """Decode samples of a batch each by itself; PyAV decodes what DALI refuses, now and from now on."""
        alone = dataclasses.replace(self.graph, prefetch=1, workers=0)
        samples: list[Decoded] = []
        fed: list[tuple[np.ndarray, ...]] = []
        pipe = None
        refused: dict[int, str] = {}
        failed: set[int] = set()
        while len(samples) < len(slots):
            arrays = self.source.sample(step, slots[len(samples)], refused)
            fed[:] = [arrays]
            pipe = pipe or build_pipeline(alone, _first_of(fed), batch=1)
            try:
                samples.append(Decoded.of(pipe.run(self._stream())))
            except RuntimeError as error:
                info = Info(*arrays[-1].tolist())
                if info.by_pyav or any(sign in str(error) for sign in _NOT_OF_A_FILE):
                    raise
                pipe = None
                if info.used in failed:  # tried again, since a session of NVDEC may just not have been free
                    refused[info.used] = reason_of(error)
                failed.add(info.used)
        for row, reason in sorted(refused.items()):
            self.source.faults.add(row, REFUSED, step)
            path = self.source.clips[row].path
            print(f"{path}: DALI refuses it ({reason}); PyAV decodes it from now on", flush=True)
        if refused.keys() & self._read_ahead(step):  # they would fail once more
            self.restart()
        videos, numbers, infos = zip(*samples, strict=True)
        return Decoded(torch.cat(videos), torch.cat(numbers), np.concatenate(infos))


def shared_bytes(source: Source, prefetch: int) -> int:
    """Return the least shared memory, in bytes, that batches take which are read ahead: the views that PyAV decodes, of
    the batches that workers write and of those that DALI still holds."""
    v = source.views
    views = (v.repeats if v.train else v.clips * v.crops) * 3 * v.frames * v.size**2
    return 2 * prefetch * source.batch * views if source.decoders.needs_pyav else 0


def _first_of(fed: list[tuple[np.ndarray, ...]]) -> Callable[[Any], tuple[np.ndarray, ...]]:
    return lambda place: fed[0]
