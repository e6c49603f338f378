"""Lists and class folders that name folders of images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.data import dataset
from pipelines.data.annotations import read_entries
from pipelines.data.dataset import load_dataset, read_class_names, read_list


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Return a folder in which the folders a_1 and 'b 2' hold images, and in 'empty 2' there is none."""
    for name in ("a_1", "b 2", "empty 2"):
        (tmp_path / "frames" / name).mkdir(parents=True)
        if name != "empty 2":
            (tmp_path / "frames" / name / "img_1.JPG").touch()
    return tmp_path / "frames"


def listed(frames: Path, text: str, root: Path | str = "") -> list[tuple[str, str, float, float]]:
    path = (frames if not root else frames.parent) / "list.txt"
    path.write_text(text)
    return [(entry.file, entry.label, entry.start, entry.end) for entry in read_entries(str(path), root)]


INF = float("inf")


@pytest.mark.parametrize("with_root", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_1 17\nb 2 3\n", [("a_1", "17", 0, INF), ("b 2", "3", 0, INF)]),
        ("a_1 300 17\nb 2 250 3\n", [("a_1", "17", 0, INF), ("b 2", "3", 0, INF)]),  # mmaction2: total frames
        ("b 2 250 3\ngone 1 9 3\n", [("b 2", "3", 0, INF), ("gone 1", "3", 0, INF)]),
        ("b 2,250,3\na_1,1,0\n", [("b 2", "3", 0, INF), ("a_1", "0", 0, INF)]),
        ("gone 300 17\n", [("gone 300", "17", 0, INF)]),  # without a folder the first number belongs to the path
        ("a_1 2.5 12 17\ngone 1 2 3\n", [("a_1", "17", 2.5, 12), ("gone", "3", 1, 2)]),
        ("b 2 1 12 17\n", [("b 2", "17", 1, 12)]),
        ("path start end label\nb 2 1 12 17\n", [("b 2", "17", 1, 12)]),
        ("a_1\tjump high\nb 2\trun\n", [("a_1", "jump high", 0, INF), ("b 2", "run", 0, INF)]),
        ("a_1\t2.5\t12\trun\n", [("a_1", "run", 2.5, 12)]),
        ("x.mp4 300 17\na_1 250 3\n", [("x.mp4", "17", 0, INF), ("a_1", "3", 0, INF)]),
        ("a_1 300 17\nx.mp4 250 3\n", [("a_1", "17", 0, INF), ("x.mp4", "3", 0, INF)]),
    ],
)
def test_line_of_a_folder_is_split_as_that_of_a_file(frames, with_root, text, expected):
    assert listed(frames, text, frames if with_root else "") == expected


def test_list_with_root_gives_the_folders_below_it(frames):
    path = frames.parent / "list.txt"
    path.write_text("b 2 250 0\na_1 300 1\n")
    videos = load_dataset(path, frames).videos
    assert [(video.path, video.label) for video in videos] == [(f"{frames}/b 2", 0), (f"{frames}/a_1", 1)]


def test_something_something_names_folders(frames, monkeypatch):
    """All of its names are folders in the root, so the millions of images below it are not listed."""
    path = frames.parent / "train.json"
    path.write_text(json.dumps([{"id": "b 2", "template": "Moving [x]"}, {"id": "a_1", "template": "Holding [x]"}]))
    monkeypatch.setattr(dataset, "files_below", lambda base: pytest.fail("the images were listed"))
    videos = read_list(path, frames)
    assert [(video.path, video.label) for video in videos] == [(f"{frames}/b 2", 1), (f"{frames}/a_1", 0)]


def test_names_are_found_as_files_and_as_folders_deeper_down(frames):
    (frames / "deep" / "split").mkdir(parents=True)
    os.rename(frames / "a_1", frames / "deep" / "split" / "a_1")
    (frames / "deep" / "c.webm").touch()
    path = frames.parent / "train.json"
    path.write_text(json.dumps([{"id": name, "template": "x"} for name in ("a_1", "c", "gone")]))
    found = [os.path.relpath(video.path, frames) for video in read_list(path, frames)]
    assert found == ["deep/split/a_1", "deep/c.webm", "gone.mp4"]


def test_class_folder_takes_folders_of_images_and_files(frames):
    for name in ("run/a_1", "run/empty", "jump/b 2"):
        (frames / "train" / name).mkdir(parents=True)
    os.rename(frames / "a_1", frames / "train" / "run" / "a_1")
    os.rename(frames / "b 2" / "img_1.JPG", frames / "train" / "jump" / "b 2" / "img_1.png")
    (frames / "train" / "run" / "c.mp4").touch()
    videos = read_list(frames / "train")
    expected = [("jump/b 2", 0), ("run/a_1", 1), ("run/c.mp4", 1)]
    assert [(os.path.relpath(video.path, frames / "train"), video.label) for video in videos] == expected
    assert read_class_names(frames / "train") == ["jump", "run"]
    with pytest.raises(ValueError, match=r"no videos in it; expected .*/CLASS/\*.mp4 or .*/CLASS/CLIP/\*.jpg"):
        read_list(frames / "train" / "run" / "empty")
    unlabeled = [(os.path.basename(video.path), video.label) for video in read_list(frames / "train" / "run")]
    assert unlabeled == [("a_1", -1), ("c.mp4", -1)]
