"""Batches on the device: run a DALI pipeline, hand its buffers to torch without a copy, count unreadable videos.

`pipelines.loader` builds these loaders from a list and the keys of a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from nvidia.dali import backend

from pipelines.batch_decoder import BatchDecoder
from pipelines.dali_graph import PipelineConfig
from pipelines.data.dataset import VideoEntry
from pipelines.data.multi_label import LabelSets
from pipelines.decode.image_folder import DEFAULT_FPS
from pipelines.decode.video_info import VideoInfo
from pipelines.known_faults import UNREADABLE
from pipelines.sample_meta import SampleMeta, Status
from pipelines.sample_source import SampleSource, TooManyUnreadableVideos
from pipelines.sampling import order
from pipelines.storage import is_remote
from utils.device import to_device


class Batch(NamedTuple):
    """A batch of clips. `video` is on the device, float16 or float32."""

    video: torch.Tensor  # train (B, [clips,] C, T, H, W), repeats side by side; eval (B, V, C, T, H, W)
    label: torch.Tensor  # (B,) int64; after mixing (B, num_classes) float32; targets that are no classes: float32
    sample_index: torch.Tensor  # (B,) int64, the line of the list; -1: not to be scored (padding or unreadable)
    seeds: tuple[tuple[int, ...], ...]  # on the host: (seed, epoch, sample_index[, repeat[, occurrence]])

    @property
    def class_index(self) -> torch.Tensor:
        """The classes (B,); of a mixed clip the one with the larger share."""
        return self.label if self.label.ndim == 1 else self.label.argmax(-1)

    def label_names(self, classes: Sequence[str]) -> list[str]:
        """Return the name of each clip's class, or of all its labels; of a mixed clip those with half or more."""
        if self.label.ndim == 1:
            return [classes[index] for index in self.label.tolist()]
        rows = ((row >= 0.5).nonzero()[:, 0].tolist() for row in self.label.cpu())
        return [" + ".join(classes[index] for index in row) or "no label" for row in rows]


def further_seed(repeat: int | None, occurrence: int) -> tuple[int, ...]:
    """Return what tells a sample from others of the same video and epoch: repeat, and which copy of the video it is.

    Nothing for the first one, if there are no repeats.
    """
    if occurrence:
        return repeat or 0, occurrence
    return () if repeat is None else (repeat,)


class BatchLoader:
    """Iterate over epochs of a source.

    `state_dict()` holds the epoch, the samples seen and the faults found, and restores the exact stream; on another
    number of ranks the epoch continues with samples that it has not seen. `bad_videos` maps sample indices to the
    reason why they could not be read: replaced in training, not scored in evaluation. Worker processes start with the
    first batch; `close()`, or the end of a `with` block, ends them. A loader is a plain iterable with a length, whose
    batches are on its device: frameworks that prepare torch's DataLoader leave it as it is.

    `transforms` are applied to each batch on its device. `targets` (N, ...) float32, one per video, take the place of
    classes: labels are then rows of it. Of LabelSets, several labels per video, they are ones and zeros (B, K).
    """

    def __init__(
        self,
        source: SampleSource,
        pipeline: PipelineConfig,
        device: torch.device,
        *,
        max_unreadable: float = 1.0,
        transforms: Sequence[Callable[[Batch], Batch]] = (),
        targets: np.ndarray | LabelSets | None = None,
    ):
        self.device, self.max_unreadable = device, max_unreadable
        self.transforms, self.targets = transforms, targets
        self.epoch, self.batch_index = 0, 0
        self._is_restored = False  # the position is that of a state, and no batch has been asked for since
        self.bad_videos: dict[int, str] = {}
        self.decoder = BatchDecoder(source, pipeline, device)

    @property
    def source(self) -> SampleSource:
        """The source that decides and reads the samples, also in worker processes."""
        return self.decoder.source

    @property
    def grad_accum_steps(self) -> int:
        """The batches per optimizer step."""
        return self.source.grad_accum_steps

    @property
    def pipeline(self) -> PipelineConfig:
        """The configuration of the DALI pipeline."""
        return self.decoder.pipeline

    @property
    def videos(self) -> Sequence[VideoEntry]:
        """The videos of the list, in its order."""
        return self.source.videos

    @property
    def infos(self) -> Sequence[VideoInfo]:
        """The index entry of each video."""
        return self.source.infos

    def __len__(self) -> int:
        """Count the batches per epoch."""
        return self.source.num_batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the current one to the end of the epoch; DALI already works on the next epoch.

        An evaluation that was broken off starts over instead, unless load_state_dict() has just set its position.
        """
        if self.batch_index == len(self):  # a loop that counts its batches asks for none after the last one
            self.epoch, self.batch_index = self.epoch + 1, 0
        elif self.batch_index and not self.source.views.train and not self._is_restored:
            self.batch_index = 0
            self.decoder.restart()
        self._is_restored, epoch = False, self.epoch
        while self.epoch == epoch and self.batch_index < len(self):
            batch = self._batch(*self.decoder.decode(self.epoch * len(self) + self.batch_index))
            self.batch_index += 1
            yield self._transform(batch)
        if self.epoch == epoch:  # otherwise a newer iterator has turned to the next epoch already
            self.epoch, self.batch_index = self.epoch + 1, 0

    def _transform(self, batch: Batch) -> Batch:
        """Apply the transforms; to several clips of a video as if they were one, so that they stay alike."""
        clips = self.source.views.num_clips
        if not self.transforms or clips == 1:
            return self._transform_clips(batch)
        joined = self._transform_clips(batch._replace(video=rearrange(batch.video, "B L C T H W -> B C (L T) H W")))
        return joined._replace(video=rearrange(joined.video, "B C (L T) H W -> B L C T H W", L=clips))

    def _transform_clips(self, batch: Batch) -> Batch:
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the run and what was found out about videos."""
        # After the last batch and before the first of the next epoch the position is the same.
        epochs, batch_index = divmod(self.batch_index, len(self))
        s = self.source
        faults = [[*fault, *self._file(fault[0])] for fault in s.faults.state()]
        bad_videos = [[index, reason, *self._file(index)] for index, reason in sorted(self.bad_videos.items())]
        seen = batch_index * s.batch_size * s.world.size
        balance = s.balance.power if s.balance else None
        stream = {"num_videos": len(self.videos), "seed": s.seed, "train": s.views.train, "balance": balance}
        return {
            "epoch": self.epoch + epochs,
            "seen": seen,
            "faults": faults,
            "bad_videos": bad_videos,
            "stream": stream,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where state_dict() was called.

        Prints a line if another list or seed makes the rest of the epoch another shuffle. Raises ValueError for the
        state of an evaluation in training, and the other way round.
        """
        s = self.source
        self._compare_stream(state.get("stream", {}), state["seen"])
        done = order.batches_done(state["seen"], s.batch_size, s.world.size, s.grad_accum_steps)
        self.epoch, self.batch_index = (state["epoch"], done) if done < len(self) else (state["epoch"] + 1, 0)
        # What was found out about a file holds while the same file is in the same line of the list.
        s.faults.merge(
            [
                fault
                for *fault, name, size, mtime_ns in state.get("faults", [])
                # An image that was repaired does not change what tells that a folder is the same.
                if self._file(fault[0]) == [name, size, mtime_ns] and not self.infos[fault[0]].is_image_folder
            ]
        )
        for index, reason, *file in state.get("bad_videos", []):
            if self._file(index) == file:
                self.bad_videos[index] = reason
        self._is_restored = True
        self.decoder.restart()

    def _compare_stream(self, saved: Mapping[str, Any], seen: int) -> None:
        """Compare what the stream of samples depends on with what it was when the state was saved."""
        s = self.source
        if saved.get("train", s.views.train) != s.views.train:
            kinds = ("an evaluation", "training")
            raise ValueError(f"a state of {kinds[not s.views.train]}: expected one of {kinds[s.views.train]}")
        now = {"num_videos": len(self.videos), "seed": s.seed, "balance": s.balance.power if s.balance else None}
        before = {key: saved.get(key, value) for key, value in now.items()}  # states of older versions do not have them
        changes = [f"{key}={now[key]}, and {before[key]} before" for key in now if now[key] != before[key]]
        if changes and seen and s.world.is_main:
            print(
                f"{'; '.join(changes)}: the epoch continues in another order, in which some of its videos may come "
                "twice and others not at all",
                flush=True,
            )

    def _file(self, index: int) -> list[Any]:
        """Return name, size and mtime of a video as it was indexed; an empty list if there is no such index."""
        if index >= len(self.infos):
            return []
        info = self.infos[index]
        return [self.videos[index].name, info.size, info.mtime_ns]

    def close(self) -> None:
        """End the worker processes and free the buffers; iterating again starts new ones."""
        self.decoder.restart()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def release_memory(self) -> None:
        """Return the GPU memory that DALI holds and does not use: its pools grow with the largest batch, and torch
        cannot use them."""
        if self.device.type == "cuda":
            backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]  # DALI's stubs leave it out

    def share_faults(self) -> None:
        """Tell all ranks what each has found out about its videos. All of them call it together.

        Raises TooManyUnreadableVideos, in training, for more bad videos than `max_unreadable` allows.
        """
        for bad_videos, faults in self.source.world.gather((dict(self.bad_videos), self.source.faults.state())):
            self.add_bad_videos(bad_videos)
            self.source.faults.merge(faults)

    def add_bad_videos(self, reasons: Mapping[int, str]) -> None:
        """Note sample indices and reasons, also those of other processes. Raises as share_faults()."""
        self.bad_videos.update(reasons)
        if self.source.views.train and len(self.bad_videos) > self.max_unreadable * len(self.videos):
            lines = "\n".join(f"  {self.videos[i].name}: {reason}" for i, reason in sorted(self.bad_videos.items()))
            raise TooManyUnreadableVideos(
                f"{len(self.bad_videos)} of {len(self.videos)} videos cannot be read, more than "
                f"data.max_unreadable={self.max_unreadable} allows:\n{lines}"
            )

    def _batch(self, video: torch.Tensor, numbers: torch.Tensor, meta_rows: np.ndarray) -> Batch:
        v, metas = self.source.views, [SampleMeta(*row) for row in meta_rows.tolist()]
        for slot, meta in enumerate(metas):
            if meta.status in (Status.REPLACED, Status.FAILED):
                self._note_bad_video(meta.sample_index, meta.batch_index)
            if meta.rotation:  # few videos are rotated, so the DALI pipeline need not know about it
                for number, view in enumerate(torch.rot90(video[slot], meta.rotation, (-2, -1))):
                    is_mirrored = meta.mirror >> number % v.aug_repeats & 1
                    video[slot, number] = view.flip(-1) if is_mirrored else view
        if v.train:
            repeats_apart = rearrange(video, "B (L R) ... -> (B R) L ...", L=v.num_clips)
            video = repeats_apart if v.num_clips > 1 else repeats_apart.squeeze(1)
            metas = [meta for meta in metas for _ in range(v.aug_repeats)]
            numbers = numbers.repeat_interleave(v.aug_repeats, 0) if v.aug_repeats > 1 else numbers
        seeds = (
            (self.source.seed, meta.batch_index // len(self) if v.train else 0, meta.sample_index)
            + further_seed(i % v.aug_repeats if v.aug_repeats > 1 else None, meta.occurrence)
            for i, meta in enumerate(metas)
        )
        label, scored_index = numbers.unbind(1)
        if self.targets is not None:
            label = to_device(self._targets_of(metas), self.device)
        return Batch(video, label, scored_index, tuple(seeds))

    def _targets_of(self, metas: Sequence[SampleMeta]) -> np.ndarray:
        """Return the targets (B, ...) of samples; of several labels, in training, those that hold during the clip."""
        assert self.targets is not None
        rows = [meta.label for meta in metas]
        if not isinstance(self.targets, LabelSets) or not self.source.views.train:
            return self.targets[rows]
        spans = [[self._second(meta, f) for f in (meta.first_frame, meta.last_frame)] for meta in metas]
        return self.targets.clips(rows, *zip(*spans, strict=True))

    def _second(self, meta: SampleMeta, frame: int) -> float:
        """Return when a frame of a sample's video is shown."""
        info = self.infos[meta.used_index]
        times = info.frame_times
        return float(times[frame]) if times is not None else frame / (info.fps or DEFAULT_FPS)

    def _note_bad_video(self, index: int, batch_index: int) -> None:
        if index not in self.bad_videos:
            self.add_bad_videos({index: self.source.reason(index)})
        if not is_remote(self.videos[index].path):  # at an address the network may have been the reason
            self.source.faults.add(index, UNREADABLE, batch_index)
