"""Index of good files: their metadata, in the order of the list; no file is read twice."""

import dataclasses
import errno
import functools
import os
from pathlib import Path

from pipelines.data import metadata
from pipelines.data.dataset import VideoEntry
from pipelines.data.metadata import build_index, video_scanner
from pipelines.decode import video_info
from pipelines.decode.video_info import read_video_info
from tests.pipelines.index.conftest import assert_bad, write


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
