"""Read what DALI decodes for a sample: a video, trimmed to the requested frames, or the encoded images of a folder."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipelines.decode.bitstream.parameter_sets import SPS
from pipelines.decode.image_folder import ImageFolder
from pipelines.decode.trim import trim
from pipelines.decode.video_info import VideoInfo
from pipelines.storage import read_bytes


class EncodedFrames(NamedTuple):
    """The frames that a sample needs, each once, in one buffer; requested frame i is distinct frame `order[i]`."""

    data: np.ndarray  # (bytes,) uint8: a video file, or images one after the other
    positions: np.ndarray  # int32: numbers of the K frames in the file, ascending; or the K + 1 bounds of the images
    order: np.ndarray  # (clips * frames,) int32
    num_images: int  # K; 0: `data` is a video file


def read_encoded_frames(
    info: VideoInfo, frames: np.ndarray, *, timeout: float = math.inf, trimmed: bool = True
) -> EncodedFrames:
    """Read the requested frames, numbers (clips * frames,), of an indexed video or folder of images.

    Without `trimmed` a video is read whole. Raises ValueError for what cannot be read within `timeout` seconds.
    """
    if info.is_image_folder:
        return _read_images(info, frames, timeout)
    data, all_positions = _trim(info, frames, timeout) if trimmed else (read_bytes(info.path), frames)
    positions, order = np.unique(all_positions, return_inverse=True)
    return EncodedFrames(np.frombuffer(data, np.uint8), positions.astype(np.int32), order.astype(np.int32), 0)


def _read_images(info: VideoInfo, frames: np.ndarray, timeout: float) -> EncodedFrames:
    with ImageFolder(info.path, timeout=timeout, table=info.table) as folder:
        numbers, order = np.unique(folder.clamp(frames), return_inverse=True)
        images = [folder.read(number) for number in numbers.tolist()]
    bounds = np.cumsum([0, *map(len, images)])
    data = np.frombuffer(b"".join(images), np.uint8)
    return EncodedFrames(data, bounds.astype(np.int32), order.astype(np.int32), len(images))


def _trim(info: VideoInfo, frames: np.ndarray, timeout: float) -> tuple[bytes, np.ndarray]:
    """Return the trimmed file, and the positions of the frames in it."""
    stored_size = (info.height, info.width) if info.rotation % 2 else (info.width, info.height)
    coded_size = (info.coded_width, info.coded_height)
    # NVDEC's sessions are found again by the coded size, and DALI looks for chroma by the one that is shown, so the
    # file that it is given shows all that is coded. Boxes refer to what was shown before.
    uncropped = info.codec in SPS and coded_size != stored_size
    return trim(
        info.path,
        frames,
        timeout=timeout,
        table=info.table,
        coded_size=coded_size if uncropped else None,
    )
