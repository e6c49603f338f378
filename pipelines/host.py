"""The wanted frames decoded on the host by PyAV, for codecs that DALI cannot decode on the device at hand.

Only what the frames depend on is decoded (`trim.needed`), and only the frames themselves are converted to RGB.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import av
import numpy as np

from pipelines.trim import needed, wanted_pictures
from pipelines.video import Video


def decode(source: str | os.PathLike[str] | bytes, frames: Sequence[int] | np.ndarray) -> np.ndarray:
    """(len(frames), H, W, 3) uint8 RGB; frame numbers as in `trim.trim`.

    One thread: the workers are the parallelism. Raises ValueError with the path and the reason for a video that cannot
    be read or a wanted frame that cannot be decoded.
    """
    with Video(source) as video:
        keep, _ = needed(video.pictures, frames)
        wanted = wanted_pictures(video.pictures, frames)
        rows: dict[int, list[int]] = {}  # presentation time -> where the frame goes
        for row, picture in enumerate(wanted.tolist()):
            rows.setdefault(int(video.pictures.pts[picture]), []).append(row)
        clip = np.empty((len(wanted), video.height, video.width, 3), np.uint8)
        for frame in _decode(video, keep):
            if frame.pts not in rows:
                continue
            rgb = frame.to_ndarray(format="rgb24")
            if rgb.shape != clip.shape[1:]:
                raise ValueError(
                    f"{video.name}: the frame size changes from {clip.shape[2]}x{clip.shape[1]} "
                    f"to {rgb.shape[1]}x{rgb.shape[0]} midway"
                )
            clip[rows.pop(frame.pts)] = rgb
            if not rows:
                return clip
        lost = sorted(int(np.asarray(frames)[r[0]]) for r in rows.values())
        raise ValueError(
            f"{video.name}: {len(lost)} of the wanted frames cannot be decoded, the first is frame {lost[0]}"
        )


def _decode(video: Video, keep: np.ndarray):  # -> Iterator[av.VideoFrame]
    context = video.stream.codec_context
    context.thread_type, context.thread_count = "NONE", 1
    for number in keep.tolist():
        packet = video.packets[number]
        packet.pts = int(video.pictures.pts[number])  # not every container carries one
        try:
            yield from context.decode(packet)
        except av.error.FFmpegError:
            continue  # a damaged picture: if it was wanted, decode() says so
    yield from context.decode(None)
