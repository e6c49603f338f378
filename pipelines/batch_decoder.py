"""Decode each batch with a DALI pipeline, also if its workers die or DALI refuses a file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.dali_graph import PipelineConfig, build_pipeline
from pipelines.dali_workers import DaliPipeline, SharedMemoryFull, build_quietly, check_shared_memory, reason_of
from pipelines.known_faults import REFUSED, UNREADABLE
from pipelines.sample_meta import SampleMeta
from pipelines.sample_source import SampleSource, TooManyUnreadableVideos

# Errors of DALI's that are about the machine; no file is to blame for them.
_MACHINE_ERRORS = ("allocation failed", "bad_alloc", "CUDA runtime", "cudaError")
_BATCH_INDEX = SampleMeta._fields.index("batch_index")


class DecodedBatch(NamedTuple):
    """The outputs of the pipeline, one row per sample."""

    video: torch.Tensor  # (B, V, C, T, H, W), on the device
    numbers: torch.Tensor  # (B, 2) int64, label and scored index, on the device
    meta: np.ndarray  # (B, 13) int64, SampleMeta, on the host

    @staticmethod
    def of(outputs: Sequence[Any]) -> DecodedBatch:
        """Take over DALI's buffers; no pixel is copied."""
        video, numbers, meta = (output.as_tensor() for output in outputs)
        return DecodedBatch(torch.from_dlpack(video), torch.from_dlpack(numbers), np.array(meta))


class BatchDecoder:
    """A DALI pipeline with its workers, started when the first batch is asked for.

    Workers that die are replaced once per batch. A file that DALI refuses fails the whole batch: `slow_batches` counts
    those that had to be decoded one sample at a time for that reason.
    """

    def __init__(self, source: SampleSource, pipeline: PipelineConfig, device: torch.device):
        self.source, self.pipeline, self.device = source, pipeline, device
        self.slow_batches = 0
        self._unexplained = 0  # consecutive batches that failed although each of their samples can be decoded
        self.dali: DaliPipeline | None = None

    def restart(self) -> None:
        """End the pipeline and its workers; a new one starts at the batch that is asked for next."""
        if self.dali:
            self.dali.close()
        self.dali = None

    def decode(self, batch_index: int) -> DecodedBatch:
        """Decode a batch; batches are asked for in order from the last restart() on."""
        decoded: DecodedBatch | None = None
        failure: Exception | None = None
        for attempt in range(2):
            try:
                decoded = self._run(batch_index)
                break
            except SharedMemoryFull as error:
                self._abandon()
                raise TooManyUnreadableVideos(str(error)) from None
            except Exception as error:  # DALI decides of which class, if a worker has died: told apart below
                if died := self.dali.dead_workers() if self.dali else "":
                    self._abandon()
                    if attempt:
                        raise TooManyUnreadableVideos(
                            f"{died}, again, while reading: {', '.join(self._paths(batch_index))}"
                        ) from None
                    print(f"{died}: restarting the data workers at batch {batch_index}", file=sys.stderr, flush=True)
                    continue
                if not isinstance(error, RuntimeError):
                    if type(error) is not Exception:
                        raise
                    self.dali = None  # DALI reports an exception of a worker so; one by one it is raised as what it is
                failure = error
                break
        if decoded is None:  # one file that DALI refuses fails the whole batch
            self.slow_batches += 1
            decoded = self._one_by_one(batch_index, range(self.source.batch_size))
            self._note_failure(failure, batch_index, decoded)
        else:
            self._unexplained = 0
            self._decode_again(batch_index, decoded)
        assert (decoded.meta[:, _BATCH_INDEX] == batch_index).all(), (
            f"batches are out of order: {decoded.meta} at {batch_index}"
        )
        return decoded

    def _note_failure(self, failure: Exception | None, batch_index: int, decoded: DecodedBatch) -> None:
        """Report why a batch failed although each of its samples can be decoded: too little memory, for instance.

        Raises TooManyUnreadableVideos the third time in a row, because the whole run would continue that slowly.
        """
        metas = [SampleMeta(*row) for row in decoded.meta.tolist()]
        indices = {meta.sample_index for meta in metas} | {meta.used_index for meta in metas}
        if failure is None or any(self.source.faults.is_known(index, REFUSED, batch_index + 1) for index in indices):
            self._unexplained = 0
            return
        self._unexplained += 1
        reason = f"DALI fails on a whole batch, but on none of its samples: {reason_of(failure)}"
        if self._unexplained == 3:
            raise TooManyUnreadableVideos(f"{reason} (three times in a row)") from failure
        print(f"batch {batch_index}: decoded one by one, because {reason}", file=sys.stderr, flush=True)

    def _run(self, batch_index: int) -> DecodedBatch:
        if self.dali is None:
            source = dataclasses.replace(self.source, start=batch_index)
            if self.pipeline.num_workers:
                check_shared_memory(shared_bytes(self.source, self.pipeline.prefetch))
            self.dali = DaliPipeline(build_pipeline(self.pipeline, source, self.source.batch_size))
        return DecodedBatch.of(self.dali.run(self._stream()))

    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def _abandon(self) -> None:
        if self.dali:
            self.dali.kill()
        self.dali = None

    def _paths(self, batch_index: int) -> list[str]:
        return [
            self.source.videos[self.source.sample_at(batch_index, slot)[0]].path
            for slot in range(self.source.batch_size)
        ]

    def _read_ahead(self, batch_index: int) -> set[int]:
        """Return the indices of the videos in batches after one that workers and DALI may have begun already."""
        ahead = range(batch_index + 1, batch_index + 2 + 2 * self.pipeline.prefetch)
        return {self.source.sample_at(later, slot)[0] for later in ahead for slot in range(self.source.batch_size)}

    def _decode_again(self, batch_index: int, decoded: DecodedBatch) -> None:
        """Decode again the samples that a worker read before a fault of their video was known to it."""
        faults = self.source.faults
        late = [
            slot
            for slot, meta in enumerate(SampleMeta(*row) for row in decoded.meta.tolist())
            if faults.is_known(meta.used_index, UNREADABLE, batch_index)
            or not meta.by_pyav
            and faults.is_known(meta.used_index, REFUSED, batch_index)
        ]
        if late:
            again = self._one_by_one(batch_index, late)
            for number, slot in enumerate(late):  # a list of numbers as index would wait for the device
                decoded.video[slot], decoded.numbers[slot] = again.video[number], again.numbers[number]
                decoded.meta[slot] = again.meta[number]

    def _one_by_one(self, batch_index: int, slots: Sequence[int]) -> DecodedBatch:
        """Decode samples of a batch one by one; PyAV decodes what DALI refuses, now and in all later batches."""
        alone = dataclasses.replace(self.pipeline, prefetch=1, num_workers=0)
        samples: list[DecodedBatch] = []
        fed: list[tuple[np.ndarray, ...]] = []
        pipe = None
        refused: dict[int, str] = {}
        failed: set[int] = set()
        while len(samples) < len(slots):
            arrays = self.source.sample(batch_index, slots[len(samples)], refused)
            fed[:] = [arrays]
            if pipe is None:
                pipe = build_pipeline(alone, _first_of(fed), batch=1)
                build_quietly(pipe)
            try:
                samples.append(DecodedBatch.of(pipe.run(self._stream())))
            except RuntimeError as error:
                meta = SampleMeta(*arrays[-1].tolist())
                if meta.by_pyav or any(sign in str(error) for sign in _MACHINE_ERRORS):
                    raise
                pipe = None
                if (
                    meta.used_index in failed
                ):  # the second time: the first may have been for lack of a free NVDEC session
                    refused[meta.used_index] = reason_of(error)
                failed.add(meta.used_index)
        for index, reason in sorted(refused.items()):
            self.source.faults.add(index, REFUSED, batch_index)
            path = self.source.videos[index].path
            print(f"{path}: DALI refuses it ({reason}); PyAV decodes it from now on", flush=True)
        if refused.keys() & self._read_ahead(batch_index):  # they would fail once more
            self.restart()
        videos, numbers, metas = zip(*samples, strict=True)
        return DecodedBatch(torch.cat(videos), torch.cat(numbers), np.concatenate(metas))


def shared_bytes(source: SampleSource, prefetch: int) -> int:
    """Return how much shared memory the batches that are read ahead take at least, in bytes.

    These are the views that PyAV decodes, in the batches that workers write and in those that DALI still holds.
    """
    v = source.views
    bytes_per_video = v.num_views * 3 * v.num_frames * v.image_size**2
    return 2 * prefetch * source.batch_size * bytes_per_video if source.decoders.needs_pyav else 0


def _first_of(fed: list[tuple[np.ndarray, ...]]) -> Callable[[Any], tuple[np.ndarray, ...]]:
    return lambda position: fed[0]
