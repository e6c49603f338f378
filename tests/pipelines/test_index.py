"""index: a row says what a file holds, or why it cannot be used; no file is read twice, and none can stop the index."""

import dataclasses
import errno
import os
import random
import re
import shutil
import subprocess
import sys
import time
import wave
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines import index
from pipelines.data.dataset import Clip
from pipelines.data.metadata import build_index, cache_path, reading, summary
from pipelines.decode import video_info
from pipelines.decode.encoder import encode
from pipelines.decode.video_info import Row, read_row
from pipelines.index import main
from tests.helpers.runs import ROOT


def write(
    path: Path, frames: int = 12, codec: str = "vp9", fps: int = 25, size: tuple = (64, 48), gop: int | None = None
):
    pictures = np.random.default_rng(frames).integers(0, 256, (frames, size[1], size[0], 3), np.uint8)
    encode(path, pictures, fps, codec, gop)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write(folder / "c.mp4", 12, "vp9", 25, (64, 48), gop=5)
    write(folder / "a.mp4", 17, "h264", 30, (48, 64), gop=8)
    write(folder / "b.mp4", 10, "mjpeg", 10, (80, 48))
    return folder


@pytest.fixture
def videos(originals, tmp_path) -> list[Clip]:
    """Three good files of three codecs."""
    for path in originals.iterdir():
        shutil.copy2(path, tmp_path)
    return [Clip(str(tmp_path / name), 0) for name in ("c.mp4", "a.mp4", "b.mp4")]


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The paths that are read from now on."""
    seen: list[str] = []
    real = read_row
    monkeypatch.setattr(index, "read_row", lambda path: seen.append(path) or real(path))
    return seen


def assert_bad(row: Row, reason: str) -> None:
    assert row.num_frames == 0 and re.search(reason, row.error), row
    assert row.path not in row.error, "the path stands in the row already"


# --- good files ---------------------------------------------------------------------------------------------------


def test_a_row_says_what_the_file_holds(videos):
    c, a, b = map(read_row, (clip.path for clip in videos))
    assert (c.num_frames, c.fps, c.width, c.height, c.codec, c.keyframes) == (12, 25, 64, 48, "vp9", (0, 5, 10))
    assert (a.num_frames, a.fps, a.width, a.height, a.codec, a.keyframes) == (17, 30, 48, 64, "h264", (0, 8, 16))
    assert (b.num_frames, b.fps, b.width, b.height, b.codec, b.keyframes) == (10, 10, 80, 48, "mjpeg", tuple(range(10)))
    for row in (a, b, c):
        assert not row.error and row.size == os.stat(row.path).st_size and row.changed == os.stat(row.path).st_mtime_ns


def test_rows_stand_in_the_order_of_the_list_and_a_file_listed_twice_is_read_once(videos, tmp_path, reads):
    c, a, b = videos
    clips = [b, c, Clip(c.path, 7), a, b]
    rows = build_index(clips, tmp_path / "i.jsonl", workers=1)
    assert [row.path for row in rows] == [clip.path for clip in clips]
    assert sorted(reads) == sorted({clip.path for clip in clips})
    assert [row.num_frames for row in rows] == [10, 12, 12, 17, 10]


def test_what_is_in_the_cache_is_not_read_again(videos, tmp_path, reads):
    cache = tmp_path / "i.jsonl"
    first = build_index(videos, cache, workers=1)
    assert len(reads) == 3 and cache.exists()
    text = cache.read_text()
    reads.clear()
    assert build_index(videos, cache, workers=1) == first and reads == [] and cache.read_text() == text
    write(tmp_path / "d.mp4", 5)
    more = [Clip(str(tmp_path / "d.mp4"), 1), *reversed(videos)]
    assert build_index(more, cache, workers=1)[1:] == first[::-1] and reads == [more[0].path]


def test_only_a_file_that_changed_is_read_again(videos, tmp_path, reads):
    cache = tmp_path / "i.jsonl"
    before = build_index(videos, cache, workers=1)
    reads.clear()
    write(tmp_path / "a.mp4", 9, "vp9")
    after = build_index(videos, cache, workers=1)
    assert reads == [videos[1].path]
    assert (after[1].num_frames, after[1].codec) == (9, "vp9") and (after[0], after[2]) == (before[0], before[2])
    reads.clear()
    stat = os.stat(videos[2].path)
    os.utime(videos[2].path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # same size, another time
    build_index(videos, cache, workers=1)
    assert reads == [videos[2].path]


def test_a_file_that_goes_and_comes_back(videos, tmp_path, reads):
    cache, path = tmp_path / "i.jsonl", Path(videos[0].path)
    build_index(videos, cache, workers=1)
    path.rename(tmp_path / "away")
    assert_bad(build_index(videos, cache, workers=1)[0], "^no such file$")
    reads.clear()
    assert_bad(build_index(videos, cache, workers=1)[0], "^no such file$")
    assert reads == []
    (tmp_path / "away").rename(path)
    assert build_index(videos, cache, workers=1)[0].num_frames == 12 and reads == [str(path)]


def test_worker_processes_give_the_same_rows(videos, tmp_path, monkeypatch):
    clips = [*videos, Clip(str(tmp_path / "missing.mp4"), 0)]
    alone = build_index(clips, tmp_path / "1.jsonl", workers=1)
    monkeypatch.setattr(index, "reading", lambda: dataclasses.replace(reading(), pool_from=1))
    assert build_index(clips, tmp_path / "2.jsonl", workers=2) == alone
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()


# --- bad files ----------------------------------------------------------------------------------------------------


def test_a_missing_an_empty_a_text_file_and_a_folder(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "folder.mp4").mkdir()
    assert_bad(read_row(str(tmp_path / "missing.mp4")), "^no such file$")
    assert_bad(read_row(str(tmp_path / "empty.mp4")), "^empty file$")
    assert_bad(read_row(str(tmp_path / "text.mp4")), "^not a readable video: Invalid data")
    assert_bad(read_row(str(tmp_path / "folder.mp4")), "^a folder$")


def test_sound_alone_is_no_video(tmp_path):
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
        assert_bad(read_row(str(tmp_path / name)), r"^no video stream \(the file has: audio\)$")


def test_a_file_cut_before_its_table_of_contents_is_unusable(tmp_path):
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"mdat") < data.find(b"moov")
    (tmp_path / "a.mp4").write_bytes(data[: data.find(b"moov") - 4])
    assert_bad(read_row(str(tmp_path / "a.mp4")), "^not a readable video: ")


def test_a_file_cut_after_its_table_of_contents_has_the_frames_before_the_cut(tmp_path):
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
    assert read_row(str(tmp_path / "b.mp4")).num_frames == 12
    (tmp_path / "b.mp4").write_bytes(data[: start + (len(data) - start) // 2])
    row = read_row(str(tmp_path / "b.mp4"))
    assert 4 <= row.num_frames <= 7 and not row.error


def test_a_codec_that_ffmpeg_does_not_know_is_unusable_and_stops_nothing(tmp_path):
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"vp09") == 1
    (tmp_path / "a.mp4").write_bytes(data.replace(b"vp09", b"zz09"))
    assert_bad(read_row(str(tmp_path / "a.mp4")), "codec")


def test_text_in_another_encoding_does_not_make_a_video_unusable(tmp_path):
    """Titles and handler names in Latin-1 or Shift-JIS are common in old files; nobody needs them here."""
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"VideoHandler") == 1
    (tmp_path / "a.mp4").write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    row = read_row(str(tmp_path / "a.mp4"))
    assert (row.num_frames, row.error) == (12, "")


def test_a_file_name_is_not_taken_for_an_address(tmp_path, monkeypatch):
    """A list in the current folder gives bare names; `a:b.mp4` is no protocol, `%03d` no pattern."""
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "a%03d.mp4", "-a.mp4", "ü #?.mp4"):
        write(tmp_path / name)
        row = read_row(name)
        assert (row.path, row.num_frames, row.error) == (name, 12, "")


@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc", "mjpeg"])
def test_no_damage_stops_the_index(tmp_path, codec):
    write(tmp_path / "a.mp4", 14, codec, gop=None if codec == "mjpeg" else 5)
    data = (tmp_path / "a.mp4").read_bytes()
    contents = data.find(b"moov") - 4
    draw, errors = random.Random(0), 0
    for trial in range(80):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 3, 10])):
            damaged[draw.randrange(contents if trial % 2 else 0, len(data))] = draw.randrange(256)
        (tmp_path / "b.mp4").write_bytes(damaged)
        row = read_row(str(tmp_path / "b.mp4"))
        assert bool(row.error) == (row.num_frames == 0)
        errors += bool(row.error)
    assert errors, "the damage was too mild to test anything"


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
def test_a_damaged_cache_is_reported_and_rebuilt(videos, tmp_path, reads, capsys, damage):
    cache = tmp_path / "i.jsonl"
    rows = build_index(videos, cache, workers=1)
    text = cache.read_text()
    cache.write_bytes(damage(text).encode(errors="surrogatepass"))
    reads.clear()
    assert build_index(videos, cache, workers=1) == rows and len(reads) == 3
    assert f"{cache}: not a readable index (" in capsys.readouterr().err
    assert cache.read_text() == text
    build_index(videos, cache, workers=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_an_index_that_was_killed_goes_on_where_it_stopped(videos, tmp_path, monkeypatch, reads, capsys, cut):
    cache, real = tmp_path / "i.jsonl", video_info.read_row

    def killed(path):
        if len(reads) == 2:
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index, "read_row", killed)
        build_index(videos, cache, workers=1)
    text = cache.read_text()
    cache.write_text(text[: len(text) - cut])  # the last line may be whole or not
    reads.clear()
    rows = build_index(videos, cache, workers=1)
    assert [row.num_frames for row in rows] == [12, 17, 10] and len(reads) == (1 if cut < 2 else 2)
    assert len(cache.read_text().splitlines()) == 3 and capsys.readouterr().err == ""


def test_a_cut_line_in_the_middle_costs_one_file(videos, tmp_path, reads, capsys):
    """Killed twice: the second time the line that the first had cut is followed by others."""
    cache = tmp_path / "i.jsonl"
    rows = build_index(videos, cache, workers=1)
    first, second, third = cache.read_text().splitlines(keepends=True)
    cache.write_text(first + second[:30] + "\n" + third)
    reads.clear()
    assert build_index(videos, cache, workers=1) == rows and reads == [videos[1].path] and not capsys.readouterr().err


def test_an_index_of_a_part_keeps_the_rest(videos, tmp_path, reads):
    cache = tmp_path / "i.jsonl"
    build_index(videos, cache, workers=1)
    write(tmp_path / "a.mp4", 9, "vp9")
    build_index(videos[1:2], cache, workers=1)
    reads.clear()
    build_index(videos, cache, workers=1)
    assert reads == []


def kill_reader(path: str) -> Row:
    """What a decoder's crash does to the process."""
    if "crash" in path:
        os._exit(11)
    return read_row(path)


def test_a_file_that_ends_its_reader_is_named_and_the_others_are_read(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{number}_{'crash' if number in (7, 30) else 'fine'}.mp4") for number in range(40)]
    deadly = dataclasses.replace(reading(), read=kill_reader, pool_from=1)
    monkeypatch.setattr(index, "reading", lambda: deadly)
    rows = build_index([Clip(path, 0) for path in paths], tmp_path / "i.jsonl", workers=2)
    assert [row.path for row in rows] == paths
    assert [n for n, row in enumerate(rows) if "ends the process" in row.error] == [7, 30]
    assert sum(row.missing for row in rows) == 38


def stumble(path: str) -> Row:
    return read_row(path) if "fine" in path else {}[path]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_that_a_file_brings_to_light_is_named_and_the_others_are_read(tmp_path, monkeypatch, workers):
    paths = [str(tmp_path / name) for name in ("fine1.mp4", "odd.mp4", "fine2.mp4")]
    monkeypatch.setattr(index, "reading", partial(dataclasses.replace, reading(), read=stumble, pool_from=1))
    rows = build_index([Clip(path, 0) for path in paths], tmp_path / "i.jsonl", workers=workers)
    assert [row.missing for row in rows] == [True, False, True]
    assert rows[1].error.startswith("KeyError: ") and "report it" in rows[1].error


@pytest.mark.slow
def test_readers_end_with_the_process_that_started_them(tmp_path):
    script = "import time; from utils.distributed import worker_pool\n" + (
        "with worker_pool(2) as pool:\n    pool.submit(time.sleep, 0).result(); print(*pool._processes, flush=True)\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    readers = [int(pid) for pid in process.stdout.readline().split()]
    assert readers
    process.kill()
    process.wait()
    time.sleep(2)
    assert not [
        pid for pid in readers if Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text()
    ]


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_a_cache_that_cannot_be_written_is_reported_and_leaves_nothing(videos, tmp_path, monkeypatch, capsys, step):
    real = getattr(Path, step)

    def refuse(self, *args, **kwargs):
        if step == "replace":
            raise OSError(errno.EROFS, "Read-only file system")
        real(self, *args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")  # after half of it was written

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, refuse)
        rows = build_index(videos, tmp_path / "i.jsonl", workers=1)
    assert [row.num_frames for row in rows] == [12, 17, 10]
    reason = "Read-only file system" if step == "replace" else "No space left on device"
    assert f"{tmp_path}/i.jsonl: the index cannot be kept ({reason})" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4", "c.mp4", "i.jsonl"}  # as it was read
    assert build_index(videos, tmp_path / "i.jsonl", workers=1) == rows


def test_a_cache_in_a_folder_that_cannot_be_is_reported(videos, tmp_path, capsys):
    (tmp_path / "no").write_text("")
    assert len(build_index(videos, tmp_path / "no" / "i.jsonl", workers=1)) == 3
    assert "the index cannot be kept (Not a directory)" in capsys.readouterr().err


def test_the_cache_lies_beside_the_list_or_the_folder():
    assert cache_path("data/train.txt") == Path("data/train.txt.index.jsonl")
    assert cache_path("data/videos/") == cache_path(Path("data/videos")) == Path("data/videos.index.jsonl")


# --- the command --------------------------------------------------------------------------------------------------


def test_the_summary_counts_usable_files_only():
    rows = [
        Row("a", num_frames=3600, fps=1.0, width=4, height=2, codec="vp9", proof="bitstream"),
        Row("b", num_frames=1800, fps=0.5, width=4, height=4, codec="h264", proof="sequential"),
        Row("c", error="empty file"),
    ]
    assert (
        summary(rows)
        == "3 videos, 3 found, 0 missing, 1 unusable, 2.00 hours, frame tables: 1 bitstream, 1 sequential, "
        "5400 frames, codecs: h264, vp9, 2 frame sizes"
    )
    assert (
        summary(rows[2:])
        == "1 videos, 1 found, 0 missing, 1 unusable, 0.00 hours, 0 frames, codecs: none, 0 frame sizes"
    )


def test_the_command_prints_a_summary_and_keeps_the_index(videos, tmp_path):
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 0\n")
    command = [sys.executable, "-m", "pipelines.index", str(tmp_path / "l.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout == "3 videos, 3 found, 0 missing, 0 unusable, 0.00 hours, frame tables: 3 bitstream, 39 frames, "
        "codecs: h264, mjpeg, vp9, 3 frame sizes\n"
    )
    assert len((tmp_path / "l.txt.index.jsonl").read_text().splitlines()) == 3


def test_the_command_names_bad_files_and_fails(videos, tmp_path, capsys):
    (tmp_path / "l.txt").write_text("a.mp4 0\nmissing.mp4 1\n")
    assert main([str(tmp_path / "l.txt")]) == 1
    out = capsys.readouterr().out
    assert (
        f"{tmp_path}/missing.mp4: no such file\n" in out
        and "2 videos, 1 found, 1 missing, 0 unusable, 0.00 hours, frame tables: 1 bitstream, 17 frames" in out
    )


def test_the_command_takes_a_root(videos, tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text("a.mp4 0\n")
    assert main([str(tmp_path / "lists" / "l.txt")]) == 1
    assert main([str(tmp_path / "lists" / "l.txt"), f"root={tmp_path}"]) == 0


def test_the_command_explains_itself(tmp_path, capsys):
    assert main([]) == 2 and "python -m pipelines.index LIST" in capsys.readouterr().out
    assert main(["--help"]) == 0 and "python -m pipelines.index LIST" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing.txt")]) == 2
    assert f"{tmp_path}/nothing.txt: no such list or folder" in capsys.readouterr().err


def test_the_command_refuses_what_it_does_not_know(videos, tmp_path, capsys):
    (tmp_path / "l.txt").write_text("a.mp4 0\n")
    assert main([str(tmp_path / "l.txt"), f"rot={tmp_path}"]) == 2
    assert "rot=" in capsys.readouterr().err
