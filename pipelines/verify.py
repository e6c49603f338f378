"""Decode whole files, and name what is broken or unusual about each: for `python -m pipelines.index LIST --verify`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.host import wanted_frames
from pipelines.kept import Reading, refresh
from pipelines.lists import Clip
from pipelines.places import stamp
from pipelines.video import Video

VERSION = 1  # of what a finding says


@dataclass(frozen=True)
class Finding:
    """What a decode of the whole file showed: `broken` says why it cannot be used as it is, if it cannot."""

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


def examine(path: str) -> Finding:
    """Decode all of a file; never raises for a bad one."""
    size, changed = stamp(path)
    try:
        with Video(path) as video:
            frames, context = video.pictures.frames, video.stream.codec_context
            if not len(frames):
                raise ValueError(f"{path}: no picture of the video is ever shown")
            damaged, turns = [], 0
            for frame, places in wanted_frames(video, range(len(frames))):
                turns = round(frame.rotation / 90) % 4
                damaged += places if frame.is_corrupt else []
            if damaged:
                raise ValueError(f"{path}: {len(damaged)} frames are damaged, the first is frame {min(damaged)}")
            high = video.height > video.width
            return Finding(
                path, size, changed, "", len(frames), turns, high != (turns % 2 == 1) and video.height != video.width,
                video.variable_rate, context.pix_fmt or "", VERSION,
            )  # fmt: skip
    except ValueError as error:
        return broken(path, str(error))


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
