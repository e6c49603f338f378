"""Decode whole files, compare clips of them with it, and name what is broken or unusual about each file.

For `python -m pipelines.index LIST --verify`. `dali_verify` does the same for DALI's decoders.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.data.cache import Reading, refresh
from pipelines.data.dataset import Clip
from pipelines.decode.demuxer import Video
from pipelines.decode.frames import decode_frames, frame_digest
from pipelines.decode.prove import WholeDecode, decode_whole, open_video
from pipelines.decode.trim import trim
from pipelines.sampling.temporal import random_clip
from pipelines.storage import stamp

CLIPS = ((16, 4), (8, 32))  # frames and stride of clips that are compared, drawn like training's
_DRAWS = 2  # of each
VERSION = 2  # of what a finding says


@dataclass(frozen=True)
class Finding:
    """What a decode of the whole file showed: `broken` says why it cannot be used as it is, if it cannot.

    A file is broken, too, if a clip of it is not bit for bit what the whole decode gave.
    """

    path: str
    size: int = 0
    changed: int = 0
    broken: str = ""
    num_frames: int = 0
    turns: int = 0
    portrait: bool = False  # as it is shown
    variable_rate: bool = False
    pixel_format: str = ""
    version: int = 0

    def notes(self, short: int) -> list[str]:
        """In words; `short`: frames below which a video is short."""
        if self.broken:
            return [f"broken: {self.broken}"]
        found = {
            f"short: {self.num_frames} frames": self.num_frames < short,
            "variable rate": self.variable_rate,
            f"rotated: {90 * self.turns} degrees": bool(self.turns),
            "portrait": self.portrait,
            f"pixel format: {self.pixel_format}": self.pixel_format not in ("yuv420p", "yuvj420p"),
        }
        return [words for words, applies in found.items() if applies]


def verify(clips: Sequence[Clip], cache: str | Path, workers: int | None = None) -> list[Finding]:
    """A finding for each clip, in the list's order; what `cache` holds of an earlier time is not decoded again."""
    reading = Reading(Finding, VERSION, examine, broken, "verify", pool_from=8)
    found = refresh([clip.path for clip in clips], Path(cache), reading, workers)
    return [found[clip.path] for clip in clips]


def examine(path: str, draws: int = _DRAWS) -> Finding:
    """Decode all of a file, and clips of it trimmed and whole; never raises for a bad one.

    `draws` of each of CLIPS are compared.
    """
    size, changed = stamp(path)
    try:
        with open_video(path) as video:
            whole = decode_whole(video)
            _compare_all(video, whole)
            table, num_frames = video.table(), video.frame_table.num_frames
            variable_rate, pixel_format = video.variable_rate, whole.first.format.name
        for clip in drawn_clips(num_frames, draws):
            _compare_clip(path, table, clip, whole.digests)
        turns = round(whole.first.rotation / 90) % 4
        width, height = whole.first.width, whole.first.height
        portrait = height != width and (height > width) != (turns % 2 == 1)
        return Finding(path, size, changed, "", num_frames, turns, portrait, variable_rate, pixel_format, VERSION)
    except ValueError as error:
        return broken(path, str(error))


def drawn_clips(num_frames: int, draws: int) -> list[np.ndarray]:
    """Frame numbers of clips, drawn as in training."""
    rng = np.random.default_rng(0)
    return [random_clip(num_frames, *clip, "loop", rng) for clip in CLIPS for _ in range(draws)]


def _compare_all(video: Video, whole: WholeDecode) -> None:
    """ValueError if the frame table does not give the frames of the whole decode, or if some are damaged."""
    if whole.change:
        raise ValueError(f"{video.name}: {whole.change}")
    digests: dict[int, bytes] = {}
    damaged: list[int] = []
    with video.reopened() as (_, stream):
        numbers = range(video.frame_table.num_frames)
        for frame, (number,) in decode_frames(video, numbers, context=stream.codec_context):
            digests[number] = frame_digest(frame)
            damaged += [number] if frame.is_corrupt else []
    if damaged or whole.damaged:
        damaged = sorted({*damaged, *whole.damaged})
        raise ValueError(f"{video.name}: {len(damaged)} frames are damaged, the first is frame {damaged[0]}")
    if whole.num_failed:
        raise ValueError(f"{video.name}: {whole.num_failed} of its packets cannot be decoded")
    if len(digests) != len(whole.digests):
        raise ValueError(
            f"{video.name}: it has {len(digests)} frames, a decode of the whole gives {len(whole.digests)}"
        )
    _report(video.name, "all", [number for number, digest in enumerate(whole.digests) if digests[number] != digest])


def _compare_clip(path: str, table: str, clip: np.ndarray, digests: Sequence[bytes]) -> None:
    """ValueError if a clip is not that of the whole decode, as PyAV decodes it or in the file that DALI is given."""
    for trimmed in (True, False):
        with Video(path, table=table) as video:
            differing = [
                int(clip[places[0]])
                for frame, places in decode_frames(video, clip, trimmed)
                if any(frame_digest(frame) != digests[min(clip[place], len(digests) - 1)] for place in places)
            ]
        _report(path, f"PyAV, {'trimmed' if trimmed else 'from the first'}", differing)
    data, positions = trim(path, clip, table=table)
    with Video(data) as small:
        given = decode_whole(small).digests
    _report(path, "the trimmed file", [
        int(number) for number, position in zip(clip, positions, strict=True)
        if position >= len(given) or given[position] != digests[min(number, len(digests) - 1)]
    ])  # fmt: skip


def _report(path: str, way: str, differing: Sequence[int]) -> None:
    if differing:
        raise ValueError(f"{path}: {len(differing)} frames differ from those of a decode of the whole file "
                         f"({way}), the first is frame {min(differing)}")  # fmt: skip


def broken(path: str, reason: str) -> Finding:
    return Finding(path, *stamp(path), reason.removeprefix(f"{path}: "), version=VERSION)


def write_findings(findings: Sequence[Finding], short: int, path: str | Path) -> str:
    """path,finding lines of the files that something is to be said of; returns how many of each kind in a line."""
    counts: Counter[str] = Counter()
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "finding"])
        for finding in dict.fromkeys(findings):
            for words in finding.notes(short):
                counts[words.partition(":")[0]] += 1
                table.writerow([finding.path, words])
    shown = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
    return f"{len(dict.fromkeys(findings))} files decoded: {shown or 'nothing to say'}"
