"""dataset: three forms of one list give the same videos; whatever is wrong is named by file and line."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.classes import describe_classes, read_classes
from pipelines.data.dataset import VideoEntry, load_dataset, read_class_names, read_list


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "train.txt") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def folder(tmp_path):
    def make(*files: str) -> Path:
        for file in files:
            (tmp_path / "videos" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "videos" / file).touch()
        return tmp_path / "videos"

    return make


def relative(videos: list[VideoEntry], base: Path) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, base), label) for path, label, *_ in videos]


def assert_raises(message: str, function: Callable, *args) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        function(*args)


# --- the three forms ----------------------------------------------------------------------------------------------


def test_label_is_a_number_at_the_end_of_the_line(write, tmp_path):
    assert read_list(write("b.mp4 1\na.mp4 0\nc.mp4   12\n")) == [
        VideoEntry(str(tmp_path / "b.mp4"), 1),
        VideoEntry(str(tmp_path / "a.mp4"), 0),
        VideoEntry(str(tmp_path / "c.mp4"), 12),
    ]


def test_label_is_a_class_name_after_a_tab(write, tmp_path):
    videos = read_list(write("b.mp4\triding a bike\na.mp4\tarchery\nc.mp4\triding a bike\n"))
    assert relative(videos, tmp_path) == [("b.mp4", 1), ("a.mp4", 0), ("c.mp4", 1)]


def test_class_folder_has_one_subfolder_per_class(folder):
    root = folder("run/b.mp4", "run/a.MKV", "jump/c.webm", "jump/notes.txt", "notes.txt", "run/deep/d.mp4", "empty/x")
    assert relative(read_list(root), root) == [("jump/c.webm", 0), ("run/a.MKV", 1), ("run/b.mp4", 1)]


def test_paths_may_contain_spaces(write, tmp_path):
    text = "my videos/a clip.mp4 3\nmy videos/b 2 c.mp4\tone two\n"
    assert [path for path, *_ in read_list(write(text))] == [
        str(tmp_path / "my videos/a clip.mp4"),
        str(tmp_path / "my videos/b 2 c.mp4"),
    ]


def test_tab_separates_before_space(write, tmp_path):
    """A class name may end in a number, and a number may follow a tab."""
    videos = read_list(write("a.mp4\tlevel 2\nb c.mp4\tlevel 1\n"))
    assert relative(videos, tmp_path) == [("a.mp4", 1), ("b c.mp4", 0)]
    assert relative(read_list(write("a b.mp4\t7\n")), tmp_path) == [("a b.mp4", 7)]


def test_comments_blank_lines_and_carriage_returns_are_skipped(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"# head 1\r\n\r\n   \r\na.mp4 1\r\n#b.mp4 2\r\nc.mp4 0")
    assert relative(read_list(tmp_path / "l.txt"), tmp_path) == [("a.mp4", 1), ("c.mp4", 0)]


def test_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfa.mp4 1\n")
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfjump\nrun\n")
    assert relative(read_list(tmp_path / "l.txt"), tmp_path) == [("a.mp4", 1)]
    assert read_classes(tmp_path / "c.txt") == ["jump", "run"]


def test_root_applies_to_relative_paths_only(write, tmp_path):
    videos = read_list(write("a.mp4 0\n/elsewhere/b.mp4 1\n"), "/data")
    assert [path for path, *_ in videos] == ["/data/a.mp4", "/elsewhere/b.mp4"]


_path = st.from_regex(r"[a-z]([a-z0-9 ._-]{0,6}[a-z0-9])?(/[a-z0-9]{1,4}){0,2}", fullmatch=True)


@given(st.lists(st.tuples(_path, st.integers(0, 999)), min_size=1, max_size=8), st.sampled_from([" ", "\t", "  "]))
def test_read_list_keeps_paths_labels_and_order(tmp_path_factory, videos, separator):
    path = tmp_path_factory.getbasetemp() / "hypothesis.txt"
    path.write_text("".join(f"{file}{separator}{label}\n" for file, label in videos))
    assert relative(read_list(path), path.parent) == [(os.path.normpath(file), label) for file, label in videos]


# --- labels -------------------------------------------------------------------------------------------------------


def test_labels_match_class_names_despite_underscores_and_case(write):
    path = write("a.mp4\triding_a_bike\nb.mp4\tRiding a bike\nc.mp4\tarchery\nd.mp4\t0\n")
    assert [label for _, label, *_ in read_list(path, classes=["riding a_bike", "archery"])] == [0, 0, 1, 0]


def test_class_name_may_be_a_number(write):
    videos = read_list(write("a.mp4 7\nb.mp4 3\n"), classes=["7", "3", "1"])
    assert [video.label for video in videos] == [0, 1]


def test_unknown_label_is_named_with_its_first_line(write):
    path = write("# head\na.mp4\trun\nb.mp4\tjumpp\nc.mp4\tjumpp\n")
    assert_raises(
        f"{path}:3: label 'jumpp' is none of the 2 classes; did you mean 'jump'?", read_list, path, "", ["jump", "run"]
    )
    path = write("a.mp4 1\nb.mp4 2\n")
    assert_raises(f"{path}:2: label '2' is none of the 2 classes", read_list, path, "", ["jump", "run"])


def test_unknown_class_folder_is_named_with_its_first_video(folder):
    root = folder("run/a.mp4", "jumpp/b.mp4")
    assert_raises(f"{root}/jumpp/b.mp4: label 'jumpp' is none of the 2 classes", read_list, root, "", ["jump", "run"])


def class_name_per_video(path: Path) -> list[str]:
    """Return the class name of each video, by the labels of read_list() without classes."""
    names = read_class_names(path)
    return [names[label] for _, label, *_ in read_list(path)]


def test_class_names_match_the_labels_of_a_list_with_names(write):
    assert class_name_per_video(write("a.mp4\trun\nb.mp4\tjump\nc.mp4\tclimb a wall\n")) == [
        "run",
        "jump",
        "climb a wall",
    ]


def test_class_names_match_labels_with_gaps(write):
    path = write("a.mp4 5\nb.mp4 0\nc.mp4 10\n")
    assert read_class_names(path) == [str(n) for n in range(11)]
    assert class_name_per_video(path) == ["5", "0", "10"]


def test_class_names_match_the_labels_of_a_class_folder(folder):
    assert class_name_per_video(folder("run/a.mp4", "jump/b.mp4")) == ["jump", "run"]


def test_class_names_match_the_labels_of_a_class_folder_with_numbers(folder):
    assert class_name_per_video(folder("0/a.mp4", "2/b.mp4", "10/c.mp4")) == ["0", "10", "2"]


@pytest.mark.parametrize("text", ["a.mp4 5\nb.mp4 0\n", "a.mp4 007\nb.mp4 10\n", "a.mp4\trun\nb.mp4\tjump\nc.mp4\t3\n"])
def test_reading_a_list_with_its_own_class_names_keeps_the_labels(write, text):
    path = write(text)
    assert read_list(path, classes=read_class_names(path)) == read_list(path)


def test_class_names_are_read_from_a_file(write):
    path, names_path = write("a.mp4 0\n"), write("jump\nrun\n", "classes.txt")
    assert read_class_names(path, names_path) == ["jump", "run"]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["b.mp4\nmy videos/a 2.mp4\n", "/x/b.mp4\r\nc.avi\r\n", "v_Run_g01.mp4\n"])
def test_videos_of_a_list_without_labels_are_for_pretraining_only(write, text):
    path = write(f"# videos\n{text}")
    files = text.split()[:1] + text.splitlines()[1:]
    assert [os.path.basename(video.path) for video in read_list(path)] == [os.path.basename(file) for file in files]
    dataset = load_dataset(path, labeled=False)
    assert dataset.classes == [] and {video.label for video in dataset.videos} == {-1}
    message = f"{path}:2: no label: expected 'path label' with a whole number, or 'path<TAB>class name'"
    assert_raises(message, load_dataset, path)
    assert_raises(message, read_class_names, path)
    assert load_dataset(path, labeled=None).classes == []
    with pytest.raises(ValueError, match="data.class_subset and data.max_per_class need labels"):
        load_dataset(path, labeled=False, max_per_class=2)
    mixed = write(f"# videos\n{text}d.mp4 3\n", "mixed.txt")
    assert_raises("'d.mp4 3': expected the path of a video without a label, as in line 2", read_list, mixed)


def test_folders_of_images_without_labels_may_end_with_numbers(write, folder):
    root = folder("clip 1/img_1.jpg", "clip 2/img_1.jpg")
    path = write("clip 1\nclip 2\n", "videos/list.txt")
    assert relative(load_dataset(path, labeled=False).videos, root) == [("clip 1", -1), ("clip 2", -1)]


def test_videos_in_no_class_folder_are_for_pretraining_only(folder):
    root = folder("a.mp4", "b.mp4", "frames/img_00001.jpg")
    assert relative(load_dataset(root, labeled=False).videos, root) == [("a.mp4", -1), ("b.mp4", -1), ("frames", -1)]
    assert_raises(f"{root}/a.mp4: no label: expected", load_dataset, root)
    root = folder("run/c.mp4", "run/cover.jpg", ".b.mp4")
    expected = [("a.mp4", -1), ("b.mp4", -1), ("run/c.mp4", 0)]
    assert relative(read_list(root), root) == expected, "beside class folders, a folder of images may be anything"
    assert_raises(f"{root}/a.mp4: no label: expected", load_dataset, root)


def test_labels_of_a_list_are_not_read_for_pretraining(write):
    dataset = load_dataset(write("a.mp4\trun\nb.mp4\tjump\n"), labeled=False, class_names="k400")
    assert dataset.classes == [] and [video.label for video in dataset.videos] == [-1, -1]
    dataset = load_dataset(write("a.mp4\trun\nb.mp4\tjump\n"), labeled=False, class_subset="jump")
    assert [os.path.basename(video.path) for video in dataset.videos] == ["b.mp4"] and dataset.classes == ["jump"]


@pytest.mark.parametrize("line", ["a.mp4", "a.mp4 run", "a.mp4 -1", "a.mp4 1.5", "a.mp4\t", "\trun", "\t3", "a.mp4 ²"])
def test_malformed_line_is_named_by_file_and_line(write, line):
    path = write(f"# head\nok.mp4 1\n{line}\n")
    for read in (read_list, read_class_names):
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(path))}:3: .*expected 'path label' with a whole number"
        ):
            read(path)


def test_missing_list_error_suggests_the_nearest_name(write, tmp_path):
    write("a.mp4 0\n", "train.txt")
    for read in (read_list, read_class_names, read_classes):
        assert_raises(
            f"{tmp_path}/trian.txt: no such list or folder; did you mean train.txt?", read, tmp_path / "trian.txt"
        )
    assert_raises(f"{tmp_path}/nowhere/x.txt: no such list or folder", read_list, tmp_path / "nowhere" / "x.txt")


def test_lists_and_folders_without_videos_are_refused(write, tmp_path, folder):
    for text in ("", "\n# nothing\n\n"):
        path = write(text)
        assert_raises(f"{path}: the list holds no videos", read_list, path)
    root = folder("run/notes.txt", "run/deep/d.mp4")
    assert_raises(f"{root}: no videos in it; expected {root}/CLASS/*.mp4", read_list, root)


def test_binary_file_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom\xff\xfe\x80")
    for read in (read_list, read_classes, read_class_names):
        assert_raises(f"{tmp_path}/a.mp4: not a text file", read, tmp_path / "a.mp4")


def test_classes_are_described_by_the_one_with_the_fewest_videos():
    assert describe_classes({"jump": 20, "run": 18, "jumpp": 1}) == "3 classes of 1 to 20 videos (fewest: jumpp)"
    assert describe_classes({"jump": 2, "run": 2, "fly": 0}) == "2 of 3 classes of 2 videos each"
    assert describe_classes({"jump": 2, "run": 2}) == "2 classes of 2 videos each"
    assert describe_classes({"jump": 1}) == "1 class of 1 video"


def test_spellings_of_a_class_that_count_as_equal_are_one_class(write):
    dataset = load_dataset(write("a.mp4\tjump_rope\nb.mp4\tJump rope\nc.mp4\trun\n"))
    assert dataset.classes == ["Jump rope", "run"] and [video.label for video in dataset.videos] == [0, 0, 1]


@pytest.mark.parametrize("multi_label", [False, True])
def test_label_that_is_the_number_of_no_class_takes_no_memory(write, multi_label):
    path = write("a.mp4 3\nb.mp4 1480000000\n")
    with pytest.raises(ValueError, match=rf"{path}: label 1480000000: expected the number of a class, below 1000000"):
        load_dataset(path, multi_label=multi_label)


def test_read_classes_reads_one_name_per_line(write):
    assert read_classes(write("jump\n climb a wall \nrun\n\n\n")) == ["jump", "climb a wall", "run"]
    path = write("jump\n\nrun\n")
    assert_raises(f"{path}:2: an empty line where a class name is expected", read_classes, path)
    path = write("jump\nrun\nclimb\nrun\n")
    assert_raises(f"{path}:4: 'run' is already in line 2", read_classes, path)
    path = write("\n\n")
    assert_raises(f"{path}: no class names in it", read_classes, path)


def test_read_classes_refuses_names_that_differ_by_underscores_only(write):
    """`_` and space count as equal in read_list(), so no video could be of the second class."""
    path = write("climb a wall\nrun\nclimb_a_wall\n")
    assert_raises(f"{path}:3: 'climb_a_wall' is already in line 1", read_classes, path)


def test_class_subset_of_a_numbered_list_takes_the_numbers_of_all_names(write):
    names = write("run\njump\nfly\n", "names.txt")
    train, val = write("a.mp4 2\nb.mp4 0\nc.mp4 1\n"), write("d.mp4 1\ne.mp4 2\n", "val.txt")
    options = {"class_names": str(names), "class_subset": "fly,run"}
    dataset = load_dataset(train, **options)
    assert relative(dataset.videos, train.parent) == [("a.mp4", 0), ("b.mp4", 1)]
    assert relative(load_dataset(val, classes=dataset.classes, **options).videos, val.parent) == [("e.mp4", 0)]
