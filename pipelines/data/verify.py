"""Decode whole files, compare trimmed clips with them bit for bit, and report what is broken or unusual in each file.

For `python -m pipelines.index LIST --verify`; `pipelines.dali_verify` does the same with DALI's decoders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from pipelines.data.cache import Scanner, update_cache
from pipelines.data.dataset import VideoEntry
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.frames import decode_frames, frame_digest
from pipelines.decode.image_folder import ImageFolder, is_image_folder
from pipelines.decode.pack_table import pack_table
from pipelines.decode.prove import WholeDecode, decode_whole, open_video
from pipelines.decode.trim import trim
from pipelines.sampling.temporal import random_clip
from pipelines.storage import Fingerprint, fingerprint
from utils.files import write_csv

CLIPS = ((16, 4), (8, 32))  # num_frames and frame_stride of the clips that are compared
_DRAWS = 2  # clips of each kind
VERSION = 3  # of the fields of CheckResult
_USUAL_PIX_FMTS = ("yuv420p", "yuvj420p")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of decoding a whole file. `broken` is the reason why the file cannot be used, or empty.

    A file is also broken if a clip of it is not bit-identical to the same frames of the whole decode.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    broken: str = ""
    num_frames: int = 0
    rotation: int = 0  # quarter turns, counterclockwise, by which players rotate the frames
    portrait: bool = False  # after rotation
    variable_rate: bool = False
    pix_fmt: str = ""
    version: int = 0

    def notes(self, min_frames: int) -> list[str]:
        """Describe what is broken or unusual; a video of fewer than `min_frames` frames is short."""
        if self.broken:
            return [f"broken: {self.broken}"]
        applies = {
            f"short: {self.num_frames} frames": self.num_frames < min_frames,
            "variable rate": self.variable_rate,
            f"rotated: {90 * self.rotation} degrees": bool(self.rotation),
            "portrait": self.portrait,
            f"pixel format: {self.pix_fmt}": self.pix_fmt not in _USUAL_PIX_FMTS,
        }
        return [note for note in applies if applies[note]]


def verify(videos: Sequence[VideoEntry], cache: str | Path, workers: int | None = None) -> list[CheckResult]:
    """Check each video, in the order of the list; files whose result is in `cache` are not decoded again."""
    scanner = Scanner(
        name="verify",
        entry_type=CheckResult,
        version=VERSION,
        scan=check_video,
        failed=failed_check,
        is_valid=_is_valid,
        min_files_for_pool=8,
    )
    results = update_cache([video.path for video in videos], Path(cache), scanner, workers)
    return [results[video.path] for video in videos]


def _is_valid(result: CheckResult) -> bool:
    """Return False for a broken folder: repairing an image in it does not change its fingerprint."""
    return not (result.broken and is_image_folder(result.path))


def check_video(path: str, draws: int = _DRAWS) -> CheckResult:
    """Decode a whole file, and `draws` clips of each kind in CLIPS with and without trimming; never raises.

    Of a folder every image is decoded, each by itself, so there are no clips to compare.
    """
    before = fingerprint(path)
    try:
        if is_image_folder(path):
            with ImageFolder(path) as folder:
                first = folder.decode(0)
                for number in range(1, folder.num_frames):
                    folder.decode(number)
            return _describe(path, before, first, folder.num_frames)
        with open_video(path) as video:
            whole = decode_whole(video)
            _compare_all_frames(video, whole)
            table, num_frames = pack_table(video), video.frame_table.num_frames
            variable_rate = video.has_variable_frame_rate
        for clip in draw_clips(num_frames, draws):
            _compare_clip(path, table, clip, whole.digests)
    except ValueError as error:
        return failed_check(path, str(error))
    return _describe(path, before, whole.first_frame, num_frames, variable_rate)


def _describe(
    path: str, file: Fingerprint, first: av.VideoFrame, num_frames: int, variable_rate: bool = False
) -> CheckResult:
    """Return the result of a video that can be used."""
    rotation = round(first.rotation / 90) % 4
    is_stored_upright = rotation % 2 == 0
    return CheckResult(
        path=path,
        size=file.size,
        mtime_ns=file.mtime_ns,
        num_frames=num_frames,
        rotation=rotation,
        portrait=first.height > first.width if is_stored_upright else first.width > first.height,
        variable_rate=variable_rate,
        pix_fmt=first.format.name,
        version=VERSION,
    )


def failed_check(path: str, reason: str) -> CheckResult:
    """Return the result of a file that is broken."""
    size, mtime_ns = fingerprint(path)
    broken = reason.removeprefix(f"{path}: ")
    return CheckResult(path=path, size=size, mtime_ns=mtime_ns, broken=broken, version=VERSION)


def draw_clips(num_frames: int, draws: int) -> list[np.ndarray]:
    """Draw `draws` clips of each kind in CLIPS as training does; return their frame numbers."""
    rng = np.random.default_rng(0)
    return [random_clip(num_frames, *clip, "wrap", rng) for clip in CLIPS for _ in range(draws)]


def _compare_all_frames(video: VideoDemuxer, whole: WholeDecode) -> None:
    """Raise ValueError if the frame table does not give the frames of the whole decode, or if frames are damaged."""
    if whole.format_change:
        raise ValueError(f"{video.name}: {whole.format_change}")
    digests: dict[int, bytes] = {}
    damaged = set(whole.damaged_frames)
    with video.reopen() as (_, stream):
        all_numbers = range(video.frame_table.num_frames)
        for frame, (number,) in decode_frames(video, all_numbers, context=stream.codec_context):
            digests[number] = frame_digest(frame)
            if frame.is_corrupt:
                damaged.add(number)
    if damaged:
        raise ValueError(f"{video.name}: {len(damaged)} frames are damaged, the first is frame {min(damaged)}")
    if whole.num_refused_packets:
        raise ValueError(f"{video.name}: {whole.num_refused_packets} of its packets cannot be decoded")
    if len(digests) != len(whole.digests):
        raise ValueError(
            f"{video.name}: the frame table has {len(digests)} frames, a decode of the whole file gives "
            f"{len(whole.digests)}"
        )
    differing = [number for number, digest in enumerate(whole.digests) if digests[number] != digest]
    _raise_if_differing(video.name, "all frames", differing)


def _compare_clip(path: str, table: str, clip: np.ndarray, digests: Sequence[bytes]) -> None:
    """Raise ValueError if a clip differs from the whole decode: decoded by PyAV, or in the file that DALI is given."""
    expected = [digests[min(number, len(digests) - 1)] for number in clip]
    for trimmed in (True, False):
        with VideoDemuxer(path, table=table) as video:
            differing = [
                int(clip[positions[0]])
                for frame, positions in decode_frames(video, clip, trimmed)
                if any(frame_digest(frame) != expected[position] for position in positions)
            ]
        _raise_if_differing(path, f"PyAV, {'trimmed' if trimmed else 'from the first frame'}", differing)
    data, positions = trim(path, clip, table=table)
    with VideoDemuxer(data) as trimmed_file:
        actual = decode_whole(trimmed_file).digests
    differing = [
        int(number)
        for number, position, digest in zip(clip, positions, expected, strict=True)
        if position >= len(actual) or actual[position] != digest
    ]
    _raise_if_differing(path, "the trimmed file", differing)


def _raise_if_differing(path: str, method: str, differing: Sequence[int]) -> None:
    if differing:
        raise ValueError(
            f"{path}: {len(differing)} frames differ from those of a decode of the whole file "
            f"({method}), the first is frame {min(differing)}"
        )


def write_results(results: Sequence[CheckResult], min_frames: int, path: str | Path) -> str:
    """Write a CSV file with the notes about each file; return a line with the number of notes of each kind."""
    distinct = list(dict.fromkeys(results))
    notes = [(result.path, note) for result in distinct for note in result.notes(min_frames)]
    write_csv(Path(path), ["path", "note"], notes)
    counts = Counter(note.partition(":")[0] for _, note in notes)
    described = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
    return f"{len(distinct)} files decoded: {described or 'nothing unusual'}"
