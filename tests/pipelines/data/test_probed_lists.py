"""The lists of the data sets that encoders are probed on, and few videos of each class."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pipelines.data.classes import read_classes
from pipelines.data.dataset import VideoEntry, limit_per_class, load_dataset


def names(dataset) -> list[tuple[str, int]]:
    return [(video.path.rsplit("/", 1)[-1], video.label) for video in dataset.videos]


def test_diving48_names_videos_and_classes_in_parts(tmp_path):
    (tmp_path / "rgb").mkdir()
    for stem in ("a_00", "b_01"):
        (tmp_path / "rgb" / f"{stem}.mp4").write_text("")
    videos = [
        {"vid_name": "b_01", "label": 1, "start_frame": 0, "end_frame": 99},
        {"vid_name": "a_00", "label": 0, "start_frame": 0, "end_frame": 58},
    ]
    (tmp_path / "train.json").write_text(json.dumps(videos))
    (tmp_path / "vocab.json").write_text(
        '[["Back", "15som", "05Twis", "FREE"], ["Forward", "15som", "NoTwis", "PIKE"]]'
    )
    dataset = load_dataset(tmp_path / "train.json", tmp_path / "rgb", class_names=str(tmp_path / "vocab.json"))
    assert names(dataset) == [("b_01.mp4", 1), ("a_00.mp4", 0)]
    assert dataset.classes == ["Back 15som 05Twis FREE", "Forward 15som NoTwis PIKE"]
    for text in ('[{"vid_name": "a_00"}]', '[{"vid_name": "a", "label": "x"}]'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: video 1 has no vid_name and label"):
            load_dataset(tmp_path / "bad.json")


def test_jester_names_folders_of_images(tmp_path):
    for folder in ("9", "34870"):
        (tmp_path / "frames" / folder).mkdir(parents=True)
        (tmp_path / "frames" / folder / "00001.jpg").write_text("")
    (tmp_path / "train.csv").write_text("34870;Drumming Fingers\n9;Sliding Two Fingers Right\n")
    (tmp_path / "labels.csv").write_text("Sliding Two Fingers Right\nDrumming Fingers\n")
    dataset = load_dataset(tmp_path / "train.csv", tmp_path / "frames", class_names=str(tmp_path / "labels.csv"))
    assert names(dataset) == [("34870", 1), ("9", 0)]
    (tmp_path / "bad.csv").write_text("34870;Drumming Fingers\n9\n")
    with pytest.raises(ValueError, match=r"bad\.csv:2: '9': expected 'number;class name'"):
        load_dataset(tmp_path / "bad.csv", tmp_path / "frames")


def test_list_of_names_is_refused_with_the_reason(tmp_path):
    (tmp_path / "names.json").write_text("[[1, 2]]")
    with pytest.raises(ValueError, match=r"names\.json: expected names, or lists of their parts"):
        read_classes(tmp_path / "names.json")


def test_few_videos_of_each_class_are_drawn_with_a_seed():
    videos = [VideoEntry(f"{index}.mp4", index % 3) for index in range(60)]
    drawn = {seed: limit_per_class(videos, 4, seed) for seed in (0, 1, "first")}
    for chosen in drawn.values():
        assert Counter(video.label for video in chosen) == {0: 4, 1: 4, 2: 4}
        assert [video for video in videos if video in chosen] == chosen, "in the order of the list"
    assert drawn["first"] == videos[:12] and drawn[0] != drawn["first"] and drawn[0] != drawn[1]
    assert limit_per_class(videos, 4, 0) == drawn[0] and set(limit_per_class(videos, 2, 0)) < set(drawn[0])
    assert limit_per_class(videos, 99, 0) == videos
