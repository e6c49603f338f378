"""index: metadata of good files, reasons for bad ones; no file is read twice, and none can stop the index."""

import dataclasses
import errno
import functools
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.data import metadata
from pipelines.data.dataset import VideoEntry
from pipelines.data.metadata import build_index, cache_path, summary, video_scanner
from pipelines.decode import video_info
from pipelines.decode.encoder import encode_video
from pipelines.decode.video_info import VideoInfo, read_video_info
from pipelines.index import main
from tests.helpers import ROOT


def write(
    path: Path,
    num_frames: int = 12,
    codec: str = "vp9",
    *,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    gop: int | None = None,
) -> None:
    """Write a video of noise; `size` is (width, height)."""
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, size[1], size[0], 3), np.uint8)
    encode_video(path, frames, fps, codec=codec, gop=gop)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write(folder / "c.mp4", 12, "vp9", fps=25, size=(64, 48), gop=5)
    write(folder / "a.mp4", 17, "h264", fps=30, size=(48, 64), gop=8)
    write(folder / "b.mp4", 10, "mjpeg", fps=10, size=(80, 48))
    return folder


@pytest.fixture
def videos(originals, tmp_path) -> list[VideoEntry]:
    """Return three good files of three codecs."""
    for path in originals.iterdir():
        shutil.copy2(path, tmp_path)
    return [VideoEntry(str(tmp_path / name), 0) for name in ("c.mp4", "a.mp4", "b.mp4")]


@pytest.fixture
def read_paths(monkeypatch) -> list[str]:
    """Return a list to which the path of every file is added that is read from now on."""
    paths: list[str] = []
    monkeypatch.setattr(metadata, "read_video_info", lambda path: paths.append(path) or read_video_info(path))
    return paths


def assert_bad(info: VideoInfo, reason: str) -> None:
    assert info.num_frames == 0 and re.search(reason, info.error), info
    assert info.path not in info.error, "the path is a field of its own"


# --- good files ---------------------------------------------------------------------------------------------------


def test_read_video_info_of_good_files(videos):
    c, a, b = (read_video_info(video.path) for video in videos)
    assert (c.num_frames, c.fps, c.width, c.height, c.codec, c.keyframes) == (12, 25, 64, 48, "vp9", (0, 5, 10))
    assert (a.num_frames, a.fps, a.width, a.height, a.codec, a.keyframes) == (17, 30, 48, 64, "h264", (0, 8, 16))
    assert (b.num_frames, b.fps, b.width, b.height, b.codec, b.keyframes) == (10, 10, 80, 48, "mjpeg", tuple(range(10)))
    for info in (a, b, c):
        stat = os.stat(info.path)
        assert not info.error and info.size == stat.st_size and info.mtime_ns == stat.st_mtime_ns


def test_index_has_the_order_of_the_list_and_reads_a_repeated_file_once(videos, tmp_path, read_paths):
    c, a, b = videos
    listed = [b, c, VideoEntry(c.path, 7), a, b]
    infos = build_index(listed, tmp_path / "i.jsonl", workers=1)
    assert [info.path for info in infos] == [video.path for video in listed]
    assert sorted(read_paths) == sorted({video.path for video in listed})
    assert [info.num_frames for info in infos] == [10, 12, 12, 17, 10]


def test_cached_files_are_not_read_again(videos, tmp_path, read_paths):
    cache = tmp_path / "i.jsonl"
    expected = build_index(videos, cache, workers=1)
    assert len(read_paths) == 3 and cache.exists()
    text = cache.read_text()
    read_paths.clear()
    assert build_index(videos, cache, workers=1) == expected and read_paths == [] and cache.read_text() == text
    write(tmp_path / "d.mp4", 5)
    more = [VideoEntry(str(tmp_path / "d.mp4"), 1), *reversed(videos)]
    assert build_index(more, cache, workers=1)[1:] == expected[::-1] and read_paths == [more[0].path]


def test_only_changed_files_are_read_again(videos, tmp_path, read_paths):
    cache = tmp_path / "i.jsonl"
    before = build_index(videos, cache, workers=1)
    read_paths.clear()
    write(tmp_path / "a.mp4", 9, "vp9")
    after = build_index(videos, cache, workers=1)
    assert read_paths == [videos[1].path]
    assert (after[1].num_frames, after[1].codec) == (9, "vp9") and (after[0], after[2]) == (before[0], before[2])
    read_paths.clear()
    stat = os.stat(videos[2].path)
    os.utime(videos[2].path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # same size, other mtime
    build_index(videos, cache, workers=1)
    assert read_paths == [videos[2].path]


def test_file_that_disappears_and_returns_is_read_again(videos, tmp_path, read_paths):
    cache, path = tmp_path / "i.jsonl", Path(videos[0].path)
    build_index(videos, cache, workers=1)
    path.rename(tmp_path / "away")
    assert_bad(build_index(videos, cache, workers=1)[0], "^no such file$")
    read_paths.clear()
    assert_bad(build_index(videos, cache, workers=1)[0], "^no such file$")
    assert read_paths == []
    (tmp_path / "away").rename(path)
    assert build_index(videos, cache, workers=1)[0].num_frames == 12 and read_paths == [str(path)]


def test_file_that_the_system_refused_is_read_again_and_the_index_kept(videos, tmp_path, monkeypatch, read_paths):
    """Permissions and full tables of open files pass without a change of the file."""
    cache, read = tmp_path / "i.jsonl", metadata.read_video_info
    refused = functools.partial(video_info.unreadable_video_info, reason=os.strerror(errno.EACCES))
    monkeypatch.setattr(metadata, "read_video_info", refused)
    build_index(videos[:1], cache, workers=1)
    before = os.stat(cache).st_mtime_ns
    assert_bad(build_index(videos[:1], cache, workers=1)[0], "^Permission denied$")
    assert os.stat(cache).st_mtime_ns == before, "what was found again is not written again"
    monkeypatch.setattr(metadata, "read_video_info", read)
    assert build_index(videos[:1], cache, workers=1)[0].num_frames == 12 and read_paths == [videos[0].path]
    assert build_index(videos[:1], cache, workers=1)[0].num_frames == 12 and len(read_paths) == 1


def test_worker_processes_build_the_same_index(videos, tmp_path, monkeypatch):
    listed = [*videos, VideoEntry(str(tmp_path / "missing.mp4"), 0)]
    expected = build_index(listed, tmp_path / "1.jsonl", workers=1)
    scanner = dataclasses.replace(video_scanner(), min_files_for_pool=1)
    monkeypatch.setattr(metadata, "video_scanner", lambda: scanner)
    assert build_index(listed, tmp_path / "2.jsonl", workers=2) == expected
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()


# --- bad files ----------------------------------------------------------------------------------------------------


def test_missing_empty_and_text_files_and_folders_are_unusable(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "folder.mp4").mkdir()
    assert_bad(read_video_info(str(tmp_path / "missing.mp4")), "^no such file$")
    assert_bad(read_video_info(str(tmp_path / "empty.mp4")), "^empty file$")
    assert_bad(read_video_info(str(tmp_path / "text.mp4")), "^not a readable video: Invalid data")
    assert_bad(read_video_info(str(tmp_path / "folder.mp4")), "^a folder without images ")


def test_file_with_audio_only_is_unusable(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name in ("a.wav", "a.mp4"):
        assert_bad(read_video_info(str(tmp_path / name)), r"^no video stream \(the file has: audio\)$")


def test_file_cut_before_its_moov_box_is_unusable(tmp_path):
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"mdat") < data.find(b"moov")
    (tmp_path / "a.mp4").write_bytes(data[: data.find(b"moov") - 4])
    assert_bad(read_video_info(str(tmp_path / "a.mp4")), "^not a readable video: ")


def test_file_cut_after_its_moov_box_has_the_frames_before_the_cut(tmp_path):
    write(tmp_path / "a.mp4", 12, "h264", gop=4)
    with av.open(str(tmp_path / "a.mp4")) as source:
        with av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    start = data.find(b"mdat")
    assert 0 < data.find(b"moov") < start
    assert read_video_info(str(tmp_path / "b.mp4")).num_frames == 12
    (tmp_path / "b.mp4").write_bytes(data[: start + (len(data) - start) // 2])
    info = read_video_info(str(tmp_path / "b.mp4"))
    assert 4 <= info.num_frames <= 7 and not info.error


def test_file_of_a_codec_unknown_to_ffmpeg_is_unusable(tmp_path):
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"vp09") == 1
    (tmp_path / "a.mp4").write_bytes(data.replace(b"vp09", b"zz09"))
    assert_bad(read_video_info(str(tmp_path / "a.mp4")), "codec")


def test_metadata_in_another_encoding_does_not_make_a_file_unusable(tmp_path):
    """Titles and handler names in Latin-1 or Shift-JIS are common in old files and not needed."""
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"VideoHandler") == 1
    (tmp_path / "a.mp4").write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    info = read_video_info(str(tmp_path / "a.mp4"))
    assert (info.num_frames, info.error) == (12, "")


def test_file_name_is_not_taken_for_a_protocol_or_pattern(tmp_path, monkeypatch):
    """A list in the current folder gives bare names; FFmpeg must not interpret `a:` or `%03d`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "a%03d.mp4", "-a.mp4", "ü #?.mp4"):
        write(tmp_path / name)
        info = read_video_info(name)
        assert (info.path, info.num_frames, info.error) == (name, 12, "")


@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc", "mjpeg"])
def test_read_video_info_never_raises_on_a_damaged_file(tmp_path, codec):
    write(tmp_path / "a.mp4", 14, codec, gop=None if codec == "mjpeg" else 5)
    data = (tmp_path / "a.mp4").read_bytes()
    moov = data.find(b"moov") - 4
    rng, num_errors = random.Random(0), 0
    for trial in range(80):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 3, 10])):
            damaged[rng.randrange(moov if trial % 2 else 0, len(data))] = rng.randrange(256)
        (tmp_path / "b.mp4").write_bytes(damaged)
        info = read_video_info(str(tmp_path / "b.mp4"))
        assert bool(info.error) == (info.num_frames == 0)
        num_errors += bool(info.error)
    assert num_errors, "the damage was too mild to test anything"


# --- the cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "not json\n",
        lambda text: text.replace('"keyframes"', '"keyframe"'),
        lambda text: text.replace('"codec"', '"codex"'),
        lambda text: "[1, 2]\n" + text,
        lambda text: "\ud8ff" + text,
    ],
    ids=["text", "missing key", "unknown key", "list", "binary"],
)
def test_damaged_cache_is_reported_and_rebuilt(videos, tmp_path, read_paths, capsys, damage):
    cache = tmp_path / "i.jsonl"
    expected = build_index(videos, cache, workers=1)
    text = cache.read_text()
    cache.write_bytes(damage(text).encode(errors="surrogatepass"))
    read_paths.clear()
    assert build_index(videos, cache, workers=1) == expected and len(read_paths) == 3
    assert f"{cache}: not a readable index (" in capsys.readouterr().err
    assert cache.read_text() == text
    build_index(videos, cache, workers=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_interrupted_index_continues_where_it_stopped(videos, tmp_path, monkeypatch, read_paths, capsys, cut):
    cache = tmp_path / "i.jsonl"
    num_read = itertools.count()

    def read_two_files(path):
        if next(num_read) == 2:
            raise KeyboardInterrupt
        return read_video_info(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metadata, "read_video_info", read_two_files)
        build_index(videos, cache, workers=1)
    text = cache.read_text()
    cache.write_text(text[: len(text) - cut])  # the last line may be complete or not
    read_paths.clear()
    infos = build_index(videos, cache, workers=1)
    assert [info.num_frames for info in infos] == [12, 17, 10] and len(read_paths) == (1 if cut < 2 else 2)
    assert len(cache.read_text().splitlines()) == 3 and capsys.readouterr().err == ""


def test_incomplete_line_in_the_cache_costs_one_file(videos, tmp_path, read_paths, capsys):
    """After a second interruption, other lines follow the one that the first interruption cut."""
    cache = tmp_path / "i.jsonl"
    expected = build_index(videos, cache, workers=1)
    first, second, third = cache.read_text().splitlines(keepends=True)
    cache.write_text(first + second[:30] + "\n" + third)
    read_paths.clear()
    assert build_index(videos, cache, workers=1) == expected and read_paths == [videos[1].path]
    assert not capsys.readouterr().err


def test_index_of_some_files_keeps_the_other_entries(videos, tmp_path, read_paths):
    cache = tmp_path / "i.jsonl"
    build_index(videos, cache, workers=1)
    write(tmp_path / "a.mp4", 9, "vp9")
    build_index(videos[1:2], cache, workers=1)
    read_paths.clear()
    build_index(videos, cache, workers=1)
    assert read_paths == []


def crash_or_read(path: str) -> VideoInfo:
    """Exit as a process does in which a decoder crashes."""
    if path.endswith("_crash.mp4"):
        os._exit(11)
    return read_video_info(path)


def test_file_that_crashes_its_worker_is_named_and_the_others_are_read(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{number}_{'crash' if number in (7, 30) else 'fine'}.mp4") for number in range(40)]
    scanner = dataclasses.replace(video_scanner(), scan=crash_or_read, min_files_for_pool=1)
    monkeypatch.setattr(metadata, "video_scanner", lambda: scanner)
    infos = build_index([VideoEntry(path, 0) for path in paths], tmp_path / "i.jsonl", workers=2)
    assert [info.path for info in infos] == paths
    assert [n for n, info in enumerate(infos) if "crashes the process" in info.error] == [7, 30]
    assert sum(info.missing for info in infos) == 38


def raise_or_read(path: str) -> VideoInfo:
    return {}[path] if path.endswith("odd.mp4") else read_video_info(path)


@pytest.mark.parametrize("workers", [1, 2])
def test_file_that_reveals_a_bug_is_named_and_the_others_are_read(tmp_path, monkeypatch, workers):
    paths = [str(tmp_path / name) for name in ("fine1.mp4", "odd.mp4", "fine2.mp4")]
    scanner = dataclasses.replace(video_scanner(), scan=raise_or_read, min_files_for_pool=1)
    monkeypatch.setattr(metadata, "video_scanner", lambda: scanner)
    infos = build_index([VideoEntry(path, 0) for path in paths], tmp_path / "i.jsonl", workers=workers)
    assert [info.missing for info in infos] == [True, False, True]
    assert infos[1].error.startswith("KeyError: ") and "report it" in infos[1].error


@pytest.mark.slow
def test_pool_workers_end_when_their_parent_is_killed(tmp_path):
    script = "import time; from utils.workers import worker_pool\n" + (
        "with worker_pool(2) as pool:\n    pool.submit(time.sleep, 0).result(); print(*pool._processes, flush=True)\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers
    process.kill()
    process.wait()
    time.sleep(2)
    assert not [
        pid for pid in workers if Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text()
    ]


@pytest.mark.parametrize("method", ["write_text", "replace"])
def test_cache_that_cannot_be_written_is_reported_and_leaves_no_files(videos, tmp_path, monkeypatch, capsys, method):
    real_method = getattr(Path, method)

    def fail(self, *args, **kwargs):
        if method == "replace":
            raise OSError(errno.EROFS, "Read-only file system")
        real_method(self, *args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")  # after the file was written

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, fail)
        infos = build_index(videos, tmp_path / "i.jsonl", workers=1)
    assert [info.num_frames for info in infos] == [12, 17, 10]
    reason = "Read-only file system" if method == "replace" else "No space left on device"
    assert f"{tmp_path}/i.jsonl: the index cannot be saved ({reason})" in capsys.readouterr().err
    # The entries were appended to i.jsonl as they came.
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4", "c.mp4", "i.jsonl"}
    assert build_index(videos, tmp_path / "i.jsonl", workers=1) == infos


def test_cache_below_a_file_is_reported(videos, tmp_path, capsys):
    (tmp_path / "no").write_text("")
    assert len(build_index(videos, tmp_path / "no" / "i.jsonl", workers=1)) == 3
    assert "the index cannot be saved (Not a directory)" in capsys.readouterr().err


def test_cache_path_is_beside_the_list_or_the_folder():
    assert cache_path("data/train.txt") == Path("data/train.txt.index.jsonl")
    assert cache_path("data/videos/") == cache_path(Path("data/videos")) == Path("data/videos.index.jsonl")


# --- the command --------------------------------------------------------------------------------------------------


def test_summary_counts_usable_files_only():
    infos = [
        VideoInfo("a", num_frames=3600, fps=1.0, width=4, height=2, codec="vp9", proof="bitstream"),
        VideoInfo("b", num_frames=1800, fps=0.5, width=4, height=4, codec="h264", proof="sequential"),
        VideoInfo("c", error="empty file"),
    ]
    assert summary(infos) == (
        "3 videos, 3 found, 0 missing, 1 unusable, 2.00 hours, frame tables: 1 bitstream, 1 sequential, "
        "5400 frames, codecs: h264, vp9, 2 frame sizes"
    )
    assert summary(infos[2:]) == (
        "1 videos, 1 found, 0 missing, 1 unusable, 0.00 hours, 0 frames, codecs: none, 0 frame sizes"
    )


def test_command_prints_a_summary_and_writes_the_index(videos, tmp_path):
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 0\n")
    command = [sys.executable, "-m", "pipelines.index", str(tmp_path / "l.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "3 videos, 3 found, 0 missing, 0 unusable, 0.00 hours, frame tables: 3 bitstream, 39 frames, "
        "codecs: h264, mjpeg, vp9, 3 frame sizes\n"
    )
    assert len((tmp_path / "l.txt.index.jsonl").read_text().splitlines()) == 3


def test_command_names_bad_files_and_fails(videos, tmp_path, capsys):
    (tmp_path / "l.txt").write_text("a.mp4 0\nmissing.mp4 1\n")
    assert main([str(tmp_path / "l.txt")]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path}/missing.mp4: no such file\n" in out
    assert "2 videos, 1 found, 1 missing, 0 unusable, 0.00 hours, frame tables: 1 bitstream, 17 frames" in out


def test_command_reads_files_below_root(videos, tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text("a.mp4 0\n")
    assert main([str(tmp_path / "lists" / "l.txt")]) == 1
    assert main([str(tmp_path / "lists" / "l.txt"), f"root={tmp_path}"]) == 0


def test_command_prints_help_and_names_a_missing_list(tmp_path, capsys):
    assert main([]) == 2 and "python -m pipelines.index LIST" in capsys.readouterr().out
    assert main(["--help"]) == 0 and "python -m pipelines.index LIST" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing.txt")]) == 2
    assert f"{tmp_path}/nothing.txt: no such list or folder" in capsys.readouterr().err


def test_command_refuses_an_unknown_setting(videos, tmp_path, capsys):
    (tmp_path / "l.txt").write_text("a.mp4 0\n")
    assert main([str(tmp_path / "l.txt"), f"rot={tmp_path}"]) == 2
    assert f"rot={tmp_path}: unknown argument; did you mean root=?" in capsys.readouterr().err
