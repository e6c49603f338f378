"""Measure what decoding a clip costs, for the report of `python -m pipelines.prepare`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.decode.frame_table import count_decoded
from pipelines.decode.image_folder import ImageFolder, is_image_folder, list_images
from pipelines.decode.prove import open_frames
from pipelines.decode.pyav_decoder import decode_views
from pipelines.sampling.spatial import view_boxes
from pipelines.sampling.temporal import random_clip
from pipelines.storage import fingerprint


class DecodingCost(NamedTuple):
    """The cost of decoding one clip of each of some files."""

    decoded_frames: float  # mean per clip
    clips_per_s: float


def measure_decoding(paths: Sequence[str], size: int, clip: tuple[int, int]) -> DecodingCost:
    """Decode a clip (num_frames, frame_stride) of each video or folder of images, and its central square of `size`."""
    num_decoded, seconds = 0, 0.0
    for path in paths:
        with open_frames(path) as video:
            rng = np.random.default_rng(0)
            if isinstance(video, ImageFolder):
                first = video.decode(0)
                width, height = first.width, first.height
                numbers = random_clip(video.num_frames, *clip, "wrap", rng)
                num_decoded += len(np.unique(numbers))
            else:
                width, height = video.width, video.height
                numbers = random_clip(video.frame_table.num_frames, *clip, "wrap", rng)
                num_decoded += count_decoded(video.frame_table, numbers)
        start = time.perf_counter()
        decode_views(path, numbers[None], view_boxes(width, height, size, size, 1), size)
        seconds += time.perf_counter() - start
    return DecodingCost(num_decoded / len(paths), len(paths) / seconds)


def stored_bytes(path: str) -> int:
    """Return the size of a video file, or of all images of a folder."""
    if is_image_folder(path):
        return sum(os.path.getsize(os.path.join(path, name)) for name in list_images(path))
    return fingerprint(path).size
