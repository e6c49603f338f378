"""Build the index of a list: what each of its files contains, kept beside the list."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipelines.data.annotations import cache_stem
from pipelines.data.cache import Scanner, update_cache
from pipelines.data.dataset import VideoEntry
from pipelines.decode.image_folder import is_image_folder
from pipelines.decode.video_info import VERSION, VideoInfo, read_video_info, unreadable_video_info
from pipelines.storage import is_remote
from utils.paused_gc import paused_gc

# What the system says of a file that it cannot read now.
_PASSING_ERRORS = {
    os.strerror(number)
    for number in (
        errno.EACCES,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EPERM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    )
}


@paused_gc()
def build_index(videos: Sequence[VideoEntry], cache: str | Path, workers: int | None = None) -> list[VideoInfo]:
    """Return the metadata of each video, in the order of the list; read the files that `cache` does not have.

    `workers` is the number of processes (None: one per core).
    """
    infos = update_cache([video.path for video in videos], Path(cache), video_scanner(), workers)
    return [infos[video.path] for video in videos]


def video_scanner() -> Scanner[VideoInfo]:
    """Return the scanner that reads VideoInfo from files."""
    return Scanner(
        name="index",
        entry_type=VideoInfo,
        version=VERSION,
        scan=read_video_info,
        failed=unreadable_video_info,
        is_valid=_is_valid,
    )


def _is_valid(info: VideoInfo) -> bool:
    """Return False for what could not be read and may be readable now, though its fingerprint is the same: a remote
    file, as of the network; a folder, in which an image may have been repaired; a file that the system refused."""
    if not info.error:
        return True
    return not (info.error in _PASSING_ERRORS or is_remote(info.path) or is_image_folder(info.path))


def cache_path(list_path: str | Path, kind: str = "index.jsonl") -> Path:
    """Return where the index of a list or class folder is kept, or another `kind` of file about it."""
    return Path(f"{cache_stem(str(list_path))}.{kind}")


def coverage(infos: Sequence[VideoInfo]) -> str:
    """Describe how much of a list can be used: videos found, missing and unusable, hours, proofs of frame tables."""
    bad = [info for info in infos if info.error]
    num_bad, num_missing = len(bad), sum(info.missing for info in bad)
    hours = sum([info.num_frames / info.fps for info in infos if info.fps]) / 3600
    proofs = Counter([info.proof for info in infos if not info.error])
    proven = ", ".join(f"{proofs[proof]} {proof}" for proof in ("bitstream", "decoded", "sequential") if proofs[proof])
    return (
        f"{len(infos)} videos, {len(infos) - num_missing} found, {num_missing} missing, "
        f"{num_bad - num_missing} unusable, {hours:.2f} hours" + (f", frame tables: {proven}" if proven else "")
    )


def summary(infos: Sequence[VideoInfo]) -> str:
    """Describe a list in one line: coverage, frames, codecs and frame sizes."""
    usable = [info for info in infos if not info.error]
    num_frames = sum(info.num_frames for info in usable)
    codecs = sorted({info.codec for info in usable})
    num_sizes = len({(info.width, info.height) for info in usable})
    return f"{coverage(infos)}, {num_frames} frames, codecs: {', '.join(codecs) or 'none'}, {num_sizes} frame sizes"
