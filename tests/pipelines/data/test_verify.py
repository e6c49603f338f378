"""verify: whole decodes say what is broken or unusual, once a file, and go on where they stopped."""

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
from pipelines.data import verify as verifying
from pipelines.data.dataset import Clip
from pipelines.data.verify import examine, verify
from pipelines.decode.encoder import encode
from pipelines.index import main
from pipelines.synthetic import render
from tests.pipelines.test_loader import turned


@pytest.fixture
def write(tmp_path):
    def write(name: str, frames: int = 70, width: int = 64, height: int = 48, codec: str = "h264", **options) -> Path:
        encode(tmp_path / name, render(0, 0, 1, frames, width, height), Fraction(30), codec, **options)
        return tmp_path / name

    return write


def notes(path: Path, short: int = 64) -> list[str]:
    return examine(str(path)).notes(short)


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mjpeg"])
def test_nothing_to_say_of_a_good_file(write, codec):
    assert notes(write("a.mp4", codec=codec)) == []
    finding = examine(str(write("b.mp4", bframes=3 if codec in ("h264", "hevc") else 0, codec=codec)))
    assert finding.num_frames == 70 and finding.notes(71) == ["short: 70 frames"]


def test_unusual_files(write, tmp_path):
    assert notes(write("high.mp4", width=48, height=64)) == ["portrait"]
    turned(tmp_path / "high.mp4", tmp_path / "turned.mp4", 3)
    assert notes(tmp_path / "turned.mp4") == ["rotated: 270 degrees"]  # and so it is no portrait
    turned(write("wide.mp4"), tmp_path / "stood.mp4", 1)
    assert notes(tmp_path / "stood.mp4") == ["rotated: 90 degrees", "portrait"]
    turned(tmp_path / "wide.mp4", tmp_path / "around.mp4", 2)
    assert notes(tmp_path / "around.mp4") == ["rotated: 180 degrees"]


@pytest.mark.parametrize("format", ["yuv444p", "yuv422p", "yuv420p10le"])
def test_other_pixel_formats_and_variable_rates(tmp_path, format):
    with av.open(str(tmp_path / "x.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, format
        for number, picture in enumerate(render(0, 0, 1, 40, 64, 48)):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = number + (number > 20) * 9, Fraction(1, 30)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert notes(tmp_path / "x.mp4", 1) == ["variable rate", f"pixel format: {format}"]


def test_broken_files(write, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    assert notes(tmp_path / "text.mp4")[0].startswith("broken: not a readable video")
    assert notes(tmp_path / "gone.mp4") == ["broken: no such file"]
    whole = write("a.mp4", width=192, height=144, bframes=2).read_bytes()
    start = whole.index(b"mdat") + 4
    length = int.from_bytes(whole[start - 8 : start - 4], "big") - 8
    for share in (0.3, 0.6):  # a stretch of noise in the pictures
        at = start + int(share * length)
        (tmp_path / "a.mp4").write_bytes(
            whole[:at] + random.Random(0).randbytes(length // 10) + whole[at + length // 10 :]
        )
        assert re.search(
            "frames are damaged, the first is frame|packets cannot be decoded", notes(tmp_path / "a.mp4")[0]
        )
    (tmp_path / "a.mp4").write_bytes(whole[: start + length // 2])
    assert notes(tmp_path / "a.mp4")[0].startswith("broken: ")


def test_the_command(write, tmp_path, capsys, monkeypatch):
    write("a.mp4"), write("b.mp4", 30, 48, 64)
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\na.mp4 1\n")
    command = [str(tmp_path / "l.txt"), "--verify"]
    assert main(command) == 0
    table = list(csv.reader((tmp_path / "l.txt.verify.csv").open()))
    assert table[1:] == [[f"{tmp_path}/b.mp4", "short: 30 frames"], [f"{tmp_path}/b.mp4", "portrait"]]
    assert "2 files decoded: 1 short, 1 portrait" in capsys.readouterr().out
    (tmp_path / "c.mp4").write_text("no video")
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 1\n")
    seen, real = [], verifying.examine
    monkeypatch.setattr(verifying, "examine", lambda path: seen.append(path) or real(path))
    assert main([*command, "short=10"]) == 1
    assert seen == [f"{tmp_path}/c.mp4"], "what is known of a file is not decoded again"
    out = capsys.readouterr().out
    assert f"{tmp_path}/c.mp4: not a readable video" in out and "3 files decoded: 1 portrait, 1 broken" in out
    for wrong in ("--verfy", "short=x", "depth=3", "short"):
        assert main([str(tmp_path / "l.txt"), wrong]) == 2
        assert "expected root=FOLDER, short=FRAMES or --verify" in capsys.readouterr().err


def other_frames(data: bytes, positions: np.ndarray) -> tuple[bytes, np.ndarray]:
    """A trimmed file, and the places of other frames in it."""
    return data, np.maximum(positions - 1, 0)


@pytest.mark.parametrize("way", ["PyAV, trimmed", "PyAV, from the first", "the trimmed file"])
def test_a_clip_that_differs_is_named(write, monkeypatch, way):
    path, trim, decode = write("a.mp4", bframes=2), verifying.trim, verifying.decode_frames

    def shifted(video, frames, trimmed=True, context=None):
        """The frames before the wanted ones, where a clip is decoded in this way."""
        wrong = context is None and trimmed == (way == "PyAV, trimmed")
        return decode(video, np.maximum(np.asarray(frames) - wrong, 0), trimmed, context)

    if way == "the trimmed file":
        monkeypatch.setattr(verifying, "trim", lambda *a, **named: other_frames(*trim(*a, **named)))
    else:
        monkeypatch.setattr(verifying, "decode_frames", shifted)
    assert re.fullmatch(
        rf"\d+ frames differ from those of a decode of the whole file \({way}\), the first is frame \d+",
        examine(str(path)).broken,
    )


def test_clips_are_compared_in_dalis_decoder(write, tmp_path, capsys, monkeypatch):
    """DALI's build for a CPU decodes VP9 and MJPEG; what it does not take is not compared."""
    for name, codec in {"a.mp4": "vp9", "b.mp4": "h264", "c.mp4": "mjpeg"}.items():
        write(name, codec=codec)
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 1\n")
    command = [str(tmp_path / "l.txt"), "--verify"]
    assert main(command) == 0
    assert "2 files compared in DALI's decoder, 0 differ" in capsys.readouterr().out
    trim = dali_verify.trim
    monkeypatch.setattr(dali_verify, "trim", lambda *a, **named: other_frames(*trim(*a, **named)))
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "2 files compared in DALI's decoder, 2 differ" in out
    assert re.search(rf"{tmp_path}/c.mp4: \d+ frames of clips differ between DALI's decodes", out)


def test_worker_processes_find_the_same(write, tmp_path):
    clips = [Clip(str(write(f"{n}.mp4", 20 + n)), 0) for n in range(9)]
    two = verify(clips, tmp_path / "two.jsonl", workers=2)
    assert two == [examine(clip.path) for clip in clips] and [f.num_frames for f in two] == list(range(20, 29))
