"""The numbers that travel with each sample from the workers through DALI to its batch."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Status(IntEnum):
    """The outcome of reading a sample."""

    OK = 0
    REPLACED = 1  # train: the video could not be read, and another one took its place
    FAILED = 2  # eval: the video could not be read; the frames are of another one and must not be scored
    PADDING = 3  # eval: fills the last batch and must not be scored


class SampleMeta(NamedTuple):
    """Numbers that travel beside the frames of a sample, as a vector of int64."""

    batch_index: int  # counted over all epochs
    sample_index: int  # line of the list
    used_index: int  # line of the video that the frames are of
    status: int
    label: int
    scored_index: int  # used_index, or -1 if it must not be scored
    by_pyav: int  # 1 if PyAV decoded the views, 0 if DALI is given encoded frames
    num_images: int  # that DALI is given; 0: the encoded frames are a video
    rotation: int = 0  # quarter turns, counterclockwise, that the frames still need, and then
    mirror: int = 0  # bit i: whether crop i is to be mirrored; 0 without rotation, where it is mirrored already
    first_frame: int = 0  # of its clips, in the numbers of the file
    last_frame: int = 0
    occurrence: int = 0  # which copy of this video in the epoch it is; 0 unless classes are balanced
