"""Every codec in every container that holds it: trimmed and host-decoded frames equal those of the whole file."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.decode.frame_table import unpack
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_row
from pipelines.synthetic import render

FRAMES = 50
CODERS = {
    "h264": ("libx264", {"x264-params": "bframes=3:b-pyramid=normal"}),
    "h264_plain": ("libx264", {"x264-params": "bframes=0"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:pools=none:bframes=3"}),
    "vp9": ("libvpx-vp9", {"deadline": "good", "cpu-used": "5", "lag-in-frames": "16", "auto-alt-ref": "1"}),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"preset": "12"}),
    "mpeg4": ("mpeg4", {"bf": "2"}),
    "mpeg2": ("mpeg2video", {"bf": "2"}),
    "mjpeg": ("mjpeg", {}),
    "wmv2": ("wmv2", {}),
}
FORMATS = {"mp4": "mp4", "mkv": "matroska", "webm": "webm", "avi": "avi", "ts": "mpegts", "mov": "mov", "flv": "flv"}
HELD = {
    "h264": "mp4 mkv avi ts mov flv", "h264_plain": "mp4 avi ts", "hevc": "mp4 mkv ts mov", "vp9": "mp4 mkv webm avi",
    "vp8": "mkv webm avi", "av1": "mp4 mkv webm", "mpeg4": "mp4 mkv avi ts mov", "mpeg2": "mkv avi ts",
    "mjpeg": "mp4 mkv avi mov", "wmv2": "avi",
}  # fmt: skip
INDEXED = {"mp4", "mov", "avi"}  # containers that say where every picture lies
CASES = [(kind, suffix) for kind, suffixes in HELD.items() for suffix in suffixes.split()]


def write(path: Path, kind: str, streams: int = 1, first: int = 0) -> Path:
    """A video of `kind` at 25 frames a second; more streams of other sizes behind it, times from `first` on."""
    name, options = CODERS[kind]
    with av.open(str(path), "w", format=FORMATS[path.suffix[1:]]) as file:
        video = [file.add_stream(name, rate=25, options=dict(options)) for _ in range(streams)]
        for number, stream in enumerate(video):
            stream.width, stream.height = 96 - 32 * number, 64
            stream.pix_fmt, stream.gop_size = "yuvj420p" if kind == "mjpeg" else "yuv420p", 12
        for number, stream in enumerate(video):
            for at, picture in enumerate(render(number, 0, 1, FRAMES, stream.width, 64)):
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = at + first, Fraction(1, 25)
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    return path


def decode(source: Path | bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
        file.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def check(path: Path, draws: int = 6) -> None:
    whole = decode(path)
    row = read_row(str(path))
    assert row.num_frames == len(whole) > 0
    for seed in range(draws):
        frames = np.random.default_rng(seed).integers(0, len(whole) + 2, 5)
        expected = [whole[min(frame, len(whole) - 1)] for frame in frames]
        for table in {"", row.table}:  # demuxed, or read by byte ranges
            data, positions = trim(path, frames, table=table)
            small = decode(data)
            assert all(np.array_equal(small[at], picture) for at, picture in zip(positions, expected, strict=True))
            with open_video(path, table=table) as video:
                for frame, places in decode_frames(video, frames):
                    assert all(np.array_equal(frame.to_ndarray(format="rgb24"), expected[place]) for place in places)


@pytest.mark.parametrize(("kind", "suffix"), CASES)
def test_frames_are_those_of_the_whole_file(tmp_path, kind, suffix):
    path = write(tmp_path / f"x.{suffix}", kind)
    check(path)
    with open_video(path) as video:
        assert video.codec == {"h264_plain": "h264", "mpeg2": "mpeg2video"}.get(kind, kind)
        assert len(video.frame_table.keyframes) > 3
    row = read_row(str(path))
    assert unpack(row.table).in_ranges == (suffix in INDEXED)
    assert row.proof == "decoded" if kind in ("mpeg2", "wmv2") else "bitstream"


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_the_first_of_several_streams_is_taken(tmp_path, kind):
    path = write(tmp_path / "x.mkv", kind, streams=2)
    check(path)
    assert read_row(str(path)).width == 96


@pytest.mark.parametrize("first", [-7, 100000])
@pytest.mark.parametrize(("kind", "suffix"), [("h264", "mp4"), ("h264", "mkv"), ("mpeg4", "mp4"), ("vp9", "mp4")])
def test_times_that_begin_before_or_long_after_zero(tmp_path, kind, suffix, first):
    """Before zero, MP4's edit list hides the first frames; they are decoded, and no frame number means them."""
    path = write(tmp_path / f"x.{suffix}", kind, first=first)
    check(path)


def test_a_cover_picture_is_no_video(tmp_path):
    with av.open(str(tmp_path / "x.mp4"), "w") as file:
        cover = file.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = file.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        file.mux(cover.encode(av.VideoFrame.from_ndarray(render(0, 0, 1, 1, 32, 32)[0])))
        for picture in render(0, 0, 1, 20, 96, 64):
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(video.encode(None))
    row = read_row(str(tmp_path / "x.mp4"))
    assert (row.codec, row.width, row.num_frames) == ("h264", 96, 20)
