"""prepare: smaller, upright, at a constant rate, in closed groups; goes on where it stopped, names what fails."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines import prepare
from pipelines.data.dataset import read_list
from pipelines.data.verify import examine
from pipelines.decode.encoder import encode
from pipelines.decode.frame_table import required_packets
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.video_info import read_row
from pipelines.prepare import main, plan
from pipelines.synthetic import render
from tests.helpers.mp4_boxes import encode as encode_stream
from tests.helpers.mp4_boxes import mp4
from tests.pipelines.decode.test_prove import FRAMES, pack_b_frames, write
from tests.pipelines.test_loader import turned


@pytest.fixture
def source(tmp_path) -> Path:
    """A list of a landscape, a portrait and a turned video, of H.264 with long groups."""
    folder = tmp_path / "raw"
    for name, (width, height) in {"a b/wide.mp4": (160, 96), "high.mp4": (96, 170)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        encode(folder / name, render(0, 0, 1, 50, width, height), Fraction(25), "h264", gop=50, bframes=2)
    turned(folder / "a b/wide.mp4", folder / "stood.mkv", 1)
    (folder / "train.csv").write_text("a b/wide.mp4,1\nhigh.mp4,0\nstood.mkv,1\n")
    return folder


def decoded(path: Path) -> np.ndarray:
    with open_video(path) as video:
        return np.stack(
            [f.to_ndarray(format="rgb24") for f, _ in decode_frames(video, range(len(video.frame_table.frames)))]
        )


def test_h264_is_coded_without_cabac(source, tmp_path):
    """entropy_coding_mode_flag of the picture parameter set, behind two ids of 0 (H.264, 7.3.2.2)."""

    def flag(path: Path) -> int:
        with open_video(path) as video:
            header = bytes(video.stream.codec_context.extradata or b"")
        at = 8 + int.from_bytes(header[6:8], "big")  # avcC: one sequence parameter set, then one picture parameter set
        assert header[5] & 31 == header[at] == 1 and header[at + 3] & 31 == 8 and header[at + 4] >> 6 == 3
        return header[at + 4] >> 5 & 1

    assert flag(source / "high.mp4") == 1
    assert main([str(source / "train.csv"), str(tmp_path / "out"), "short=64", "encoder=software"]) == 0
    assert flag(tmp_path / "out" / "high.mp4") == 0


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9"])
def test_what_is_written(source, tmp_path, capsys, codec):
    out = tmp_path / "out"
    assert main([str(source / "train.csv"), str(out), "short=64", f"codec={codec}", "gop=16", "encoder=software"]) == 0
    said = capsys.readouterr().out
    assert "3 prepared, 0 not" in said and "pictures decoded a 16x4 clip" in said
    clips = read_list(out / "train.txt")
    assert [(Path(path).relative_to(out).as_posix(), label) for path, label in clips] == [
        ("a b/wide.mp4", 1), ("high.mp4", 0), ("stood.mp4", 1),
    ]  # fmt: skip
    sizes = []
    for clip in clips:
        with open_video(clip.path) as video:
            sizes.append((video.width, video.height))
            table = video.frame_table
            assert video.codec == codec and video.fps == 25 and not video.variable_rate and len(table.frames) == 50
            assert table.keyframes.tolist() == [0, 16, 32, 48] and table.is_closed[table.is_random_access].all()
            if codec != "vp9":  # one picture in four is needed by others, but at the end of a group
                assert table.is_reference.sum() <= 50 / 4 + 2 * 4
                assert len(required_packets(table, [0, 4, 8, 12])[0]) <= 6
            assert video.stream.codec_context.colorspace == 5 or codec == "vp9"
        assert not examine(clip.path).broken
    assert sizes == [(112, 64), (64, 112), (64, 112)], "the short side as asked, the other a multiple of 16"
    wide, stood = decoded(Path(clips[0].path)), decoded(Path(clips[2].path))
    assert np.abs(np.rot90(wide, axes=(1, 2)).astype(int) - stood).mean() < 6, "upright now"


def test_it_goes_on_where_it_stopped_and_starts_anew_with_other_settings(source, tmp_path, monkeypatch, capsys):
    out, real, seen = tmp_path / "out", prepare.prepare_file, []
    monkeypatch.setattr(prepare, "prepare_file", lambda s, t, path: seen.append(Path(path).name) or real(s, t, path))
    command = [str(source / "train.csv"), str(out), "short=32", "workers=1", "encoder=software"]
    assert main(command) == 0 and len(seen) == 3
    assert main(command) == 0 and len(seen) == 3
    (out / "high.mp4").unlink()
    assert main(command) == 0 and seen[3:] == ["high.mp4"]
    encode(source / "a b/wide.mp4", render(1, 0, 1, 30, 96, 64), Fraction(25), "h264")
    assert main(command) == 0 and seen[4:] == ["wide.mp4"]
    assert main([*command, "crf=30"]) == 0 and len(seen) == 8

    def interrupted(settings, targets, path):
        if "high" in path:
            raise KeyboardInterrupt
        return real(settings, targets, path)

    monkeypatch.setattr(prepare, "prepare_file", interrupted)
    assert main([*command, "crf=31"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not list(out.rglob("*.tmp"))
    monkeypatch.setattr(prepare, "prepare_file", lambda s, t, path: seen.append(Path(path).name) or real(s, t, path))
    assert main([*command, "crf=31"]) == 0 and sorted(seen[8:]) == ["high.mp4", "stood.mkv"]


def test_broken_files_are_named_and_left_out(source, tmp_path, capsys):
    (source / "high.mp4").write_bytes((source / "high.mp4").read_bytes()[:900])
    (source / "train.csv").write_text("a b/wide.mp4,1\nhigh.mp4,0\ngone.mp4,0\n")
    assert main([str(source / "train.csv"), str(tmp_path / "out"), "short=32", "encoder=software"]) == 1
    out = capsys.readouterr().out
    assert f"{source}/high.mp4: " in out and f"{source}/gone.mp4: no such file" in out and "1 prepared, 2 not" in out
    assert [label for _, label in read_list(tmp_path / "out/train.txt")] == [1]
    facts = [json.loads(line) for line in (tmp_path / "out/prepared.jsonl").read_text().splitlines()]
    assert sum(bool(fact["error"]) for fact in facts) == 2


def test_what_failed_is_tried_again(source, tmp_path, monkeypatch, capsys):
    """The disk was full, say: the source has not changed, and yet it must not stay left out."""
    command = [str(source / "train.csv"), str(tmp_path / "out"), "short=32", "workers=1", "encoder=software"]
    real = prepare.encode

    def full(file, *args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "encode", full)
        assert main(command) == 1 and "3 not" in capsys.readouterr().out
    assert prepare.encode is real and main(command) == 0
    assert len(read_list(tmp_path / "out/train.txt")) == 3


def test_a_variable_rate_becomes_constant_and_the_motion_stays_in_time(tmp_path):
    """Frames 0 to 19 at 25 a second, the others at half of it: they are shown twice."""
    pictures = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, 64, 1).repeat(96, 2).repeat(3, 3)
    with av.open(str(tmp_path / "v.mkv"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = number if number < 20 else 2 * number - 20, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    (tmp_path / "l.txt").write_text("v.mkv 0\n")
    assert examine(str(tmp_path / "v.mkv")).variable_rate
    assert main([str(tmp_path / "l.txt"), str(tmp_path / "out"), "short=64", "fps=25", "encoder=software"]) == 0
    levels = decoded(tmp_path / "out/v.mp4")[:, 32, 48, 0] / 6
    assert not examine(str(tmp_path / "out/v.mp4")).variable_rate
    expected = [n if n < 20 else (n + 20) // 2 for n in range(59)]
    assert len(levels) == 59 and np.abs(levels - expected).max() < 1


def test_whatever_is_read_becomes_a_file_that_its_bitstream_proves(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    plain = write(raw / "plain.avi", FRAMES, "mpeg4", bframes=2, b_strategy="0", sc_threshold="1000000000")
    pack_b_frames(plain, raw / "packed.avi", "byte")
    plain.unlink()
    write(raw / "cinepak.avi", FRAMES[:12], "cinepak", "rgb24")
    write(raw / "wmv.asf", FRAMES, "wmv2")
    write(raw / "film.m2v", FRAMES, "mpeg2video", bframes=2)
    write(raw / "raw.h264", FRAMES, "libx264", bframes=2)
    write(raw / "moving.gif", FRAMES, "gif", "rgb8")
    (raw / "edits.mp4").write_bytes(mp4(encode_stream(FRAMES), edits=[(30, 9)]))
    names = sorted(path.name for path in raw.iterdir())
    (tmp_path / "l.txt").write_text("".join(f"raw/{name} 0\n" for name in names))
    assert main([str(tmp_path / "l.txt"), str(tmp_path / "out"), "short=64", "encoder=software"]) == 0
    for name, clip in zip(names, read_list(tmp_path / "out/l.txt"), strict=True):
        before, after = read_row(str(raw / name)), read_row(clip.path)
        assert before.proof in ("decoded", "sequential"), name
        assert (after.proof, after.num_frames, after.irregularity) == ("bitstream", before.num_frames, ""), name


def test_a_size_that_changes_midway_becomes_that_of_the_first_frame(tmp_path, capsys):
    small, large = ([np.full((h, w, 3), level, np.uint8) for level in (40, 200)] for w, h in ((96, 64), (160, 96)))
    parts = [write(tmp_path / f"{number}.h264", frames, "libx264") for number, frames in enumerate((small, large))]
    (tmp_path / "raw.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    (tmp_path / "l.txt").write_text("raw.h264 0\n")
    assert read_row(str(tmp_path / "raw.h264")).error == "the frame size changes from 96x64 to 160x96 midway"
    assert main([str(tmp_path / "l.txt"), str(tmp_path / "out"), "short=64", "encoder=software"]) == 0
    assert "nothing to compare" in capsys.readouterr().out
    row = read_row(str(tmp_path / "out/raw.mp4"))
    assert (row.num_frames, row.width, row.height, row.proof) == (4, 96, 64, "bitstream")
    with open_video(row.path) as video:
        levels = [frame.to_ndarray(format="gray").mean() for frame, _ in decode_frames(video, range(4))]
    assert np.abs(np.array(levels) - (40, 200, 40, 200)).max() < 25


def test_class_folders_and_names_that_would_collide(tmp_path):
    for name in ("run/a.mp4", "run/a.avi", "jump/b.webm"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).touch()
    targets, _ = plan(str(tmp_path / "raw"), tmp_path / "out", "")
    assert sorted(Path(t).relative_to(tmp_path / "out").as_posix() for t in targets.values()) == [
        "jump/b.mp4", "run/a.mp4", "run/a.mp4.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["short=100"], "short=100: expected a multiple of 16"),
        (["codec=av1"], "codec=av1: expected one of h264, hevc, vp9"),
        (["gopp=3"], "did you mean gop=?"),
        (["gop=x"], "gop=x: expected a whole number"),
        (["third"], "expected SRC DST [key=value ...], got"),
    ],
)
def test_mistakes(source, tmp_path, capsys, words, message):
    assert main([str(source / "train.csv"), str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
