"""Re-encode a data set for training: small frames, short closed groups of pictures, nothing that a clip does not need.

    python -m pipelines.prepare SRC DST [key=value ...]

    SRC          a list in any form that data.train takes, or a class folder;  root=FOLDER as data.root
    DST          a folder: the videos under their old relative paths, as .mp4, and for a list DST/NAME.txt of them
    short=256    short side; both sides are multiples of 16, so that NVDEC's decoders are reused
    codec=h264   or hevc, vp9           crf=20   quality, lower is better; 28 is smaller
    gop=32       a key frame every so many frames, closed
    stride=4     one picture in so many is a reference, so a clip of this stride decodes little else; 1: no B-frames
    fps=0        frames a second (0: the file's own); frames are repeated or dropped where a file's rate varies
    encoder=auto     nvenc where a GPU has it, else x264, x265, libvpx      workers=0  processes (0: one a core)

Pictures are turned upright, colours BT.601 in limited range and tagged so, sound is left out. H.264 is coded without
arithmetic coding (CAVLC): somewhat larger, but decoded by a CPU in much less time. Every file is decoded
whole before it takes its name; what was done is kept in DST/prepared.jsonl, and the same command goes on where it
stopped. The exit status is 1 if a video could not be prepared; those are named.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipelines import storage
from pipelines.data.annotations import base_folder, plain_name, read_entries
from pipelines.data.cache import Reading, refresh
from pipelines.data.dataset import read_list
from pipelines.data.verify import examine
from pipelines.decode.encoder import encode
from pipelines.decode.frame_table import count_decoded
from pipelines.decode.prove import open_video
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.resample import at_constant_rate
from pipelines.decode.video_info import read_row
from pipelines.sampling.spatial import view_boxes
from pipelines.sampling.temporal import random_clip
from utils.cli import parse
from utils.files import replacing

CODERS = {
    "h264": {"preset": "fast", "x264-params": "force-cfr=1:b-pyramid=none:cabac=0"},  # arithmetic decoding is slow
    "hevc": {"preset": "fast", "x265-params": "pools=none:frame-threads=1:log-level=none:b-pyramid=0"},
    "vp9": {"deadline": "good", "cpu-used": "4"},
}
NVENC = {"h264": "h264_nvenc", "hevc": "hevc_nvenc"}
SAMPLE, CLIP = 20, (16, 4)  # files, and frames and stride of a clip, that the closing table is measured on


@dataclass(frozen=True)
class Settings:
    root: str = ""
    short: int = 256
    codec: str = "h264"
    crf: int = 20
    gop: int = 32
    stride: int = 4
    fps: float = 0.0
    encoder: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        for name, words in {"codec": tuple(CODERS), "encoder": ("auto", "nvenc", "software")}.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name}={getattr(self, name)}: expected one of {', '.join(words)}")
        for name, least in dict(short=16, crf=0, gop=1, stride=1, fps=0, workers=0).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if self.short % 16:
            raise ValueError(f"short={self.short}: expected a multiple of 16")

    @property
    def bframes(self) -> int:
        return self.stride - 1 if self.codec != "vp9" else 0

    @property
    def version(self) -> int:
        """Of what a prepared file is: other settings give other files."""
        content = (2, self.short, self.codec, self.crf, self.gop, self.stride, self.fps)
        return zlib.crc32(repr(content).encode())


@dataclass(frozen=True)
class Prepared:
    """One source file, and what became of it; `error` says why nothing did."""

    path: str
    size: int = 0
    changed: int = 0
    target: str = ""
    target_size: int = 0
    num_frames: int = 0
    error: str = ""
    version: int = 0


def prepare_file(settings: Settings, targets: dict[str, str], path: str) -> Prepared:
    """Write one video; never raises for a bad one."""
    size, changed = storage.stamp(path)
    target = Path(targets[path])
    try:
        with open_video(path, any_size=True) as video:
            fps = Fraction(settings.fps).limit_denominator(1001) if settings.fps else video.fps or Fraction(30)
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as temporary:
                frames = at_constant_rate(video, fps, settings.short)
                encoder = NVENC[settings.codec] if settings.encoder == "nvenc" else ""
                encode(temporary, frames, fps, settings.codec, settings.gop, settings.bframes, crf=settings.crf,
                       coder=CODERS[settings.codec], encoder=encoder)  # fmt: skip
                found = examine(str(temporary), draws=0)
                if found.broken:
                    raise ValueError(f"{path}: what was written is broken: {found.broken}")
        size_after = target.stat().st_size
        return Prepared(path, size, changed, str(target), size_after, found.num_frames, "", settings.version)
    except (ValueError, OSError, av.error.FFmpegError) as error:
        return failed(settings, path, str(error))


def failed(settings: Settings, path: str, reason: str) -> Prepared:
    return Prepared(path, *storage.stamp(path), error=reason.removeprefix(f"{path}: "), version=settings.version)


def holds(targets: dict[str, str], fact: Prepared) -> bool:
    """Whether the file is there and where it belongs; what failed is tried again, the disk may have been full."""
    return not fact.error and fact.target == targets.get(fact.path) and storage.stamp(fact.target)[0] > 0


def plan(source: str, target: Path, root: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """-> where each source file goes, and (path, label) lines of the new list in the old one's order."""
    base = base_folder(source, root)
    targets: dict[str, str] = {}
    taken: set[str] = set()
    lines = []
    for clip, entry in zip(read_list(source, root), read_entries(source), strict=True):
        relative = storage.relative(clip.path, base)
        if relative.startswith(".."):
            relative = clip.path.lstrip("/")
        name = str(Path(relative).with_suffix(".mp4"))
        if clip.path not in targets:
            name = name if name not in taken else f"{relative}.mp4"  # a.avi beside a.mp4
            taken.add(name)
            targets[clip.path] = str(target / name)
        lines.append((os.path.relpath(targets[clip.path], target), entry.label))
    return targets, lines


def nvenc_works(codec: str) -> bool:
    """Whether this machine has a GPU that encodes: a frame is tried."""
    if codec not in NVENC:
        return False
    try:
        context: Any = av.CodecContext.create(NVENC[codec], "w")
        context.width, context.height, context.pix_fmt, context.time_base = 256, 256, "yuv420p", Fraction(1, 30)
        context.encode(av.VideoFrame(256, 256, "yuv420p"))
        return True
    except (av.error.FFmpegError, ValueError):
        return False


def compare(done: Sequence[Prepared], short: int) -> str:
    """Size, decoded pictures a clip and clips/s on one core before and after, over some of the files.

    Left out are files that could not be used as they were, since their frame size changes.
    """
    chosen = [p for p in done if not p.error][:: max(len(done) // SAMPLE, 1)][:SAMPLE]
    chosen = [p for p in chosen if not read_row(p.path).error]
    if not chosen:
        return "nothing to compare: the files could not be used before"
    columns = []
    for side in ("path", "target"):
        pictures, seconds = 0, 0.0
        for fact in chosen:
            with open_video(getattr(fact, side)) as video:
                count, width, height = video.frame_table.num_frames, video.width, video.height
                clip = random_clip(count, *CLIP, "loop", np.random.default_rng(0))
                pictures += count_decoded(video.frame_table, clip)
            size = min(224, short)
            before = time.perf_counter()
            decode_views(getattr(fact, side), clip[None], view_boxes(width, height, size, size, 1), size)
            seconds += time.perf_counter() - before
        columns.append((pictures / len(chosen), len(chosen) / seconds))
    sizes = [sum(getattr(p, key) for p in done if not p.error) / 1e6 for key in ("size", "target_size")]
    rows = [
        ("megabytes", f"{sizes[0]:.1f}", f"{sizes[1]:.1f}"),
        (f"pictures decoded a {CLIP[0]}x{CLIP[1]} clip", *(f"{pictures:.1f}" for pictures, _ in columns)),
        ("clips/s of PyAV on one core", *(f"{rate:.1f}" for _, rate in columns)),
    ]
    head = ("", "before", "after")
    return "\n".join(f"{name:34} {before:>10} {after:>10}" for name, before, after in [head, *rows])


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        (source, folder), settings = parse(Settings, arguments, ["SRC", "DST"])
        target = Path(folder)
        targets, lines = plan(source, target, settings.root)
        if settings.encoder == "auto":
            kind = "nvenc" if nvenc_works(settings.codec) else "software"
            settings = Settings(**{**settings.__dict__, "encoder": kind})
        print(f"{len(targets)} videos, encoder: {settings.encoder} ({settings.codec})", flush=True)
        target.mkdir(parents=True, exist_ok=True)
        reading = Reading(
            Prepared, settings.version, partial(prepare_file, settings, targets), partial(failed, settings), "prepared",
            pool_from=2, holds=partial(holds, targets),
        )  # fmt: skip
        done = refresh(list(targets), target / "prepared.jsonl", reading, settings.workers or None)
        good = {path: fact for path, fact in done.items() if path in targets and not fact.error}
        if not os.path.isdir(source):
            name = Path(plain_name(os.path.basename(source))).with_suffix(".txt").name
            kept = {os.path.relpath(targets[path], target) for path in good}
            text = "".join(f"{path}\t{label}\n" for path, label in lines if path in kept)
            with replacing(target / name) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
            print(f"written: {target / name}")
    except (ValueError, OSError) as error:
        print(f"pipelines.prepare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pipelines.prepare: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    bad = [done[path] for path in targets if done[path].error]
    for fact in bad:
        print(f"{fact.path}: {fact.error}")
    print(f"{len(good)} prepared, {len(bad)} not")
    if good:
        print(compare(list(good.values()), settings.short))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
