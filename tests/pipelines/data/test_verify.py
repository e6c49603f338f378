"""verify: whole decodes report what is broken or unusual, once per file, and continue where they stopped."""

from __future__ import annotations

import csv
import random
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines import dali_verify
from pipelines.data import verify as verify_module
from pipelines.data.dataset import VideoEntry
from pipelines.data.verify import check_video, verify
from pipelines.decode.encoder import encode_video
from pipelines.index import main
from pipelines.synthetic import render
from tests.helpers.loaders import write_rotated


@pytest.fixture
def write(tmp_path):
    def write(name: str, frames: int = 70, width: int = 64, height: int = 48, codec: str = "h264", **options) -> Path:
        encode_video(tmp_path / name, render(0, 0, 1, frames, width, height), Fraction(30), codec, **options)
        return tmp_path / name

    return write


def notes(path: Path, min_frames: int = 64) -> list[str]:
    return check_video(str(path)).notes(min_frames)


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mjpeg"])
def test_check_video_has_no_notes_about_a_good_file(write, codec):
    assert notes(write("a.mp4", codec=codec)) == []
    result = check_video(str(write("b.mp4", bframes=3 if codec in ("h264", "hevc") else 0, codec=codec)))
    assert result.num_frames == 70 and result.notes(71) == ["short: 70 frames"]


def test_check_video_reports_rotation_and_portrait(write, tmp_path):
    assert notes(write("high.mp4", width=48, height=64)) == ["portrait"]
    write_rotated(tmp_path / "high.mp4", tmp_path / "high_270.mp4", 3)
    assert notes(tmp_path / "high_270.mp4") == ["rotated: 270 degrees"]  # displayed as landscape
    write_rotated(write("wide.mp4"), tmp_path / "wide_90.mp4", 1)
    assert notes(tmp_path / "wide_90.mp4") == ["rotated: 90 degrees", "portrait"]
    write_rotated(tmp_path / "wide.mp4", tmp_path / "wide_180.mp4", 2)
    assert notes(tmp_path / "wide_180.mp4") == ["rotated: 180 degrees"]


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv422p", "yuv420p10le"])
def test_check_video_reports_pixel_format_and_variable_rate(tmp_path, pix_fmt):
    with av.open(str(tmp_path / "x.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for number, pixels in enumerate(render(0, 0, 1, 40, 64, 48)):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = number + (number > 20) * 9, Fraction(1, 30)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert notes(tmp_path / "x.mp4", 1) == ["variable rate", f"pixel format: {pix_fmt}"]


def test_check_video_reports_broken_files(write, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    assert notes(tmp_path / "text.mp4")[0].startswith("broken: not a readable video")
    assert notes(tmp_path / "gone.mp4") == ["broken: no such file"]
    content = write("a.mp4", width=192, height=144, bframes=2).read_bytes()
    start = content.index(b"mdat") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    for fraction in (0.3, 0.6):  # where noise replaces a tenth of the packets
        offset = start + int(fraction * size)
        noise = random.Random(0).randbytes(size // 10)
        (tmp_path / "a.mp4").write_bytes(content[:offset] + noise + content[offset + len(noise) :])
        pattern = "frames are damaged, the first is frame|packets cannot be decoded"
        assert re.search(pattern, notes(tmp_path / "a.mp4")[0])
    (tmp_path / "a.mp4").write_bytes(content[: start + size // 2])
    assert notes(tmp_path / "a.mp4")[0].startswith("broken: ")


def test_index_verify_reports_notes_and_continues_where_it_stopped(write, tmp_path, capsys, monkeypatch):
    write("a.mp4"), write("b.mp4", 30, 48, 64)
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\na.mp4 1\n")
    command = [str(tmp_path / "l.txt"), "--verify"]
    assert main(command) == 0
    assert list(csv.reader((tmp_path / "l.txt.verify.csv").open())) == [
        ["path", "note"],
        [f"{tmp_path}/b.mp4", "short: 30 frames"],
        [f"{tmp_path}/b.mp4", "portrait"],
    ]
    assert "2 files decoded: 1 short, 1 portrait" in capsys.readouterr().out
    (tmp_path / "c.mp4").write_text("no video")
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 1\n")
    checked, real_check_video = [], verify_module.check_video
    monkeypatch.setattr(verify_module, "check_video", lambda path: checked.append(path) or real_check_video(path))
    assert main([*command, "min_frames=10"]) == 1
    assert checked == [f"{tmp_path}/c.mp4"], "files that were checked before are not decoded again"
    out = capsys.readouterr().out
    assert f"{tmp_path}/c.mp4: not a readable video" in out and "3 files decoded: 1 portrait, 1 broken" in out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--verfy", "--verfy: unknown argument; did you mean verify=?"),
        ("min_frames=x", "min_frames=x: expected a whole number"),
        ("min_frames=-1", "min_frames=-1: expected at least 0"),
        ("depth=3", "depth=3: unknown argument; expected one of root, multi_label, verify, min_frames"),
        ("min_frames", "expected LIST [key=value ...], got "),
    ],
)
def test_index_refuses_wrong_arguments(tmp_path, capsys, argument, message):
    assert main([str(tmp_path / "l.txt"), argument]) == 2
    assert message in capsys.readouterr().err


def other_frames(data: bytes, positions: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return a trimmed file with the positions of other frames in it."""
    return data, np.maximum(positions - 1, 0)


@pytest.mark.parametrize("method", ["PyAV, trimmed", "PyAV, from the first frame", "the trimmed file"])
def test_check_video_names_a_method_that_decodes_other_frames(write, monkeypatch, method):
    path, trim, decode = write("a.mp4", bframes=2), verify_module.trim, verify_module.decode_frames

    def decode_previous_frames(video, frames, trimmed=True, context=None):
        """Decode each frame's predecessor where the method under test decodes a clip."""
        is_wrong = context is None and trimmed == (method == "PyAV, trimmed")
        return decode(video, np.maximum(np.asarray(frames) - is_wrong, 0), trimmed, context)

    if method == "the trimmed file":
        monkeypatch.setattr(verify_module, "trim", lambda *args, **kwargs: other_frames(*trim(*args, **kwargs)))
    else:
        monkeypatch.setattr(verify_module, "decode_frames", decode_previous_frames)
    assert re.fullmatch(
        rf"\d+ frames differ from those of a decode of the whole file \({method}\), the first is frame \d+",
        check_video(str(path)).broken,
    )


def test_index_verify_compares_clips_in_dalis_decoder(write, tmp_path, capsys, monkeypatch):
    """DALI's CPU build decodes VP9 and MJPEG; what it refuses is not compared."""
    for name, codec in {"a.mp4": "vp9", "b.mp4": "h264", "c.mp4": "mjpeg"}.items():
        write(name, codec=codec)
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 1\n")
    command = [str(tmp_path / "l.txt"), "--verify"]
    assert main(command) == 0
    assert "2 files compared in DALI's decoder, 0 differ" in capsys.readouterr().out
    trim = dali_verify.trim
    monkeypatch.setattr(dali_verify, "trim", lambda *args, **kwargs: other_frames(*trim(*args, **kwargs)))
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "2 files compared in DALI's decoder, 2 differ" in out
    assert re.search(rf"{tmp_path}/c.mp4: \d+ frames of clips differ between DALI's decodes", out)


def test_verify_with_worker_processes_has_the_same_results(write, tmp_path):
    videos = [VideoEntry(str(write(f"{n}.mp4", 20 + n)), 0) for n in range(9)]
    results = verify(videos, tmp_path / "cache.jsonl", workers=2)
    assert results == [check_video(video.path) for video in videos]
    assert [result.num_frames for result in results] == list(range(20, 29))
