"""lists: three forms of one list, read alike; whatever is wrong is named by file and line."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.classes import read_classes
from pipelines.data.dataset import Clip, class_names, read_list


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


def short(clips: list[Clip], base: Path) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, base), label) for path, label in clips]


def fails(message: str, call, *args) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(*args)


# --- the three forms ----------------------------------------------------------------------------------------------


def test_a_number_at_the_end_of_the_line(write, tmp_path):
    clips = read_list(write("b.mp4 1\na.mp4 0\nc.mp4   12\n"))
    assert clips == [
        Clip(str(tmp_path / "b.mp4"), 1),
        Clip(str(tmp_path / "a.mp4"), 0),
        Clip(str(tmp_path / "c.mp4"), 12),
    ]


def test_a_class_name_after_a_tab(write, tmp_path):
    clips = read_list(write("b.mp4\triding a bike\na.mp4\tarchery\nc.mp4\triding a bike\n"))
    assert short(clips, tmp_path) == [("b.mp4", 1), ("a.mp4", 0), ("c.mp4", 1)]


def test_a_folder_with_one_sub_folder_a_class(folder):
    root = folder("run/b.mp4", "run/a.MKV", "jump/c.webm", "jump/notes.txt", "loose.mp4", "run/deep/d.mp4", "empty/x")
    assert short(read_list(root), root) == [("jump/c.webm", 0), ("run/a.MKV", 1), ("run/b.mp4", 1)]


def test_spaces_in_paths(write, tmp_path):
    text = "my videos/a clip.mp4 3\nmy videos/b 2 c.mp4\tone two\n"
    assert [path for path, _ in read_list(write(text))] == [
        str(tmp_path / "my videos/a clip.mp4"),
        str(tmp_path / "my videos/b 2 c.mp4"),
    ]


def test_a_tab_is_looked_for_first(write, tmp_path):
    """A class name may end in a number, and a number may stand after a tab."""
    clips = read_list(write("a.mp4\tlevel 2\nb c.mp4\tlevel 1\n"))
    assert short(clips, tmp_path) == [("a.mp4", 1), ("b c.mp4", 0)]
    assert short(read_list(write("a b.mp4\t7\n")), tmp_path) == [("a b.mp4", 7)]


def test_comments_blank_lines_and_carriage_returns_are_skipped(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"# head 1\r\n\r\n   \r\na.mp4 1\r\n#b.mp4 2\r\nc.mp4 0")
    assert short(read_list(tmp_path / "l.txt"), tmp_path) == [("a.mp4", 1), ("c.mp4", 0)]


def test_a_byte_order_mark_is_no_part_of_the_first_path(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfa.mp4 1\n")
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfjump\nrun\n")
    assert short(read_list(tmp_path / "l.txt"), tmp_path) == [("a.mp4", 1)]
    assert read_classes(tmp_path / "c.txt") == ["jump", "run"]


def test_root_is_put_before_relative_paths_only(write, tmp_path):
    clips = read_list(write("a.mp4 0\n/elsewhere/b.mp4 1\n"), "/data")
    assert [path for path, _ in clips] == ["/data/a.mp4", "/elsewhere/b.mp4"]


_path = st.from_regex(r"[a-z]([a-z0-9 ._-]{0,6}[a-z0-9])?(/[a-z0-9]{1,4}){0,2}", fullmatch=True)


@given(st.lists(st.tuples(_path, st.integers(0, 999)), min_size=1, max_size=8), st.sampled_from([" ", "\t", "  "]))
def test_what_was_written_is_read_in_order(tmp_path_factory, rows, separator):
    path = tmp_path_factory.getbasetemp() / "hypothesis.txt"
    path.write_text("".join(f"{file}{separator}{label}\n" for file, label in rows))
    assert short(read_list(path), path.parent) == [(os.path.normpath(file), label) for file, label in rows]


# --- labels -------------------------------------------------------------------------------------------------------


def test_names_are_found_in_the_classes_whatever_their_underscores_and_case(write):
    path = write("a.mp4\triding_a_bike\nb.mp4\tRiding a bike\nc.mp4\tarchery\nd.mp4\t0\n")
    assert [label for _, label in read_list(path, classes=["riding a_bike", "archery"])] == [0, 0, 1, 0]


def test_a_class_may_be_named_by_a_number(write):
    assert [c.label for c in read_list(write("a.mp4 7\nb.mp4 3\n"), classes=["7", "3", "1"])] == [0, 1]


def test_a_label_outside_the_classes_is_named_where_it_stands_first(write):
    path = write("# head\na.mp4\trun\nb.mp4\tjumpp\nc.mp4\tjumpp\n")
    fails(
        f"{path}:3: label 'jumpp' is none of the 2 classes; did you mean 'jump'?", read_list, path, "", ["jump", "run"]
    )
    path = write("a.mp4 1\nb.mp4 2\n")
    fails(f"{path}:2: label '2' is none of the 2 classes", read_list, path, "", ["jump", "run"])


def test_a_class_folder_outside_the_classes_is_named(folder):
    root = folder("run/a.mp4", "jumpp/b.mp4")
    fails(f"{root}/jumpp/b.mp4: label 'jumpp' is none of the 2 classes", read_list, root, "", ["jump", "run"])


def by_name(path: Path) -> list[str]:
    """The class name of each clip, by the numbers that read_list gives on its own."""
    names = class_names(path)
    return [names[label] for _, label in read_list(path)]


def test_class_names_agree_with_the_numbers_of_a_list_of_names(write):
    assert by_name(write("a.mp4\trun\nb.mp4\tjump\nc.mp4\tclimb a wall\n")) == ["run", "jump", "climb a wall"]


def test_class_names_agree_with_numbers_that_have_gaps(write):
    path = write("a.mp4 5\nb.mp4 0\nc.mp4 10\n")
    assert class_names(path) == [str(n) for n in range(11)]
    assert by_name(path) == ["5", "0", "10"]


def test_class_names_agree_with_the_numbers_of_a_folder(folder):
    assert by_name(folder("run/a.mp4", "jump/b.mp4")) == ["jump", "run"]


def test_class_names_agree_with_a_folder_whose_classes_are_numbers(folder):
    assert by_name(folder("0/a.mp4", "2/b.mp4", "10/c.mp4")) == ["0", "10", "2"]


@pytest.mark.parametrize("text", ["a.mp4 5\nb.mp4 0\n", "a.mp4 007\nb.mp4 10\n", "a.mp4\trun\nb.mp4\tjump\nc.mp4\t3\n"])
def test_reading_with_its_own_class_names_changes_no_label(write, text):
    path = write(text)
    assert read_list(path, classes=class_names(path)) == read_list(path)


def test_class_names_come_from_the_file_when_there_is_one(write):
    path, names = write("a.mp4 0\n"), write("jump\nrun\n", "classes.txt")
    assert class_names(path, names) == ["jump", "run"]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["a.mp4", "a.mp4 run", "a.mp4 -1", "a.mp4 1.5", "a.mp4\t", "\trun", "\t3", "a.mp4 ²"])
def test_a_malformed_line_is_named_by_file_and_line(write, line):
    path = write(f"# head\nok.mp4 1\n{line}\n")
    for call in (read_list, class_names):
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(path))}:3: .*expected 'path label' with a whole number"
        ):
            call(path)


def test_a_missing_list_names_its_nearest_neighbour(write, tmp_path):
    write("a.mp4 0\n", "train.txt")
    for call in (read_list, class_names, read_classes):
        fails(f"{tmp_path}/trian.txt: no such list or folder; did you mean train.txt?", call, tmp_path / "trian.txt")
    fails(f"{tmp_path}/nowhere/x.txt: no such list or folder", read_list, tmp_path / "nowhere" / "x.txt")


def test_lists_and_folders_without_videos(write, tmp_path, folder):
    for text in ("", "\n# nothing\n\n"):
        path = write(text)
        fails(f"{path}: the list holds no videos", read_list, path)
    root = folder("run/notes.txt", "loose.mp4")
    fails(f"{root}: no videos in it; expected {root}/CLASS/*.mp4", read_list, root)


def test_a_binary_file_is_no_list(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom\xff\xfe\x80")
    for call in (read_list, read_classes, class_names):
        fails(f"{tmp_path}/a.mp4: not a text file", call, tmp_path / "a.mp4")


def test_a_class_file_has_one_name_a_line(write):
    assert read_classes(write("jump\n climb a wall \nrun\n\n\n")) == ["jump", "climb a wall", "run"]
    path = write("jump\n\nrun\n")
    fails(f"{path}:2: an empty line where a class name is expected", read_classes, path)
    path = write("jump\nrun\nclimb\nrun\n")
    fails(f"{path}:4: 'run' stands in line 2 already", read_classes, path)
    path = write("\n\n")
    fails(f"{path}: no class names in it", read_classes, path)


def test_class_names_that_count_as_equal_are_refused(write):
    """`_` and space are one for read_list, so the second of these could never be told from the first."""
    path = write("climb a wall\nrun\nclimb_a_wall\n")
    fails(f"{path}:3: 'climb_a_wall' stands in line 1 already", read_classes, path)
