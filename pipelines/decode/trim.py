"""The packets that the wanted frames need, as a small video in memory. Decoded frames are bit-identical.

A clip of 16 frames out of 300 depends on a fraction of the file: the groups of pictures that hold a wanted frame, only
up to the last wanted picture of each, and without the pictures that nothing refers to. DALI's decoder never seeks, so
what is not trimmed away is decoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from pipelines.decode.frame_table import checked_frames, required_packets
from pipelines.decode.prove import open_video
from pipelines.decode.remux import remux


def trim(
    source: str | os.PathLike[str] | bytes,
    frames: Sequence[int] | np.ndarray,
    seconds: float = math.inf,
    table: str = "",
    coded_size: tuple[int, int] | None = None,
) -> tuple[bytes, np.ndarray]:
    """A video that holds the wanted frames, and where they stand in it.

    `frames` are frame numbers in any order, repeats allowed; a number past the end means the last frame. Returns the
    small file and `positions` (len(frames),) int32: its frame `positions[i]` is `frames[i]` of the source. A video
    whose frames have to be counted, or whose packets make no file of their own, comes back whole. With the `table` that
    an index keeps (`Video.table`) nothing is proven anew, and where it can be only the bytes of those packets are read.
    With `coded_size` (width, height), of H.264 and HEVC, the small file says that all that is coded is shown: what a
    decoder would cut off at the right and the bottom is then part of its frames, and their size that of the decoder's
    surfaces.
    Raises ValueError for a negative number and for a source that is no readable video, or not within `seconds`.
    """
    with open_video(source, seconds, table) as video:
        if video.frame_table.seek_points or not video.frame_table.is_remuxable:
            return video.content(), checked_frames(video.frame_table, frames).astype(np.int32)
        keep, positions = required_packets(video.frame_table, frames)
        return remux(video, keep, coded_size), positions
