"""Every codec in every container for it: frames decoded after trimming and by PyAV equal those of the whole file."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.decode.frame_table import unpack_frame_table
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_video_info
from pipelines.synthetic import render

FRAMES = 50
ENCODERS = {
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
SUFFIXES_OF_KIND = {
    "h264": "mp4 mkv avi ts mov flv",
    "h264_plain": "mp4 avi ts",
    "hevc": "mp4 mkv ts mov",
    "vp9": "mp4 mkv webm avi",
    "vp8": "mkv webm avi",
    "av1": "mp4 mkv webm",
    "mpeg4": "mp4 mkv avi ts mov",
    "mpeg2": "mkv avi ts",
    "mjpeg": "mp4 mkv avi mov",
    "wmv2": "avi",
}
SUFFIXES_WITH_INDEX = {"mp4", "mov", "avi"}  # of containers that list the byte range of every packet
CASES = [(kind, suffix) for kind, suffixes in SUFFIXES_OF_KIND.items() for suffix in suffixes.split()]


def write_video(path: Path, kind: str, num_streams: int = 1, first_tick: int = 0) -> Path:
    """Write a video of `kind` at 25 frames per second; each further stream is 32 pixels narrower."""
    name, options = ENCODERS[kind]
    with av.open(str(path), "w", format=FORMATS[path.suffix[1:]]) as file:
        streams = [file.add_stream(name, rate=25, options=dict(options)) for _ in range(num_streams)]
        for number, stream in enumerate(streams):
            stream.width, stream.height = 96 - 32 * number, 64
            stream.pix_fmt, stream.gop_size = "yuvj420p" if kind == "mjpeg" else "yuv420p", 12
        for number, stream in enumerate(streams):
            for tick, image in enumerate(render(number, 0, 1, FRAMES, stream.width, 64)):
                frame = av.VideoFrame.from_ndarray(image)
                frame.pts, frame.time_base = tick + first_tick, Fraction(1, 25)
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    return path


def decode_rgb(source: Path | bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
        file.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def check_rgb_frames(path: Path, draws: int = 6) -> None:
    """Compare trimmed and decoded frames of random clips with the whole decode, as RGB."""
    whole = decode_rgb(path)
    info = read_video_info(str(path))
    assert info.num_frames == len(whole) > 0
    for seed in range(draws):
        frames = np.random.default_rng(seed).integers(0, len(whole) + 2, 5)
        expected = [whole[min(frame, len(whole) - 1)] for frame in frames]
        # All packets are read, or byte ranges if the container has an index. "" proves the same table each time.
        for table in {"", info.table} if seed < 2 else {info.table}:
            data, positions = trim(path, frames, table=table)
            trimmed = decode_rgb(data)
            assert all(
                np.array_equal(trimmed[position], image) for position, image in zip(positions, expected, strict=True)
            )
            with open_video(path, table=table) as video:
                for frame, frame_positions in decode_frames(video, frames):
                    image = frame.to_ndarray(format="rgb24")
                    assert all(np.array_equal(image, expected[position]) for position in frame_positions)


@pytest.mark.parametrize(("kind", "suffix"), CASES)
def test_frames_match_whole_decode_in_every_container(tmp_path, kind, suffix):
    path = write_video(tmp_path / f"x.{suffix}", kind)
    check_rgb_frames(path)
    with open_video(path) as video:
        assert video.codec == {"h264_plain": "h264", "mpeg2": "mpeg2video"}.get(kind, kind)
        assert len(video.frame_table.keyframes) > 3
    info = read_video_info(str(path))
    assert unpack_frame_table(info.table).has_byte_ranges == (suffix in SUFFIXES_WITH_INDEX)
    assert info.proof == "decoded" if kind in ("mpeg2", "wmv2") else "bitstream"


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_video_stream_is_the_first_of_several(tmp_path, kind):
    path = write_video(tmp_path / "x.mkv", kind, num_streams=2)
    check_rgb_frames(path)
    assert read_video_info(str(path)).width == 96


@pytest.mark.parametrize("first_tick", [-7, 100000])
@pytest.mark.parametrize(("kind", "suffix"), [("h264", "mp4"), ("h264", "mkv"), ("mpeg4", "mp4"), ("vp9", "mp4")])
def test_frames_match_whole_decode_with_offset_times(tmp_path, kind, suffix, first_tick):
    """With times below zero, MP4's edit list hides the first frames: they are decoded, but have no frame number."""
    path = write_video(tmp_path / f"x.{suffix}", kind, first_tick=first_tick)
    check_rgb_frames(path)


def test_video_stream_skips_cover_picture(tmp_path):
    with av.open(str(tmp_path / "x.mp4"), "w") as file:
        cover = file.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = file.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        file.mux(cover.encode(av.VideoFrame.from_ndarray(render(0, 0, 1, 1, 32, 32)[0])))
        for image in render(0, 0, 1, 20, 96, 64):
            file.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        file.mux(video.encode(None))
    info = read_video_info(str(tmp_path / "x.mp4"))
    assert (info.codec, info.width, info.num_frames) == ("h264", 96, 20)
