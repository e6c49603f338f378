"""Videos that cannot be read: replaced in training, failed in evaluation, and too many of them stop the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.sample_source import TooManyUnreadableVideos
from tests.helpers.loaders import collect, is_same_stream, make_loader


@pytest.fixture
def damaged_list(clips_folder, tmp_path) -> Path:
    """Return a list of nine videos of which 2 is missing, 4 is text, and 6 has frames that only a decoder refuses."""
    path = clips_folder(tmp_path, 9)
    (tmp_path / "2.mp4").unlink()
    (tmp_path / "4.mp4").unlink()
    (tmp_path / "4.mp4").write_text("not a video")
    content = (tmp_path / "6.mp4").resolve().read_bytes()
    (tmp_path / "6.mp4").unlink()
    start = content.index(b"mdat") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    (tmp_path / "6.mp4").write_bytes(content[:start] + b"\xff" * size + content[start + size :])
    return path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_replaces_unreadable_videos(damaged_list, decoder, num_workers):
    overrides = [decoder, "data.max_unreadable=0.5"]
    loader = make_loader(damaged_list, *overrides, f"data.num_workers={num_workers}")
    stream = collect(loader, 3)
    assert set(loader.bad_videos) == {2, 4, 6}
    assert loader.bad_videos[2] == "no such file" and loader.bad_videos[4].startswith("not a readable video")
    assert not {2, 4, 6} & {index for _, indices, _ in stream for index in indices}
    for labels, indices, video in stream:
        assert labels == [index % 6 for index in indices]
        assert video.isfinite().all()
    assert is_same_stream(collect(make_loader(damaged_list, *overrides), 3), stream), "the replacement is reproducible"


def test_evaluation_marks_unreadable_videos_as_failed(damaged_list, decoder):
    loader = make_loader(damaged_list, decoder, split="test")
    indices = [index for _, batch, _ in collect(loader, 1) for index in batch]
    assert indices == [0, 1, -1, 3, -1, 5, -1, 7, 8]
    assert set(loader.bad_videos) == {2, 4, 6}


def test_more_videos_lost_after_indexing_than_max_unreadable_stop_the_run(clips_folder, tmp_path):
    loader = make_loader(clips_folder(tmp_path, 9), "data.max_unreadable=0.2")
    for index in (2, 4, 6):
        (tmp_path / f"{index}.mp4").unlink()  # a link to a file that other tests read
        (tmp_path / f"{index}.mp4").write_bytes(b"")
    message = r"2 of 9 videos cannot be read, more than data.max_unreadable=0.2[\s\S]*[246].mp4"
    with pytest.raises(TooManyUnreadableVideos, match=message):
        collect(loader, 3)


def test_file_deleted_after_indexing_is_a_bad_video(clips_folder, tmp_path):
    loader = make_loader(clips_folder(tmp_path, 6), "data.max_unreadable=0.5")
    (tmp_path / "3.mp4").unlink()
    collect(loader, 2)
    assert loader.bad_videos == {3: "no such file"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_files_deleted_after_indexing_stop_the_run(clips_folder, tmp_path, num_workers):
    loader = make_loader(clips_folder(tmp_path, 6), f"data.num_workers={num_workers}")
    for index in range(6):
        os.unlink(tmp_path / f"{index}.mp4")
    with pytest.raises(TooManyUnreadableVideos, match="100 videos in a row cannot be read"):
        collect(loader, 1)


def test_list_without_a_readable_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    with pytest.raises(ValueError, match="none of its 1 videos can be read; the first: .*a.mp4: not a readable video"):
        make_loader(tmp_path / "list.txt")


def test_more_missing_videos_than_max_unreadable_are_refused_before_training(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 9)
    path.write_text(path.read_text() + "gone.mp4 0\nlost.mp4 1\n")
    message = "2 of its 11 videos cannot be read, more than data.max_unreadable=0.1 allows; the first"
    with pytest.raises(ValueError, match=message):
        make_loader(path)
    assert len(make_loader(path, "data.max_unreadable=0.2").videos) == 11
    assert make_loader(path, split="test")
