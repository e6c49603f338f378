"""What one sample of a batch is fed to the DALI graph: runs in worker processes, so it imports neither torch nor DALI.

A source is a pure function of its settings and the sample's place in the run. Every random number of a sample is drawn
here, from a generator seeded with (seed, epoch, row), so the stream of batches does not depend on the number of workers
or on where a run was interrupted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from pipelines.data.dataset import Clip
from pipelines.decode.bitstream.parameter_sets import SPS
from pipelines.decode.color import correction
from pipelines.decode.decoder_choice import Decoders
from pipelines.decode.demuxer import CHANGED
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.trim import trim
from pipelines.decode.video_info import Row
from pipelines.known_faults import REFUSED, UNREADABLE, Faults
from pipelines.sampling import order, spatial, temporal
from pipelines.sampling.rand_augment import Augment
from pipelines.storage import is_remote, read, stamp
from utils.distributed import World
from utils.workers import end_with_parent

_MOST_REPLACEMENTS = 100  # videos in a row that cannot be read: no longer a few bad files


class Status(IntEnum):
    OK = 0
    REPLACED = 1  # train: the video of `row` could not be read, `used` stands in its place
    FAILED = 2  # eval: the video of `row` could not be read, the pictures are of `used` and must not be scored
    PADDING = 3  # eval: fills the last batch, must not be scored


class Info(NamedTuple):
    """The int64 vector that travels beside the pictures."""

    step: int
    row: int
    used: int
    status: int
    label: int
    scored: int  # `used`, or -1 if it must not be scored
    by_pyav: int  # 1 if PyAV decoded the views, 0 if DALI is given a trimmed file
    turns: int = 0  # quarter turns, anticlockwise, that the pictures still need, and then
    mirror: int = 0  # bit i: whether view i is to be mirrored; 0 for pictures without turns, which are mirrored already


class Unreadable(RuntimeError):
    """More videos than chance allows cannot be read."""


@dataclass(frozen=True)
class Views:
    """What is made of a video. Train: one random clip, a random crop. Eval: clips x crops, nothing random."""

    frames: int
    stride: int
    size: int
    short: str
    train: bool
    fps: float = 0.0
    sampling: str = "clip"
    snap: str = ""
    crop: str = "resized"
    short_sides: tuple[float, float] = (1.0, 1.0)
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    augment: Augment = Augment()
    repeats: int = 1  # views of each decoded clip
    clips: int = 1
    place: str = "spread"
    crops: int = 1
    short_side: int = 0  # eval; 0: size


@dataclass(frozen=True)
class Source:
    """Called by DALI with a sample's place (SampleInfo), returns its arrays; `start` is the step of iteration 0."""

    clips: Sequence[Clip]  # these two packed, or every worker is sent all of them
    rows: Sequence[Row]
    views: Views
    batch: int
    seed: int
    world: World
    decoders: Decoders
    faults: Faults
    trimmed: bool = True  # False: from the first frame (bench only)
    start: int = 0
    fill: tuple[int, int, int] = (0, 0, 0)  # RGB around letterboxed frames
    seconds: float = math.inf  # that a file may take
    accumulate: int = 1  # batches of an optimiser step, of which an epoch has whole ones

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        if self.views.train:
            return order.train_steps(len(self.clips), self.batch, self.world.size, self.accumulate)
        return order.eval_steps(len(self.clips), self.batch, self.world.size)

    def __call__(self, place: Any) -> tuple[np.ndarray, ...]:
        end_with_parent()
        return self.sample(self.start + place.iteration, place.idx_in_batch)

    def sample(self, step: int, slot: int, refused: Collection[int] = ()) -> tuple[np.ndarray, ...]:
        """The arrays of one sample.

        Where DALI decodes none of the videos: views (V, C, T, H, W) uint8, mirror (V,), Info (9,). Else: the trimmed
        file's bytes, positions (K,) of its wanted frames, ascending, their order (clips * frames,), boxes (crops, 4),
        color matrix (3, 3), views, mirror, Info; of file and views one is empty, as Info's `by_pyav` says. Before
        mirror: what Augment draws, (V, ...) each. `step` counts over all epochs; `refused` are rows that DALI has just
        refused.
        """
        row, status = self.row_of(step, slot)
        epoch = step // self.steps
        used = row
        for attempt in range(_MOST_REPLACEMENTS):
            # Every attempt has a generator of its own: to remember a video that cannot be read changes no draw.
            rng = order.generator(self.seed, epoch if self.views.train else 0, row, attempt)
            if attempt:
                used = int(rng.integers(len(self.clips)))
            try:
                if self.rows[used].error or self.faults.is_known(used, UNREADABLE, step):
                    raise ValueError
                by_pyav = used in refused or self.chooses_pyav(used, step)
                by_pyav, *arrays, mirror = self._load(used, rng, by_pyav)
                break
            except ValueError:
                if status is Status.OK:
                    status = Status.REPLACED if self.views.train else Status.FAILED
        else:
            raise Unreadable(
                f"{_MOST_REPLACEMENTS} videos in a row cannot be read, the last is {self.clips[used].path}"
            )
        v, turns = self.views, self.rows[used].turns
        if v.augment:
            arrays += map(np.stack, zip(*(v.augment.draw(rng) for _ in range(v.repeats)), strict=True))
        late = int((mirror << np.arange(len(mirror))).sum()) if turns else 0
        label = self.clips[used if v.train else row].label
        scored = used if status in (Status.OK, Status.REPLACED) else -1
        info = Info(step, row, used, status, label, scored, int(by_pyav), turns, late)
        return *arrays, mirror * (not turns), np.array(info, np.int64)

    def chooses_pyav(self, row: int, step: int) -> bool:
        """Tell whether PyAV decodes a video in a batch: by format, by the share that is drawn, or after a refusal."""
        epoch = step // self.steps if self.views.train else 0
        if self.decoders.chooses_pyav(self.rows[row], self.seed, epoch, row):
            return True
        return self.faults.is_known(row, REFUSED, step)

    def row_of(self, step: int, slot: int) -> tuple[int, Status]:
        """Which video stands there, or that it only fills the batch."""
        epoch, step_in_epoch = divmod(step, self.steps)
        place = order.position(step_in_epoch, slot, self.batch, self.world.rank, self.world.size)
        if self.views.train:
            return order.train_sample(len(self.clips), self.seed, epoch, place), Status.OK
        return min(place, len(self.clips) - 1), Status.OK if place < len(self.clips) else Status.PADDING

    def reason(self, row: int) -> str:
        """Why a video could not be read; slow, for the one that was named."""
        if self.rows[row].error:
            return self.rows[row].error
        try:
            self._load(row, np.random.default_rng(0), by_pyav=True)
        except ValueError as error:
            return str(error).removeprefix(f"{self.clips[row].path}: ")
        return "the decoder failed on it"

    def choose_frames(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """(clips, frames) frame numbers; training draws them."""
        v, known = self.views, self.rows[row]
        stride = temporal.stride_at(v.stride, v.fps, known.fps)
        if v.sampling == "segments":
            clips = temporal.uniform_segments(known.num_frames, v.frames, v.clips)
            frames = temporal.random_segments(known.num_frames, v.frames, rng)[None] if v.train else clips
            stride = known.num_frames / v.frames
        elif v.train:
            frames = temporal.random_clip(known.num_frames, v.frames, stride, v.short, rng)[None]
        else:
            frames = temporal.uniform_clips(known.num_frames, v.frames, stride, v.clips, v.short, v.place)
        return temporal.snap(frames, known.keyframes, stride / 2) if v.snap else frames

    def choose_box(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """(4,) the box of a training clip, drawn; or the whole frame."""
        v, known = self.views, self.rows[row]
        if v.crop == "letterbox":
            return spatial.whole_frame(known.width, known.height)
        if v.crop == "jitter":
            return spatial.jittered_crop(known.width, known.height, v.size, v.short_sides, rng)
        return spatial.random_resized_crop(known.width, known.height, v.scale, v.ratio, rng)

    def choose(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(clips, frames) frame numbers, (crops, 4) boxes of the stored frame, mirror (V,); training draws them."""
        v, known = self.views, self.rows[row]
        frames = self.choose_frames(row, rng)
        if v.train:
            drawn = [(self.choose_box(row, rng), spatial.flip(v.flip, rng)) for _ in range(v.repeats)]
            boxes, mirror = np.stack([box for box, _ in drawn]), np.array([flip for _, flip in drawn], np.int32)
        else:
            boxes = spatial.view_boxes(known.width, known.height, v.size, v.short_side or v.size, v.crops)
            if v.crop == "letterbox":
                boxes = self.choose_box(row, rng)[None]
            mirror = np.zeros(1, np.int32)
        return frames, spatial.stored(boxes, known.width, known.height, known.turns), mirror

    def _load(self, row: int, rng: np.random.Generator, by_pyav: bool) -> tuple[Any, ...]:
        """Read what a sample is fed; first, who decodes it: PyAV also does where no file can be made for DALI."""
        v, known, path = self.views, self.rows[row], self.clips[row].path
        if not is_remote(path) and stamp(path) != (known.size, known.changed):
            raise ValueError(f"{path}: {'no such file' if stamp(path) == (0, 0) else CHANGED}")
        frames, boxes, mirror = self.choose(row, rng)
        data, views = np.zeros(1, np.uint8), np.zeros((0,) * 5, np.uint8)
        positions = frame_order = np.zeros(1, np.int32)
        if not by_pyav:
            try:
                data, every = self._trim(row, frames.reshape(-1))
                positions, inverse = np.unique(every, return_inverse=True)
                frame_order = inverse.astype(np.int32)
            except ValueError as error:
                print(f"{error}; PyAV decodes it instead", file=sys.stderr, flush=True)
                by_pyav = True
        if by_pyav:
            letterbox = self.fill if v.crop == "letterbox" else None
            views = decode_views(path, frames, boxes, v.size, letterbox, self.seconds, known.table, self.trimmed)
            if not self.decoders.uses_dali:
                return by_pyav, views, mirror
        return by_pyav, data, positions, frame_order, boxes, correction(known.colorspace), views, mirror

    def _trim(self, row: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The file that DALI is given, and where the frames are in it."""
        known, path = self.rows[row], self.clips[row].path
        if not self.trimmed:
            return np.frombuffer(read(path)[0], np.uint8), frames.astype(np.int32)
        stored_size = (known.height, known.width) if known.turns % 2 else (known.width, known.height)
        coded_size = (known.coded_width, known.coded_height)
        # NVDEC's sessions are found again by the coded size, and DALI looks for chroma by the one that is shown: the
        # file that it is given shows all that is coded. Boxes lie in what was shown before.
        uncropped = known.codec in SPS and coded_size != stored_size
        data, positions = trim(path, frames, self.seconds, known.table, coded_size if uncropped else None)
        return np.frombuffer(data, np.uint8), positions
