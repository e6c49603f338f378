"""synthetic: motion has the documented direction and speed, single frames do not reveal it, files match settings."""

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.decode.encoder import CODECS, encode_video
from pipelines.synthetic import CLASSES, RADIUS, SIZES, Settings, main, render, write
from tests.helpers import ROOT

SMALL = ["train=9", "val=2", "test=1", "frames=9", "workers=1"]


def motion(video: np.ndarray) -> dict[str, float]:
    """Estimate the mean motion per frame by least squares on brightness constancy (Lucas-Kanade with an affine flow).

    left, up in px; zoom_in, rotate_cw in px at RADIUS short sides from the center; each negative for its opposite.
    """
    gray = video.astype(np.float32).mean(-1)
    first, second = gray[:-1], gray[1:]
    dt = second - first
    dy, dx = np.gradient((first + second) / 2, axis=(1, 2))
    height, width = gray.shape[1:]
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
    columns = np.stack([-dx, -dy, dx * x + dy * y, dy * x - dx * y], -1).reshape(-1, 4)
    left, up, zoom_in, rotate_cw = np.linalg.lstsq(columns, -dt.reshape(-1), rcond=None)[0]
    radius = RADIUS * min(width, height)
    return {"left": left, "up": up, "zoom_in": zoom_in * radius, "rotate_cw": rotate_cw * radius}


def assert_moves(video: np.ndarray, name: str) -> None:
    """Check that motion `name` has 0.35-2.1 px per frame for a short side of 100, and that there is little other."""
    opposite = {"right": "left", "down": "up", "zoom_out": "zoom_in", "rotate_ccw": "rotate_cw"}
    speeds = {kind: 100 * speed / min(video.shape[1:3]) for kind, speed in motion(video).items()}
    speed = speeds.pop(opposite.get(name, name)) * (-1 if name in opposite else 1)
    assert 0.35 < speed < 2.1, (name, speed)
    assert max(map(abs, speeds.values())) < 0.4 * speed, (name, speed, speeds)


def decode(file: Path | io.BytesIO) -> np.ndarray:
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def keyframe_flags(file: Path | io.BytesIO) -> list[bool]:
    with av.open(file) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert sorted(p.pts for p in packets) == list(range(0, len(packets) * packets[0].duration, packets[0].duration))
    return [packet.is_keyframe for packet in packets]


def test_sizes_suit_nvidia_decoders():
    """They refuse VP9 below 128 pixels per side and HEVC below 144; 4:2:0 needs even sides."""
    assert len(set(SIZES)) == len(SIZES)
    assert all(side >= 160 and side % 2 == 0 for size in SIZES for side in size)
    assert any(width % 16 and height % 16 for width, height in SIZES)
    assert {(width > height) - (width < height) for width, height in SIZES} == {-1, 0, 1}


def test_render_is_a_function_of_its_arguments():
    video = render(0, 3, 5, 7, 64, 48)
    assert video.shape == (7, 48, 64, 3) and video.dtype == np.uint8
    assert np.array_equal(video, render(0, 3, 5, 7, 64, 48))
    for other in [(0, 4, 5, 7, 64, 48), (0, 3, 6, 7, 64, 48), (0, 3, 5, 7, 64, 48, 1)]:
        assert not np.array_equal(video, render(*other))


@pytest.mark.parametrize("label", range(8))
def test_render_moves_as_the_class_says(label):
    for index, (width, height) in enumerate(SIZES):
        assert_moves(render(label, 0, index, 17, width, height), CLASSES[label])


def test_render_middle_frame_is_the_same_for_every_class():
    videos = [render(label, 0, 2, 9, 64, 48) for label in range(8)]
    assert all(np.array_equal(video[4], videos[0][4]) for video in videos)
    assert not any(np.array_equal(video[0], videos[0][0]) for video in videos[1:])


def test_first_and_last_frames_do_not_reveal_the_class():
    """Compute one-way F statistics of features of the first and last frames, for 8 classes x 60 textures each."""
    height, width, n = 48, 64, 60
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    features = np.empty((8, n, 6))
    for label in range(8):
        for index in range(n):
            frame = render(label, 1, 8 * index + label, 61, width, height)[-1 if index % 2 else 0].astype(float)
            spectrum = np.abs(np.fft.fft2(frame.mean(-1) - frame.mean())) ** 2
            radius, across, along = ((f * spectrum).sum() / spectrum.sum() for f in (np.hypot(fy, fx), fx**2, fy**2))
            color = frame.mean((0, 1))
            features[label, index] = [np.log(radius), across - along, np.log(frame.std()), *color]
    between = n * features.mean(1).var(0, ddof=1)
    within = features.var(1, ddof=1).mean(0)
    assert (between / within < 3.5).all()  # F(7, 472) exceeds 3.5 once in a thousand


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bframes", [0, 2])
def test_encode_video_sets_key_frames_and_frame_rate(codec, bframes):
    if bframes and codec not in ("h264", "hevc"):
        with pytest.raises(ValueError, match="bframes=2"):
            encode_video(io.BytesIO(), [], 25, codec, bframes=bframes)
        return
    gop = None if codec == "mjpeg" else 5
    file, video = io.BytesIO(), render(1, 0, 1, 13, 164, 218)
    encode_video(file, video, Fraction(30000, 1001), codec, gop=gop, bframes=bframes)
    with av.open(io.BytesIO(file.getvalue())) as container:
        stream = container.streams.video[0]
        assert "mp4" in container.format.name and stream.codec_context.name == codec
        assert (stream.frames, stream.width, stream.height) == (13, 164, 218)
        assert stream.average_rate == Fraction(30000, 1001)
    assert keyframe_flags(io.BytesIO(file.getvalue())) == [i % (gop or 1) == 0 for i in range(13)]
    decoded = decode(io.BytesIO(file.getvalue()))
    assert decoded.shape == video.shape and np.abs(decoded.astype(int) - video).mean() < 8


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_encode_video_with_open_gop(codec):
    """In an open group, frames that follow the key frame are displayed before it; in a closed group, none are."""
    for open_gop in (False, True):
        file = io.BytesIO()
        encode_video(file, render(0, 0, 0, 24, 64, 48), 25, codec, gop=8, bframes=2, open_gop=open_gop)
        file.seek(0)
        with av.open(file) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        open_keyframes = [i for i, p in enumerate(packets) if p.is_keyframe and any(q.pts < p.pts for q in packets[i:])]
        assert bool(open_keyframes) == open_gop


def test_command_writes_keeps_and_replaces_files(tmp_path, capsys):
    out = tmp_path / "set"
    assert main([str(out), *SMALL]) == 0
    assert (out / "classes.txt").read_text().split() == list(CLASSES[:6])
    lines = [line.split() for line in (out / "train.txt").read_text().splitlines()]
    assert lines[0] == ["train/left_00000.mp4", "0"]
    assert [int(label) for _, label in lines] == [i % 6 for i in range(9)]
    for name, label in lines:
        assert name.split("/")[1].rsplit("_", 1)[0] == CLASSES[int(label)]
        video = decode(out / name)
        assert 8 <= len(video) <= 10 and (video.shape[2], video.shape[1]) in SIZES
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*/*.mp4")}
    assert len(files) == 12

    assert main([str(out), *SMALL, "train=10"]) == 0  # the same again and one more
    assert "1 written, 12 kept" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == mtime for path, (mtime, _) in files.items())
    assert main([str(out), *SMALL]) == 0  # and one less
    assert set(out.glob("*/*")) == set(files)

    assert main([str(out), *SMALL, "seed=1"]) == 0
    assert "12 written, 0 kept" in capsys.readouterr().out
    assert not any(path.read_bytes() == content for path, (_, content) in files.items())


def test_files_do_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        write(tmp_path / str(workers), Settings(train=4, val=0, test=0, frames=18, workers=workers))
    expected, actual = ([path.read_bytes() for path in sorted((tmp_path / w).rglob("*.*"))] for w in "12")
    assert actual == expected


def test_decoded_file_moves_as_its_name_says(tmp_path):
    write(tmp_path, Settings(train=8, val=0, test=0, frames=18, classes=8, workers=1))
    for path in (tmp_path / "train").iterdir():
        assert_moves(decode(path), path.name.rsplit("_", 1)[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian=3"], "trian=3: unknown argument; did you mean train=?"),
        (["train=many"], "train=many: expected a whole number"),
        (["train=-1"], "train=-1: expected"),
        (["codec=av1"], "codec=av1: expected one of vp9"),
        (["classes=7"], "classes=7: expected 6 or 8"),
        (["gop=0"], "gop=0"),
        (["bframes=2"], "bframes=2"),
        (["another"], "expected OUT [key=value ...], got"),
    ],
)
def test_command_refuses_wrong_arguments(tmp_path, capsys, arguments, message):
    assert main([str(tmp_path / "set"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_command_refuses_a_folder_with_other_files(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "left_00000.mp4").write_text("mine")
    assert main([str(tmp_path), *SMALL]) == 2
    assert "manifest.json" in capsys.readouterr().err
    assert (tmp_path / "train" / "left_00000.mp4").read_text() == "mine"


def test_command_run_by_python_m_with_worker_processes(tmp_path):
    """With `python -m` the module is __main__, in which the workers must find their function."""
    command = [sys.executable, "-m", "pipelines.synthetic", str(tmp_path), "train=6", "val=0", "test=0", "frames=10"]
    done = subprocess.run([*command, "workers=2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "train").glob("*.mp4"))) == 6
