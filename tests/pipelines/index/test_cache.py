"""Cache of the index: damaged, incomplete, interrupted or not writable."""

import dataclasses
import errno
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.data import metadata
from pipelines.data.dataset import VideoEntry
from pipelines.data.metadata import build_index, cache_path, video_scanner
from pipelines.decode.video_info import VideoInfo, read_video_info
from tests.helpers import ROOT
from tests.pipelines.index.conftest import write


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
