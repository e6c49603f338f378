"""Trim a video to the packets that the requested frames depend on, as a small file in memory.

Decoded frames are bit-identical. A clip of 16 frames out of 300 depends on a fraction of the file: the groups of
pictures that hold a requested frame, each only up to its last requested picture and without unreferenced pictures.
DALI's decoder never seeks, so it decodes everything that is not trimmed away.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from pipelines.decode.frame_table import clamp_frame_numbers, required_packets
from pipelines.decode.prove import open_video
from pipelines.decode.remux import remux


def trim(
    source: str | os.PathLike[str] | bytes,
    frames: Sequence[int] | np.ndarray,
    *,
    timeout: float = math.inf,
    table: str = "",
    coded_size: tuple[int, int] | None = None,
) -> tuple[bytes, np.ndarray]:
    """Return a small video that holds the requested frames, and `positions` (len(frames),) int32 of them in it.

    `frames` are frame numbers in any order, repeats allowed; a number past the end means the last frame. Frame
    `positions[i]` of the small video is frame `frames[i]` of the source. A video whose frames have to be counted, or
    whose packets cannot be remuxed, is returned whole. With the packed frame table `table` of an index
    (`pack_table.pack_table`) nothing is proven again, and where possible only the required packets are read.
    `coded_size` (width, height), for H.264 and HEVC, removes the cropping from the small video: its frames then have
    the size of the decoder's surfaces, and show what is normally cut off at the right and the bottom.

    Raises ValueError for a negative frame number, and for a source that cannot be read within `timeout` seconds.
    """
    with open_video(source, timeout=timeout, table=table) as video:
        if video.frame_table.seek_points or not video.frame_table.is_remuxable:
            return video.read_content(), clamp_frame_numbers(video.frame_table, frames).astype(np.int32)
        keep, positions = required_packets(video.frame_table, frames)
        return remux(video, keep, coded_size), positions
