"""prepare: smaller, upright, at a constant rate, in closed groups; continues where it stopped, names failures."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines import prepare
from pipelines.data.dataset import read_list
from pipelines.data.verify import check_video
from pipelines.decode.encoder import encode_video
from pipelines.decode.frame_table import required_packets
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.video_info import read_video_info
from pipelines.prepare import main, plan_targets
from pipelines.synthetic import render
from tests.helpers.loaders import write_rotated
from tests.helpers.mp4_boxes import build_mp4, encode_stream
from tests.helpers.streams import FRAMES, pack_b_frames, write_frames


@pytest.fixture
def source(tmp_path) -> Path:
    """Return the folder of a list of a landscape, a portrait and a rotated video, of H.264 with long groups."""
    folder = tmp_path / "raw"
    for name, (width, height) in {"a b/wide.mp4": (160, 96), "high.mp4": (96, 170)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        encode_video(folder / name, render(0, 0, 1, 50, width, height), Fraction(25), "h264", gop=50, bframes=2)
    write_rotated(folder / "a b/wide.mp4", folder / "upright.mkv", 1)
    (folder / "train.csv").write_text("a b/wide.mp4,1\nhigh.mp4,0\nupright.mkv,1\n")
    return folder


def decode_all(path: Path) -> np.ndarray:
    with open_video(path) as video:
        numbers = range(len(video.frame_table.packet_of_frame))
        return np.stack([frame.to_ndarray(format="rgb24") for frame, _ in decode_frames(video, numbers)])


@pytest.mark.parametrize(("codec", "signs"), [("h264", ["cabac=0", "deblock=0"]), ("hevc", ["no-deblock", "no-sao"])])
def test_files_are_coded_without_what_is_slow_to_decode(source, tmp_path, codec, signs):
    """The encoders write their settings into the first packet."""
    settings = ["short_side=64", "encoder=software", f"codec={codec}"]
    assert main([str(source / "train.csv"), str(tmp_path / "out"), *settings]) == 0
    content = (tmp_path / "out" / "high.mp4").read_bytes()
    assert all(sign.encode() in content for sign in signs)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_most_bframes_that_are_allowed_are_encoded(source, tmp_path, capsys, codec):
    """x265 refused 15 and 16."""
    settings = ["short_side=64", "encoder=software", f"codec={codec}", "bframes=16"]
    assert main([str(source / "train.csv"), str(tmp_path / "out"), *settings]) == 0
    with open_video(tmp_path / "out" / "high.mp4") as video:
        assert len(required_packets(video.frame_table, [1, 15])[0]) <= 5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 7), ({"bframes": 1}, 1), ({"codec": "vp9"}, 0), ({"encoder": "nvenc"}, 3)],
)
def test_bframes_are_those_that_the_encoder_takes(settings, expected):
    assert prepare.Settings(**settings).coded_bframes == expected


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9"])
def test_prepared_files_have_the_size_groups_and_orientation_for_training(source, tmp_path, capsys, codec):
    out = tmp_path / "out"
    settings = ["short_side=64", f"codec={codec}", "gop=16", "encoder=software"]
    assert main([str(source / "train.csv"), str(out), *settings]) == 0
    printed = capsys.readouterr().out
    assert "3 prepared, 0 not" in printed and "frames decoded per 16x4 clip" in printed
    videos = read_list(out / "train.txt")
    assert [(Path(path).relative_to(out).as_posix(), label) for path, label, *_ in videos] == [
        ("a b/wide.mp4", 1),
        ("high.mp4", 0),
        ("upright.mp4", 1),
    ]
    sizes = []
    for entry in videos:
        with open_video(entry.path) as video:
            sizes.append((video.width, video.height))
            table = video.frame_table
            assert (
                video.codec == codec
                and video.fps == 25
                and not video.has_variable_frame_rate
                and len(table.packet_of_frame) == 50
            )
            assert table.keyframes.tolist() == [0, 16, 32, 48] and table.is_closed[table.is_random_access].all()
            if codec != "vp9":  # one frame in eight is a reference, except at the end of a group
                assert table.is_reference.sum() <= 50 / 8 + 2 * 4
                assert len(required_packets(table, [1, 5, 9, 13])[0]) <= 7
            assert video.stream.codec_context.colorspace == 5 or codec == "vp9"
        assert not check_video(entry.path).broken
    assert sizes == [(112, 64), (64, 112), (64, 112)], "the short side as set, the other a multiple of 16"
    wide, upright = decode_all(Path(videos[0].path)), decode_all(Path(videos[2].path))
    assert np.abs(np.rot90(wide, axes=(1, 2)).astype(int) - upright).mean() < 6


@pytest.fixture
def prepared_names(monkeypatch) -> list[str]:
    """Return a list to which the name of every file is added that is prepared from now on."""
    names: list[str] = []
    real = prepare.prepare_file
    monkeypatch.setattr(prepare, "prepare_file", lambda s, t, path: names.append(Path(path).name) or real(s, t, path))
    return names


def test_only_missing_changed_and_outdated_files_are_prepared_again(source, tmp_path, prepared_names):
    out = tmp_path / "out"
    command = [str(source / "train.csv"), str(out), "short_side=32", "workers=1", "encoder=software"]
    assert main(command) == 0 and len(prepared_names) == 3
    assert main(command) == 0 and len(prepared_names) == 3
    (out / "high.mp4").unlink()
    assert main(command) == 0 and prepared_names[3:] == ["high.mp4"]
    encode_video(source / "a b/wide.mp4", render(1, 0, 1, 30, 96, 64), Fraction(25), codec="h264")
    assert main(command) == 0 and prepared_names[4:] == ["wide.mp4"]
    assert main([*command, "crf=30"]) == 0 and len(prepared_names) == 8


def test_interrupted_command_continues_where_it_stopped(source, tmp_path, monkeypatch, capsys, prepared_names):
    out = tmp_path / "out"
    command = [str(source / "train.csv"), str(out), "short_side=32", "workers=1", "encoder=software"]
    prepare_file = prepare.prepare_file

    def interrupt_at_high(settings, targets, path):
        if "high" in path:
            raise KeyboardInterrupt
        return prepare_file(settings, targets, path)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "prepare_file", interrupt_at_high)
        assert main(command) == 130
    assert "the same command continues from here" in capsys.readouterr().err
    assert prepared_names == ["wide.mp4"] and not list(out.rglob("*.tmp"))
    assert main(command) == 0 and sorted(prepared_names[1:]) == ["high.mp4", "upright.mkv"]


def test_broken_files_are_named_and_left_out(source, tmp_path, capsys):
    (source / "high.mp4").write_bytes((source / "high.mp4").read_bytes()[:900])
    (source / "train.csv").write_text("a b/wide.mp4,1\nhigh.mp4,0\ngone.mp4,0\n")
    assert main([str(source / "train.csv"), str(tmp_path / "out"), "short_side=32", "encoder=software"]) == 1
    out = capsys.readouterr().out
    assert f"{source}/high.mp4: " in out and f"{source}/gone.mp4: no such file" in out and "1 prepared, 2 not" in out
    assert [label for _, label, *_ in read_list(tmp_path / "out/train.txt")] == [1]
    records = [json.loads(line) for line in (tmp_path / "out/prepared.jsonl").read_text().splitlines()]
    assert sum(bool(record.get("error", "")) for record in records) == 2


def test_failed_files_are_tried_again(source, tmp_path, monkeypatch, capsys):
    """If the disk was full, for example, the source is unchanged but must be prepared the next time."""
    command = [str(source / "train.csv"), str(tmp_path / "out"), "short_side=32", "workers=1", "encoder=software"]

    def fail(file, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "encode_video", fail)
        assert main(command) == 1 and "3 not" in capsys.readouterr().out
    assert prepare.encode_video is encode_video and main(command) == 0
    assert len(read_list(tmp_path / "out/train.txt")) == 3


def test_variable_frame_rate_becomes_constant_and_keeps_the_timing(tmp_path):
    """Frames 0 to 19 have 25 frames per second, the others half of it: they are shown twice."""
    levels = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, 64, 1).repeat(96, 2).repeat(3, 3)
    with av.open(str(tmp_path / "v.mkv"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number, pixels in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = number if number < 20 else 2 * number - 20, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    (tmp_path / "l.txt").write_text("v.mkv 0\n")
    assert check_video(str(tmp_path / "v.mkv")).variable_rate
    assert main([str(tmp_path / "l.txt"), str(tmp_path / "out"), "short_side=64", "fps=25", "encoder=software"]) == 0
    actual = decode_all(tmp_path / "out/v.mp4")[:, 32, 48, 0] / 6
    assert not check_video(str(tmp_path / "out/v.mp4")).variable_rate
    expected = [n if n < 20 else (n + 20) // 2 for n in range(59)]
    assert len(actual) == 59 and np.abs(actual - expected).max() < 1


def test_frame_tables_of_prepared_files_are_proven_by_the_bitstream(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    plain = write_frames(raw / "plain.avi", FRAMES, "mpeg4", bframes=2, b_strategy="0", sc_threshold="1000000000")
    pack_b_frames(plain, raw / "packed.avi", "byte")
    plain.unlink()
    write_frames(raw / "cinepak.avi", FRAMES[:12], "cinepak", "rgb24")
    write_frames(raw / "wmv.asf", FRAMES, "wmv2")
    write_frames(raw / "film.m2v", FRAMES, "mpeg2video", bframes=2)
    write_frames(raw / "raw.h264", FRAMES, "libx264", bframes=2)
    write_frames(raw / "moving.gif", FRAMES, "gif", "rgb8")
    (raw / "edits.mp4").write_bytes(build_mp4(encode_stream(FRAMES), edits=[(30, 9)]))
    names = sorted(path.name for path in raw.iterdir())
    (tmp_path / "l.txt").write_text("".join(f"raw/{name} 0\n" for name in names))
    assert main([str(tmp_path / "l.txt"), str(tmp_path / "out"), "short_side=64", "encoder=software"]) == 0
    for name, video in zip(names, read_list(tmp_path / "out/l.txt"), strict=True):
        before, after = read_video_info(str(raw / name)), read_video_info(video.path)
        assert before.proof in ("decoded", "sequential"), name
        assert (after.proof, after.num_frames, after.irregularity) == ("bitstream", before.num_frames, ""), name


def test_video_whose_frame_size_changes_gets_the_size_of_its_first_frame(tmp_path, capsys):
    small, large = ([np.full((h, w, 3), level, np.uint8) for level in (40, 200)] for w, h in ((96, 64), (160, 96)))
    parts = [
        write_frames(tmp_path / f"{number}.h264", frames, "libx264") for number, frames in enumerate((small, large))
    ]
    (tmp_path / "raw.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    (tmp_path / "l.txt").write_text("raw.h264 0\n")
    assert read_video_info(str(tmp_path / "raw.h264")).error == "the frame size changes from 96x64 to 160x96 midway"
    assert main([str(tmp_path / "l.txt"), str(tmp_path / "out"), "short_side=64", "encoder=software"]) == 0
    assert "nothing to compare" in capsys.readouterr().out
    info = read_video_info(str(tmp_path / "out/raw.mp4"))
    assert (info.num_frames, info.width, info.height, info.proof) == (4, 96, 64, "bitstream")
    with open_video(info.path) as video:
        levels = [frame.to_ndarray(format="gray").mean() for frame, _ in decode_frames(video, range(4))]
    assert np.abs(np.array(levels) - (40, 200, 40, 200)).max() < 25


def test_plan_targets_of_a_class_folder_avoids_equal_names(tmp_path):
    for name in ("run/a.mp4", "run/a.avi", "jump/b.webm"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).touch()
    targets, _ = plan_targets(str(tmp_path / "raw"), tmp_path / "out", "")
    assert sorted(Path(target).relative_to(tmp_path / "out").as_posix() for target in targets.values()) == [
        "jump/b.mp4",
        "run/a.mp4",
        "run/a.mp4.mp4",
    ]


def test_plan_of_a_list_without_labels_has_none(tmp_path):
    (tmp_path / "list.txt").write_text("a.avi\nb.mp4\n")
    assert plan_targets(str(tmp_path / "list.txt"), tmp_path / "out", "").lines == [("a.mp4",), ("b.mp4",)]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("short_side=100", "short_side=100: expected a multiple of 16"),
        ("codec=av1", "codec=av1: expected one of h264, hevc, vp9"),
        ("gopp=3", "did you mean gop=?"),
        ("gop=x", "gop=x: expected a whole number"),
        ("bframes=17", "bframes=17: expected at most 16"),
        ("encoder=nvenc codec=vp9", "encoder=nvenc: expected auto or software with codec=vp9"),
        ("third", "expected SRC DST [key=value ...], got"),
    ],
)
def test_command_refuses_wrong_arguments(source, tmp_path, capsys, argument, message):
    assert main([str(source / "train.csv"), str(tmp_path / "out"), *argument.split()]) == 2
    assert message in capsys.readouterr().err
