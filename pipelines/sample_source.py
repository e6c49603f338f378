"""Choose and read one sample of a batch for DALI. Runs in worker processes, so it imports neither torch nor DALI.

A source is a pure function of its settings and of the position of the sample in the run. Every random number of a
sample is drawn here, from a generator seeded with (seed, epoch, sample), so the stream of batches does not depend on
the number of workers or on where a run was interrupted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.data.dataset import VideoEntry
from pipelines.decode.color import correction
from pipelines.decode.decoder_choice import DecoderPlan
from pipelines.decode.demuxer import CHANGED
from pipelines.decode.encoded_frames import EncodedFrames, read_encoded_frames
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.video_info import VideoInfo
from pipelines.known_faults import REFUSED, UNREADABLE, Faults
from pipelines.sample_meta import SampleMeta, Status
from pipelines.sampling import order, spatial, temporal
from pipelines.sampling.rand_augment import AugmentPolicy
from pipelines.storage import fingerprint, is_remote
from utils.distributed import World
from utils.workers import die_with_parent

_NOTHING_ENCODED = EncodedFrames(np.zeros(1, np.uint8), np.zeros(1, np.int32), np.zeros(1, np.int32), 0)
_MAX_REPLACEMENTS = 100  # unreadable videos in a row, which are no longer a few bad files


class TooManyUnreadableVideos(RuntimeError):
    """Raised when more videos than chance allows cannot be read."""


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """The clips and crops of a video. Train: random ones; clips share a crop. Eval: clips x crops, nothing random."""

    num_frames: int
    frame_stride: int
    image_size: int
    short_clip: str
    train: bool
    fps: float = 0.0
    sampling: str = "dense"
    snap_to_keyframes: bool = False
    crop: str = "random_resized_crop"
    short_side_range: tuple[float, float] = (1.0, 1.0)
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    hflip: float = 0.0
    augment: AugmentPolicy = AugmentPolicy()
    aug_repeats: int = 1  # crops of each decoded clip in training
    num_clips: int = 1
    clip_placement: str = "uniform"
    num_crops: int = 1
    short_side: int = 0  # eval, in pixels; 0: image_size

    @property
    def eval_short_side(self) -> int:
        """The short side of frames before views are cut out of them, in pixels."""
        return self.short_side or self.image_size

    @property
    def num_views(self) -> int:
        """Count the views of each video."""
        return self.num_clips * (self.aug_repeats if self.train else self.num_crops)


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """Called by DALI with the position of a sample (SampleInfo), return its arrays."""

    videos: Sequence[VideoEntry]  # these two shared, or every worker is sent all of them
    infos: Sequence[VideoInfo]
    views: ViewSpec
    batch_size: int
    seed: int
    world: World
    decoders: DecoderPlan
    faults: Faults
    trimmed: bool = True  # False: decode from the first frame (bench only)
    start: int = 0  # batch index of DALI's iteration 0
    fill: tuple[int, int, int] = (0, 0, 0)  # RGB around letterboxed frames
    decode_timeout: float = math.inf  # seconds per file
    grad_accum_steps: int = 1  # batches per optimizer step; an epoch has whole steps
    balance: order.BalancedOrder | None = None  # of training; None: every video once

    @property
    def num_batches(self) -> int:
        """Count the batches per epoch."""
        return order.batches_per_epoch(
            len(self.videos),
            self.batch_size,
            self.world.size,
            train=self.views.train,
            grad_accum_steps=self.grad_accum_steps,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin in a worker process, which from now on ends with its parent, also if it is never given a sample."""
        self.__dict__.update(state)
        die_with_parent()

    def __call__(self, position: Any) -> tuple[np.ndarray, ...]:
        """Return the arrays of the sample at DALI's position."""
        return self.sample(self.start + position.iteration, position.idx_in_batch)

    def sample(self, batch_index: int, slot: int, refused: Collection[int] = ()) -> tuple[np.ndarray, ...]:
        """Return the arrays of one sample.

        Where DALI decodes none of the videos: views (V, C, T, H, W) uint8, mirror (crops,), SampleMeta (13,). Else:
        data, positions and order of EncodedFrames, boxes (crops, 4), color matrix (3, 3), views, mirror, SampleMeta; of
        data and views one is empty, as `by_pyav` says. Before mirror: what AugmentPolicy draws, (crops, ...) each.
        `batch_index` counts over all epochs; `refused` are indices of videos that DALI has just refused.
        """
        index, status, occurrence = self.sample_at(batch_index, slot)
        epoch = batch_index // self.num_batches
        used = index
        for attempt in range(_MAX_REPLACEMENTS):
            # Every attempt has its own generator, so remembering an unreadable video changes no draw.
            rng = order.sample_rng(self.seed, epoch if self.views.train else 0, index, attempt, occurrence)
            if attempt:
                used = order.replacement(index, attempt, rng, len(self.videos), self.balance)
            try:
                if self.infos[used].error or self.faults.is_known(used, UNREADABLE, batch_index):
                    raise ValueError
                by_pyav = used in refused or self.chooses_pyav(used, batch_index)
                by_pyav, num_images, frames, *arrays, mirror = self._load(used, rng, by_pyav)
                break
            except ValueError:
                if status is Status.OK:
                    status = Status.REPLACED if self.views.train else Status.FAILED
        else:
            last = f"the last is {self.videos[used].path}"
            raise TooManyUnreadableVideos(f"{_MAX_REPLACEMENTS} videos in a row cannot be read, {last}")
        if self.views.augment:
            draws = (self.views.augment.draw(rng) for _ in range(self.views.aug_repeats))
            arrays += map(np.stack, zip(*draws, strict=True))
        rotation = self.infos[used].rotation
        meta = SampleMeta(
            batch_index=batch_index,
            sample_index=index,
            used_index=used,
            status=status,
            label=self.videos[used if self.views.train else index].label,
            scored_index=used if status in (Status.OK, Status.REPLACED) else -1,
            by_pyav=int(by_pyav),
            num_images=num_images,
            rotation=rotation,
            mirror=sum(int(flag) << view for view, flag in enumerate(mirror)) if rotation else 0,
            first_frame=int(frames.min()),
            last_frame=int(frames.max()),
            occurrence=occurrence,
        )
        return *arrays, mirror * (not rotation), np.array(meta, np.int64)

    def chooses_pyav(self, index: int, batch_index: int) -> bool:
        """Tell whether PyAV decodes a video in a batch: by its format, by the drawn share, or after a refusal."""
        epoch = batch_index // self.num_batches if self.views.train else 0
        if self.decoders.chooses_pyav(self.infos[index], self.seed, epoch, index):
            return True
        return self.faults.is_known(index, REFUSED, batch_index)

    def sample_at(self, batch_index: int, slot: int) -> tuple[int, Status, int]:
        """Return the video in a slot of a batch, whether it only fills the batch, and which of its copies it is."""
        epoch, batch_in_epoch = divmod(batch_index, self.num_batches)
        position = order.epoch_position(batch_in_epoch, slot, self.batch_size, self.world.rank, self.world.size)
        num_samples = len(self.videos)
        if self.views.train:
            shuffled = order.shuffled_index(num_samples, self.seed, epoch, position), 0
            index, occurrence = self.balance.at(epoch, position) if self.balance else shuffled
            return index, Status.OK, occurrence
        return min(position, num_samples - 1), Status.OK if position < num_samples else Status.PADDING, 0

    def reason(self, index: int) -> str:
        """Say why a video could not be read. Slow: reads it once more."""
        if self.infos[index].error:
            return self.infos[index].error
        try:
            self._load(index, np.random.default_rng(0), by_pyav=True)
        except ValueError as error:
            return str(error).removeprefix(f"{self.videos[index].path}: ")
        return "the decoder failed on it"

    def choose_frames(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Choose frame numbers (clips, frames) in the entry's part of the video. Raises ValueError as part_of()."""
        v, info, entry = self.views, self.infos[index], self.videos[index]
        first, count = self.part_of(index) if entry.is_part else (0, info.num_frames)
        stride = temporal.stride_in_frames(v.frame_stride, v.fps, info.fps)
        if v.sampling == "tsn":
            stride = count / v.num_frames
            if v.train:
                frames = np.stack([temporal.random_segments(count, v.num_frames, rng) for _ in range(v.num_clips)])
            else:
                frames = temporal.uniform_segments(count, v.num_frames, v.num_clips)
        elif v.train:
            frames = temporal.random_clips(count, v.num_frames, stride, v.num_clips, v.short_clip, rng)
        else:
            frames = temporal.uniform_clips(count, v.num_frames, stride, v.num_clips, v.short_clip, v.clip_placement)
        if v.snap_to_keyframes:
            keyframes = [frame - first for frame in info.keyframes if 0 <= frame - first < count]
            frames = temporal.snap_to_keyframes(frames, keyframes, stride / 2)
        return frames + first

    def part_of(self, index: int) -> tuple[int, int]:
        """Return the first frame and the number of frames of the part of a video that its entry means."""
        info, entry = self.infos[index], self.videos[index]
        try:
            return temporal.frames_between(info.num_frames, info.fps, entry.start, entry.end, info.frame_times)
        except ValueError as error:
            raise ValueError(f"{entry.path}: {error}") from None

    def is_short(self, index: int) -> bool:
        """Tell whether a readable video, or the part of it that its entry means, has fewer frames than a clip spans."""
        v, info = self.views, self.infos[index]
        if info.error or v.sampling == "tsn":  # segments take what there is
            return False
        try:
            _, count = self.part_of(index) if self.videos[index].is_part else (0, info.num_frames)
        except ValueError:
            return False
        return count < temporal.span(v.num_frames, temporal.stride_in_frames(v.frame_stride, v.fps, info.fps))

    def choose_box(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the box (4,) of a training clip, or return that of the whole frame."""
        v, info = self.views, self.infos[index]
        if v.crop == "letterbox":
            return spatial.full_frame(info.width, info.height)
        if v.crop == "scale_jitter":
            return spatial.scale_jittered_crop(info.width, info.height, v.image_size, v.short_side_range, rng)
        return spatial.random_resized_crop(info.width, info.height, v.crop_scale, v.crop_ratio, rng)

    def choose_views(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose frames (clips, frames), boxes (crops, 4) of the stored frame, mirror (crops,); training draws them."""
        v, info = self.views, self.infos[index]
        frames = self.choose_frames(index, rng)
        if v.train:
            draws = [(self.choose_box(index, rng), spatial.flip(v.hflip, rng)) for _ in range(v.aug_repeats)]
            boxes, mirror = np.stack([box for box, _ in draws]), np.array([flip for _, flip in draws], np.int32)
        else:
            mirror = np.zeros(1, np.int32)
            if v.crop == "letterbox":
                boxes = self.choose_box(index, rng)[None]
            else:
                boxes = spatial.view_boxes(info.width, info.height, v.image_size, v.eval_short_side, v.num_crops)
        return frames, spatial.to_stored_orientation(boxes, info.width, info.height, info.rotation), mirror

    def _load(self, index: int, rng: np.random.Generator, by_pyav: bool) -> tuple[Any, ...]:
        """Read the arrays of a sample, after by_pyav (also if DALI can be given nothing), num_images and frames."""
        v, info, path = self.views, self.infos[index], self.videos[index].path
        if not is_remote(path) and (current := fingerprint(path)) != (info.size, info.mtime_ns):
            raise ValueError(f"{path}: {'no such file' if current == (0, 0) else CHANGED}")
        frames, boxes, mirror = self.choose_views(index, rng)
        encoded, views = _NOTHING_ENCODED, np.zeros((0,) * 5, np.uint8)
        if not by_pyav:
            try:
                encoded = read_encoded_frames(
                    info, frames.reshape(-1), timeout=self.decode_timeout, trimmed=self.trimmed
                )
            except ValueError as error:
                print(f"{error}; PyAV decodes it instead", file=sys.stderr, flush=True)
                by_pyav = True
        if by_pyav:
            views = decode_views(
                path,
                frames,
                boxes,
                v.image_size,
                scaled_size=self._scaled_size(info),
                letterbox=self.fill if v.crop == "letterbox" else None,
                mirror=mirror if self._mirrors(info) else None,
                timeout=self.decode_timeout,
                table=info.table,
                trimmed=self.trimmed,
            )
            mirror = mirror * (not self._mirrors(info))
            if not self.decoders.uses_dali:
                return by_pyav, 0, frames, views, mirror
        *arrays, num_images = encoded
        return by_pyav, num_images, frames, *arrays, boxes, correction(info.colorspace), views, mirror

    def _mirrors(self, info: VideoInfo) -> bool:
        """Return whether views are mirrored here: where DALI would only mirror and normalize, which takes it longer."""
        v = self.views
        return v.train and not self.decoders.uses_dali and not v.augment and not info.rotation

    def _scaled_size(self, info: VideoInfo) -> tuple[int, int] | None:
        """Return the (width, height) that stored frames are scaled to before views are cut out; None in training."""
        v = self.views
        if v.train or v.crop == "letterbox":
            return None
        width, height = spatial.scaled_size(info.width, info.height, v.eval_short_side)
        return (height, width) if info.rotation % 2 else (width, height)
