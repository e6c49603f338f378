"""Lists with several labels per video: their formats, labels of parts of videos, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.annotations import read_entries
from pipelines.data.classes import read_classes
from pipelines.data.dataset import load_dataset, read_class_names, read_list
from pipelines.data.multi_label import LabelSets
from pipelines.prepare import plan_targets

CHARADES = """id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food,"They cook; he eats.",c002 11.90 21.20;c000 0.00 12.60,24.83
N11GT,0KZ7,Stairs,,,No,Sits.,,Sits.,,18.33
"""
FRAMES = """original_vido_id video_id frame_id path labels
46GP8 0 0 46GP8/46GP8-000001.jpg ""
46GP8 0 1 46GP8/46GP8-000002.jpg "2"
46GP8 0 2 46GP8/46GP8-000003.jpg "2,0"
46GP8 0 3 46GP8/46GP8-000004.jpg "0"
N11GT 1 0 N11GT/N11GT-000001.jpg ""
46GP8 0 4 46GP8/46GP8-000005.jpg "2"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "train.txt"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def labels_of(dataset) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in dataset.targets[range(len(dataset.videos))]]


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 3,1\nb.mp4 2\nc.mp4\n",
        "a.mp4,3,1\nb.mp4,2\nc.mp4\n",
        "a.mp4 3 1\nb.mp4 2\nc.mp4\n",
        "a.mp4\t3,1\nb.mp4\t2\nc.mp4\t\n",
        "a.mp4\t3\t1\nb.mp4\t2\nc.mp4\t\n",
    ],
)
def test_lines_of_numbers_and_of_no_label(write, text):
    dataset = load_dataset(write(text), multi_label=True)
    assert [video.path.rpartition("/")[2] for video in dataset.videos] == ["a.mp4", "b.mp4", "c.mp4"]
    assert labels_of(dataset) == [[1, 3], [2], []] and dataset.classes == ["0", "1", "2", "3"]
    assert [video.label for video in dataset.videos] == [0, 1, 2], "the row of its labels"


def test_names_are_separated_by_tabs_and_paths_may_have_numbers(write):
    dataset = load_dataset(write("my clip 12.mp4\trun\tjump, high\nb 3.mp4\trun\tfly\n"), multi_label=True)
    assert dataset.classes == ["fly", "jump, high", "run"]
    assert labels_of(dataset) == [[1, 2], [0, 2]]
    numbers = load_dataset(write("my clip 12.mp4 3,0\nb 3.mp4 1\n"), multi_label=True)
    assert [v.path.rpartition("/")[2] for v in numbers.videos] == ["my clip 12.mp4", "b 3.mp4"]
    assert labels_of(numbers) == [[0, 3], [1]]


def test_folder_and_list_of_one_label_per_video_are_read_as_sets_of_one(write, tmp_path):
    assert labels_of(load_dataset(write("a.mp4 1\nb.mp4 0\n"), multi_label=True)) == [[1], [0]]
    for name in ("run/a.mp4", "jump/b.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    dataset = load_dataset(tmp_path / "videos", multi_label=True)
    assert labels_of(dataset) == [[0], [1]] and dataset.classes == ["jump", "run"]


def test_charades_has_actions_with_their_seconds_and_videos_without(write, tmp_path):
    (tmp_path / "Charades_v1_480").mkdir()
    (tmp_path / "Charades_v1_480" / "46GP8.mp4").touch()
    names = write("c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Taking clothes\n", "classes.txt")
    dataset = load_dataset(write(CHARADES, "Charades_v1_train.csv"), class_names=str(names), multi_label=True)
    assert dataset.classes == ["Holding some clothes", "Putting clothes somewhere", "Taking clothes"]
    assert dataset.videos[0].path.endswith("Charades_v1_480/46GP8.mp4") and labels_of(dataset) == [[0, 2], []]
    clips = dataset.targets.clips([0] * 5, [0, 11, 12.6, 13, 22], [1, 12, 12.7, 20, 23])
    assert [np.flatnonzero(row).tolist() for row in clips] == [[0], [0, 2], [0, 2], [2], []]
    wrong = write(CHARADES.replace("c002 11.90 21.20", "c2 11.90"), "wrong.csv")
    with pytest.raises(ValueError, match=r"wrong.csv:2: action 'c2 11.90': expected 'c092 11.90 21.20'"):
        load_dataset(wrong, multi_label=True)


def test_frame_list_of_slowfast_has_folders_with_the_labels_of_each_frame(write):
    dataset = load_dataset(write(FRAMES, "train.csv"), multi_label=True)
    assert [video.path.rpartition("/")[2] for video in dataset.videos] == ["46GP8", "N11GT"]
    assert labels_of(dataset) == [[0, 2], []]
    frames = [frame / 30 for frame in range(5)]  # folders of images have 30 frames per second
    labels = [np.flatnonzero(row).tolist() for row in dataset.targets.clips([0] * 5, frames, frames)]
    assert labels == [[], [2], [0, 2], [0], [2]]
    assert len(dataset.targets.spans_of(0)) == 3, "consecutive frames are one span"
    with pytest.raises(ValueError, match="train.csv:3: .*expected 'name number frame path"):
        load_dataset(write(FRAMES.replace('0 1 46GP8/46GP8-000002.jpg "2"', "0"), "train.csv"), multi_label=True)


def test_validation_list_has_the_classes_of_training_and_subsets_drop_other_labels(write):
    train = load_dataset(write("a.mp4\trun\tjump\nb.mp4\tfly\n"), multi_label=True)
    val = write("c.mp4\tfly\trun\nd.mp4\tjump\ne.mp4\t\n", "val.txt")
    assert labels_of(load_dataset(val, classes=train.classes, multi_label=True)) == [[0, 2], [1], []]
    assert labels_of(load_dataset(val, class_subset="fly,jump", multi_label=True)) == [[0], [1]]
    with pytest.raises(ValueError, match="val.txt:1: label 'fly' is none of the 2 classes"):
        load_dataset(val, classes=["run", "jump"], multi_label=True)
    assert read_class_names(val, multi_label=True) == ["fly", "jump", "run"]


def test_entries_in_memory_have_any_number_of_labels():
    dataset = load_dataset([("a.mp4", ["run", "jump"]), ("b.mp4", 1.0, 4.0, "run"), ("c.mp4", [])], multi_label=True)
    assert labels_of(dataset) == [[0, 1], [1], []] and dataset.videos[1].is_part
    with pytest.raises(ValueError, match=r"entry 0: label \[0.5\]: expected names or numbers"):
        load_dataset([("a.mp4", [0.5])], multi_label=True)


def test_several_labels_are_refused_where_one_is_expected(write):
    for text in ("a.mp4 1\nb.mp4 3,17\n", CHARADES, FRAMES):
        path = write(text)
        assert len(read_list(path)) == 2, "an index needs no labels"
        with pytest.raises(ValueError, match="labels: expected one, or data.multi_label=yes"):
            load_dataset(path)
        with pytest.raises(ValueError, match="labels: expected one, or data.multi_label=yes"):
            load_dataset(path, labeled=None)
    with pytest.raises(ValueError, match="no label in it"):
        load_dataset(write("a.mp4\nb.mp4\n"), multi_label=True)


def test_class_names_of_charades_lose_their_numbers(write):
    assert read_classes(write("c000 Holding\nc001 Putting\n")) == ["Holding", "Putting"]
    assert read_classes(write("c000 Holding\nc002 Putting\n")) == ["c000 Holding", "c002 Putting"]


SPAN = st.tuples(st.integers(0, 4), st.floats(0, 50), st.floats(0, 50))


@given(st.lists(st.lists(SPAN, max_size=6), min_size=1, max_size=6), st.floats(0, 50), st.floats(0, 10))
def test_labels_of_a_clip_are_those_whose_seconds_meet_it(rows, start, length):
    sets = LabelSets(rows, 5)
    actual = sets.clips(range(len(rows)), [start] * len(rows), [start + length] * len(rows))
    for row, labels in zip(rows, actual, strict=True):
        expected = {label for label, s, e in row if s <= start + length + 1e-3 and e >= start - 1e-3}
        assert set(np.flatnonzero(labels)) == expected
    whole = sets[range(len(rows))]
    assert [set(np.flatnonzero(row)) for row in whole] == [{label for label, _, _ in row} for row in rows]
    assert sets.count_videos().tolist() == whole.sum(0).tolist()
    assert sets.select([0, 0])[[1]].tolist() == whole[:1].tolist() and sets.shape == (len(rows), 5)


def test_joined_numbers_need_no_flag_to_be_told_from_paths(write):
    entries = read_entries(str(write("a.mp4 3,17\nb.mp4 4\n")))
    assert [[span.label for span in entry.labels] for entry in entries] == [["3", "17"], ["4"]]
    plain = read_entries(str(write("a.mp4,300,17\nb.mp4,200,4\n")))
    assert [entry.label for entry in plain] == ["17", "4"], "frames and a label"


def test_formats_of_one_label_are_read_as_they_are_without_the_flag(write, tmp_path):
    parts = load_dataset(write("a.mp4\t2.5\t12.0\trun\nb.mp4\t0\t4.5\tjump\n"), multi_label=True)
    assert [(v.start, v.end) for v in parts.videos] == [(2.5, 12.0), (0.0, 4.5)] and labels_of(parts) == [[1], [0]]
    spaced = load_dataset(write("a.mp4 2.5 12.0 3\n"), multi_label=True)
    assert spaced.videos[0].end == 12.0 and labels_of(spaced) == [[3]]
    ucf = load_dataset(write("Biking/v_Biking_g01_c01.avi 1\nFencing/v_Fencing_g01_c01.avi 2\n"), multi_label=True)
    assert ucf.classes == ["Biking", "Fencing"]
    named = load_dataset(write("a.mp4\tPutting something, something and something\n"), multi_label=True)
    assert named.classes == ["Putting something, something and something"]
    (tmp_path / "clip_1").mkdir()
    with pytest.raises(ValueError, match="train.txt:1: .*expected commas between labels"):
        load_dataset(write("clip_1 163 1 3\n"), multi_label=True)
    assert labels_of(load_dataset(write("clip_1 1,3\n"), multi_label=True)) == [[1, 3]]


def test_prepared_list_keeps_all_labels(write, tmp_path, capsys):
    plan = plan_targets(str(write("a.mp4\trun\tjump, high\nb.mp4\t\n")), tmp_path / "out", "", multi_label=True)
    assert plan.lines == [("a.mp4", "run", "jump, high"), ("b.mp4",)]
    (tmp_path / "46GP8.mp4").touch()
    plan_targets(str(write(CHARADES, "c.csv")), tmp_path / "out", "", multi_label=True)
    assert f"train with data.train={tmp_path / 'c.csv'} data.root={tmp_path / 'out'}" in capsys.readouterr().out


def test_frames_of_a_list_may_be_in_any_order(write):
    lines = FRAMES.splitlines()
    turned = "\n".join([lines[0], *reversed(lines[1:])]) + "\n"
    dataset, expected = (load_dataset(write(text, "train.csv"), multi_label=True) for text in (turned, FRAMES))
    row = [video.path.rpartition("/")[2] for video in dataset.videos].index("46GP8")
    assert dataset.targets.spans_of(row) == expected.targets.spans_of(0)
