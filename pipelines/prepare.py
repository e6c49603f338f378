"""Re-encode a data set for training: small frames, short closed groups of pictures, nothing that a clip does not need.

    python -m pipelines.prepare SRC DST [key=value ...]

    SRC             a list in any format that data.train takes, or a class folder;  root=FOLDER as data.root
    DST             a folder: the videos under their old relative paths, as .mp4, and for a list DST/NAME.txt
    short_side=256  both sides become multiples of 16, so that NVDEC's decoders are reused
    codec=h264      or hevc, vp9           crf=20   quality, lower is better; 28 is smaller
    gop=32          frames from one key frame to the next; every group is closed
    bframes=7       B-frames between two reference frames, 0 to 16. No other frame needs them, so the more there are,
                    the less is decoded for a clip. NVENC is given 3 at most, VP9 none
    fps=0           frames per second (0: as in the file); frames are repeated or dropped where the rate varies.
                    A folder of images has no rate: 0 means 30, and each image becomes a frame
    encoder=auto    nvenc if a GPU has it, else software: x264, x265, libvpx
    workers=0       processes (0: one per core)

Frames are rotated upright, colors are BT.601 in limited range and tagged so, sound is left out. x264 and x265 are given
their fastdecode tuning (no loop filter, and in H.264 no arithmetic coding, which NVENC leaves out too): the files are
somewhat larger, but a CPU decodes them much faster. Every file is decoded completely before it gets its name. The
results are kept in DST/prepared.jsonl, and the same command continues where it stopped. The exit status is 1 if a video
could not be prepared; those videos are named.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av

from pipelines import storage
from pipelines.data.annotations import base_folder, cache_stem, read_entries
from pipelines.data.cache import Scanner, update_cache
from pipelines.data.dataset import read_list
from pipelines.data.decoding_cost import measure_decoding, stored_bytes
from pipelines.data.multi_label import note_on_seconds
from pipelines.data.verify import check_video
from pipelines.decode.encoder import encode_video
from pipelines.decode.resample import open_resampled
from pipelines.decode.video_info import read_video_info
from utils.cli import parse_args, run_command
from utils.files import atomic_path

CODERS = {
    "h264": {"preset": "fast", "tune": "fastdecode", "x264-params": "force-cfr=1:b-pyramid=none"},
    "hevc": {
        "preset": "fast",
        "tune": "fastdecode",
        # x265 refuses more B-frames than it looks ahead, which is 15 frames with this preset.
        "x265-params": "pools=none:frame-threads=1:log-level=none:b-pyramid=0:rc-lookahead=20",
    },
    "vp9": {"deadline": "good", "cpu-used": "4"},
}
NVENC = {"h264": "h264_nvenc", "hevc": "hevc_nvenc"}
ENCODERS = ("auto", "nvenc", "software")
REPORT_FILES, REPORT_CLIP = 20, (16, 4)  # the final report measures clips (num_frames, frame_stride) of so many files
NVENC_BFRAMES = 3  # cards allow four at most
VERSION = 3  # of how a file is prepared


@dataclass(frozen=True)
class Settings:
    """The settings of the command."""

    root: str = ""
    multi_label: bool = False
    short_side: int = 256
    codec: str = "h264"
    crf: int = 20
    gop: int = 32
    bframes: int = 7
    fps: float = 0.0
    encoder: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        for name, choices in {"codec": tuple(CODERS), "encoder": ENCODERS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)}: expected one of {', '.join(choices)}")
        for name, minimum in dict(short_side=16, crf=0, gop=1, bframes=0, fps=0, workers=0).items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {minimum}")
        if self.encoder == "nvenc" and self.codec not in NVENC:
            raise ValueError(f"encoder=nvenc: expected auto or software with codec={self.codec}")
        if self.bframes > 16:
            raise ValueError(f"bframes={self.bframes}: expected at most 16")
        if self.short_side % 16:
            raise ValueError(f"short_side={self.short_side}: expected a multiple of 16")

    @property
    def coded_bframes(self) -> int:
        """Return the number of B-frames that the encoder puts between two reference frames."""
        if self.codec == "vp9":
            return 0
        return min(self.bframes, NVENC_BFRAMES) if self.encoder == "nvenc" else self.bframes

    @property
    def version(self) -> int:
        """Return a number that changes with every setting of the prepared files, except which encoder writes them."""
        content = (VERSION, self.short_side, self.codec, self.crf, self.gop, self.bframes, self.fps)
        return zlib.crc32(repr(content).encode())


@dataclass(frozen=True, kw_only=True)
class PreparedVideo:
    """One source file and the file that was made of it; if there is none, `error` is the reason."""

    path: str
    size: int = 0
    mtime_ns: int = 0
    target: str = ""
    target_size: int = 0
    num_frames: int = 0
    error: str = ""
    version: int = 0


class Plan(NamedTuple):
    """The files to write, and the list to write of them."""

    targets: dict[str, str]  # source path -> path of the prepared file
    lines: list[tuple[str, ...]]  # path below the target folder, start and end, and label, if it has them; in its order


def plan_targets(source: str, folder: Path, root: str, multi_label: bool = False) -> Plan:
    """Choose where each video of a list goes below `folder`: under its relative path, as .mp4."""
    base = base_folder(source, root)
    targets: dict[str, str] = {}
    names: set[str] = set()
    lines = []
    entries = read_entries(source, root, multi_label)
    print(note_on_seconds(entries, source, folder), end="")
    for video, entry in zip(read_list(source, root, multi_label=multi_label), entries, strict=True):
        relative = storage.relative_path(video.path, base)
        if relative.startswith(".."):
            relative = video.path.lstrip("/")
        if video.path not in targets:
            name = f"{relative}.mp4" if os.path.isdir(video.path) else str(Path(relative).with_suffix(".mp4"))
            if name in names:  # a.avi beside a.mp4
                name = f"{relative}.mp4"
            names.add(name)
            targets[video.path] = str(folder / name)
        interval = () if not video.is_part else (f"{video.start:.12g}", f"{video.end:.12g}")
        label = entry.all_labels
        lines.append((os.path.relpath(targets[video.path], folder), *interval, *label))
    return Plan(targets, lines)


def prepare_file(settings: Settings, targets: dict[str, str], path: str) -> PreparedVideo:
    """Prepare one video. Never raises for a bad one."""
    size, mtime_ns = storage.fingerprint(path)
    target = Path(targets[path])
    try:
        with open_resampled(path, settings.fps, settings.short_side) as (frames, fps):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as temporary:
                encode_video(
                    temporary,
                    frames,
                    fps,
                    codec=settings.codec,
                    gop=settings.gop,
                    bframes=settings.coded_bframes,
                    crf=settings.crf,
                    options=CODERS[settings.codec],
                    encoder=NVENC[settings.codec] if settings.encoder == "nvenc" else "",
                )
                result = check_video(str(temporary), draws=0)
                if result.broken:
                    raise ValueError(f"{path}: the prepared file is broken: {result.broken}")
        return PreparedVideo(
            path=path,
            size=size,
            mtime_ns=mtime_ns,
            target=str(target),
            target_size=target.stat().st_size,
            num_frames=result.num_frames,
            version=settings.version,
        )
    except (ValueError, OSError, av.error.FFmpegError) as error:
        return failed(settings, path, str(error))


def failed(settings: Settings, path: str, reason: str) -> PreparedVideo:
    """Return the record of a video that could not be prepared."""
    size, mtime_ns = storage.fingerprint(path)
    error = reason.removeprefix(f"{path}: ")
    return PreparedVideo(path=path, size=size, mtime_ns=mtime_ns, error=error, version=settings.version)


def is_up_to_date(targets: dict[str, str], prepared: PreparedVideo) -> bool:
    """Return whether a prepared file exists and is where it should be.

    Returns False for a failure, so that it is tried again: the disk may have been full.
    """
    if prepared.error or prepared.target != targets.get(prepared.path):
        return False
    return storage.fingerprint(prepared.target).size > 0


def nvenc_works(codec: str) -> bool:
    """Return whether a GPU of this machine encodes a codec, by encoding a frame."""
    if codec not in NVENC:
        return False
    try:
        context: Any = av.CodecContext.create(NVENC[codec], "w")
        context.width, context.height, context.pix_fmt, context.time_base = 256, 256, "yuv420p", Fraction(1, 30)
        context.encode(av.VideoFrame(256, 256, "yuv420p"))
        return True
    except (av.error.FFmpegError, ValueError):
        return False


def size_report(prepared: Sequence[PreparedVideo], short_side: int) -> str:
    """Compare the files before and after: size, and for some of them frames decoded per clip and clips/s of one core.

    Files that could not be used before are not measured, since PyAV cannot decode clips of them.
    """
    sample = prepared[:: max(len(prepared) // REPORT_FILES, 1)][:REPORT_FILES]
    sample = [video for video in sample if not read_video_info(video.path).error]
    if not sample:
        return "nothing to compare: the files could not be used before"
    size = min(224, short_side)
    before = measure_decoding([video.path for video in sample], size, REPORT_CLIP)
    after = measure_decoding([video.target for video in sample], size, REPORT_CLIP)
    paths = [[video.path for video in prepared], [video.target for video in prepared]]
    megabytes = [sum(map(stored_bytes, some)) / 1e6 for some in paths]
    num_frames, stride = REPORT_CLIP
    table = [
        ("", "before", "after"),
        ("megabytes", *(f"{value:.1f}" for value in megabytes)),
        (
            f"frames decoded per {num_frames}x{stride} clip",
            f"{before.decoded_frames:.1f}",
            f"{after.decoded_frames:.1f}",
        ),
        ("clips/s of PyAV on one core", f"{before.clips_per_s:.1f}", f"{after.clips_per_s:.1f}"),
    ]
    return "\n".join(f"{name:34} {left:>10} {right:>10}" for name, left, right in table)


def write_list(path: Path, lines: Sequence[tuple[str, ...]]) -> None:
    """Write a list, its columns separated by tabs."""
    text = "".join("\t".join(line) + "\n" for line in lines)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def prepare_list(arguments: Sequence[str]) -> int:
    """Prepare the videos of a list and report on them; return 1 if one of them could not be prepared."""
    (source, folder_name), settings = parse_args(Settings, arguments, ["SRC", "DST"])
    folder = Path(folder_name)
    targets, lines = plan_targets(source, folder, settings.root, settings.multi_label)
    if settings.encoder == "auto":
        settings = replace(settings, encoder="nvenc" if nvenc_works(settings.codec) else "software")
    print(f"{len(targets)} videos, encoder: {settings.encoder} ({settings.codec})", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    scanner = Scanner(
        name="prepared",
        entry_type=PreparedVideo,
        version=settings.version,
        scan=partial(prepare_file, settings, targets),
        failed=partial(failed, settings),
        is_valid=partial(is_up_to_date, targets),
        min_files_for_pool=2,
    )
    records = update_cache(list(targets), folder / "prepared.jsonl", scanner, settings.workers or None)
    good = [records[path] for path in targets if not records[path].error]
    bad = [records[path] for path in targets if records[path].error]
    if not os.path.isdir(source):
        list_path = folder / Path(cache_stem(os.path.basename(source))).with_suffix(".txt").name
        names = {os.path.relpath(video.target, folder) for video in good}
        write_list(list_path, [line for line in lines if line[0] in names])
        print(f"written: {list_path}")
    for video in bad:
        print(f"{video.path}: {video.error}")
    print(f"{len(good)} prepared, {len(bad)} not")
    if good:
        print(size_report(good, settings.short_side))
    return 1 if bad else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    interrupted = "interrupted; the same command continues from here"
    return run_command("pipelines.prepare", __doc__, prepare_list, arguments, interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
