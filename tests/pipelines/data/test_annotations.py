"""listfiles and labels: the lists and folders of the public data sets, their class maps, subsets."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.annotations import plain_name, read_entries
from pipelines.data.classes import is_subset, read_classes
from pipelines.data.dataset import class_names, read_list

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


@pytest.fixture
def tree(tmp_path):
    """tree("k400/train/a.mp4", ..., lists={"name.csv": text}): empty files and lists below tmp_path."""

    def make(*files: str, lists: dict[str, str] | None = None) -> Path:
        for name in [*files, *(lists or {})]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text((lists or {}).get(name, ""))
        return tmp_path

    return make


def short(clips, base):
    return [(os.path.relpath(path, base), label) for path, label in clips]


@pytest.mark.parametrize("root", ["{base}/", "{base}", "{base}/./", "file://{base}/"])
def test_however_the_root_is_spelt_the_split_is_the_rows_own(tree, root):
    csv = HEADER + "x,01234567890,0,10,train,0\n"
    base = tree("train/01234567890_000000_000010.mp4", "test/01234567890_000000_000010.mp4", lists={"l.csv": csv})
    ((path, _),) = read_list(base / "l.csv", root.format(base=base))
    assert path.endswith("/train/01234567890_000000_000010.mp4")


# --- Kinetics -----------------------------------------------------------------------------------------------------


def test_cvdfs_layout(tree):
    """Flat folders a split beside annotations/; odd ids; a replaced file; a missing one keeps its expected path."""
    rows = [
        "riding a bike,-abcdefghij,3,13,train,0", '"passing, or not",_bcdefghij-,10,20,train,1',
        "riding a bike,cdefghijklm,123,133,train,0", "archery,nothere0000,0,10,train,0",
    ]  # fmt: skip
    base = tree(
        "k400/train/-abcdefghij_000003_000013.mp4", "k400/train/_bcdefghij-_000010_000020.mkv",
        "k400/train/cdefghijklm_000123_000133.mp4", "k400/val/-abcdefghij_000003_000013.mp4",
        "k400/replacement/replacement_for_corrupted_k400/cdefghijklm_000123_000133.mp4",
        lists={"k400/annotations/train.csv": HEADER + "\n".join(rows)},
    )  # fmt: skip
    path = base / "k400/annotations/train.csv"
    clips = short(read_list(path), base / "k400")
    assert clips == [
        ("train/-abcdefghij_000003_000013.mp4", 2), ("train/_bcdefghij-_000010_000020.mkv", 1),
        ("replacement/replacement_for_corrupted_k400/cdefghijklm_000123_000133.mp4", 2),
        ("train/nothere0000_000000_000010.mp4", 0),
    ]  # fmt: skip
    assert class_names(path) == ["archery", "passing, or not", "riding a bike"]
    assert read_list(path, base / "k400") == read_list(path)


def test_linked_folders_and_quoted_headers(tree):
    header = '"label", "youtube_id", "time_start", "time_end", "split"\n'
    base = tree(
        "elsewhere/archery/abcdefghijk_000003_000013.mp4",
        lists={"k/annotations/train.csv": header + "archery, abcdefghijk, 3, 13, train\n"},
    )
    (base / "k/train").symlink_to(base / "elsewhere")
    (base / "k/train/archery/again").symlink_to(base / "k")  # and no endless walk
    assert short(read_list(base / "k/annotations/train.csv"), base) == [
        ("k/train/archery/abcdefghijk_000003_000013.mp4", 0)
    ]


def test_root_is_not_put_before_a_class_folder(tree):
    base = tree("data/train/run/a.mp4")
    assert short(read_list(base / "data/train", root=base / "data"), base) == [("data/train/run/a.mp4", 0)]


def test_numbers_with_zeros_before_them(tree):
    path = tree(lists={"n.txt": "a.mp4 01\nb.mp4 00\nc.mp4 02\n"}) / "n.txt"
    assert [clip.label for clip in read_list(path, classes=class_names(path, "2"), subset=True)] == [1, 0]


def test_the_official_csv_and_class_folders_under_a_split(tree):
    base = tree(
        "videos/train/riding_a_bike/abcdefghijk_000003_000013.mp4",
        lists={"train.csv": "label,youtube_id,time_start,time_end,split\nriding a bike,abcdefghijk,3.0,13.0,train\n"},
    )
    assert short(read_list(base / "train.csv", base / "videos", ["riding_a_bike"]), base) == [
        ("videos/train/riding_a_bike/abcdefghijk_000003_000013.mp4", 0)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("youtube_id,time_start,time_end,split\nabcdefghijk,3,13,test\n", ":1: no column 'label'"),
        (HEADER + "archery,abcdefghijk,3,x,train,0\n", ":2: no numbers for time_start"),
        (HEADER + "archery,abcdefghijk,3\n", ":2: no numbers for time_start"),
        (HEADER + ",abcdefghijk,3,13,train,0\n", ":2: expected a label and a youtube_id"),
        (HEADER, "the list holds no videos"),
    ],
)
def test_broken_csv(tree, text, message):
    path = tree(lists={"x.csv": text}) / "x.csv"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        read_list(path)


@pytest.mark.parametrize(("name", "count"), [("k400", 400), ("k600", 600), ("k700", 700)])
def test_shipped_maps(tree, name, count):
    path = tree(lists={"train.csv": HEADER + "zumba,abcdefghijk,0,10,train,0\nabseiling,abcdefghijl,0,10,train,0\n"})
    names = class_names(path / "train.csv", name)
    assert len(names) == count == len({n.lower() for n in names}) and names == sorted(names)
    assert [clip.label for clip in read_list(path / "train.csv", classes=names)] == [count - 1, 0]


def test_other_orders_of_the_same_names_are_told_by_name(tree):
    """VideoTransformer-pytorch numbers Kinetics-600 in an order of its own: its map is a JSON file of numbers."""
    base = tree(
        lists={"l.txt": "a.mp4\tair_drumming\nb.mp4\targuing\n", "map.json": '{"arguing": 0, "air drumming": 1}'}
    )
    own = class_names(base / "l.txt", base / "map.json")
    assert own == ["arguing", "air drumming"]
    assert [clip.label for clip in read_list(base / "l.txt", classes=own)] == [1, 0]
    with pytest.raises(ValueError, match="the numbers of its 2 names are not 0 to 1"):
        read_classes(tree(lists={"map.json": '{"a": 1, "b": 2}'}) / "map.json")


# --- lines with numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b/c.mp4 300 5\nd.mp4 10 0\n", [("a b/c.mp4", "5"), ("d.mp4", "0")]),
        ("a b/c.mp4\t300\t5\nd.mp4\t10\t0\n", [("a b/c.mp4", "5"), ("d.mp4", "0")]),
        ("a/c.mp4,5\nb, c.mp4,0\n", [("a/c.mp4", "5"), ("b, c.mp4", "0")]),
        ("clip 12 5\nd.mp4 10 0\n", [("clip 12", "5"), ("d.mp4 10", "0")]),  # no suffix before the numbers: a path
        ("Biking/v_Biking_g01_c02.avi\nRowing/v_Rowing_g01_c02.avi\n",
         [("Biking/v_Biking_g01_c02.avi", "Biking"), ("Rowing/v_Rowing_g01_c02.avi", "Rowing")]),
        ("Biking/v_Biking_g08_c02.avi 11\n", [("Biking/v_Biking_g08_c02.avi", "Biking")]),
        ("HandstandPushups/v_HandStandPushups_g08_c01.avi 37\nBiking/v_Biking_g01_c02.avi 11\n",
         [("HandstandPushups/v_HandStandPushups_g08_c01.avi", "HandstandPushups"),
          ("Biking/v_Biking_g01_c02.avi", "Biking")]),
        ("my drive/Biking/v_Biking_g08_c02.avi 1\n", [("my drive/Biking/v_Biking_g08_c02.avi", "Biking")]),
        ("Biking/v_Biking_g08_c02.avi 1\nRowing/v_Rowing_g01_c02.avi 1\n",  # classes of somebody's own
         [("Biking/v_Biking_g08_c02.avi", "1"), ("Rowing/v_Rowing_g01_c02.avi", "1")]),
        ("Biking/v_Biking_g08_c02.avi 1\nRowing/v_Rowing_g01_c02.avi 0\n",
         [("Biking/v_Biking_g08_c02.avi", "1"), ("Rowing/v_Rowing_g01_c02.avi", "0")]),
        ("my video.mp4,3\nb.mp4,0\n", [("my video.mp4", "3"), ("b.mp4", "0")]),
        ("a b.mp4, 3\n", [("a b.mp4", "3")]),
        ("a.mp4\t300\tplaying chess\n", [("a.mp4", "playing chess")]),
    ],
)  # fmt: skip
def test_forms_are_told_by_the_first_line(tree, text, expected):
    path = tree(lists={"l.txt": text}) / "l.txt"
    assert [(entry.file, entry.label) for entry in read_entries(str(path))] == expected


_file = st.from_regex(r"[a-z]([a-z0-9 ,._-]{0,6}[a-z0-9])?\.mp4", fullmatch=True)


@given(st.lists(st.tuples(_file, st.integers(0, 999), st.integers(0, 99)), min_size=1, max_size=6),
       st.sampled_from([" {1} {2}", "\t{1}\t{2}", " {2}", "\t{2}"]))  # fmt: skip
def test_frame_counts_are_no_part_of_path_or_label(tmp_path_factory, rows, form):
    path = tmp_path_factory.getbasetemp() / "frames.txt"
    path.write_text("".join(file + form.format(file, frames, label) + "\n" for file, frames, label in rows))
    assert [(e.file, e.label) for e in read_entries(str(path))] == [(file, str(label)) for file, _, label in rows]


# --- Something-Something, UCF-101, HMDB-51 ------------------------------------------------------------------------


def test_something_something(tree):
    videos = [
        {"id": "78687", "label": "holding potato next to vicks", "template": "Holding [something] next to [something]"},
        {"id": "42", "label": "x", "template": "Moving something"},
    ]
    labels = {"Moving something": "1", "Holding something next to something": "0"}
    base = tree(
        "v2/78687.webm", "v2/42.webm", lists={"train.json": json.dumps(videos), "labels.json": json.dumps(labels)}
    )
    names = class_names(base / "train.json", base / "labels.json")
    assert short(read_list(base / "train.json", base / "v2", names), base) == [("v2/78687.webm", 0), ("v2/42.webm", 1)]
    for text in ('[{"id": "1"}]', "[3]", '{"a": 1}', "[{"):
        path = tree(lists={"test.json": text}) / "test.json"
        with pytest.raises(ValueError, match="test.json"):
            read_list(path)


def test_ucf101(tree):
    lists = {
        "split/classInd.txt": "1 Biking\n2 RockClimbing\n",
        "split/testlist01.txt": "RockClimbing/v_RockClimbing_g01_c01.avi\r\n",
    }
    base = tree("RockClimbing/v_RockClimbing_g01_c01.avi", lists=lists)
    names = class_names(base / "split/testlist01.txt", base / "split/classInd.txt")
    assert names == ["Biking", "RockClimbing"]
    assert short(read_list(base / "split/testlist01.txt", base, names), base) == [
        ("RockClimbing/v_RockClimbing_g01_c01.avi", 1)
    ]


def test_hmdb51(tree):
    base = tree(lists={
        "s/brush_hair_test_split1.txt": "a b.avi 1 \nc.avi 2 \nd.avi 0 \n",
        "s/wave_test_split1.txt": "e.avi 2\nf.avi 1\n", "s/wave_test_split2.txt": "e.avi 1\n",
        "bad/x_test_split1.txt": "e.avi 3\n",
    })  # fmt: skip
    assert short(read_list(f"{base}/s/*_test_split1.txt:train", base), base) == [
        ("brush_hair/a b.avi", 0),
        ("wave/f.avi", 1),
    ]
    assert short(read_list(f"{base}/s/*_test_split1.txt:test", base), base) == [
        ("brush_hair/c.avi", 0),
        ("wave/e.avi", 1),
    ]
    with pytest.raises(ValueError, match="x_test_split1.txt:1: .*expected 'video.avi 1'"):
        read_list(f"{base}/bad/*_test_split1.txt:train")
    with pytest.raises(ValueError, match="no such file"):
        read_list(f"{base}/s/*_test_split3.txt:train")


def test_what_belongs_to_a_list_has_a_name_of_its_own():
    names = [plain_name(f"s/*_test_split1.txt:{part}") for part in ("train", "test")]
    assert names == ["s/all_test_split1_train.txt", "s/all_test_split1_test.txt"]
    assert plain_name("a:b/l.txt") == "a:b/l.txt" and plain_name("videos/") == "videos"


# --- subsets ------------------------------------------------------------------------------------------------------


def test_subsets_leave_other_classes_out(tree):
    base = tree(lists={"t.txt": "a.mp4\trun\nb.mp4\tjump\nc.mp4\tclimb a wall\n", "v.txt": "d.mp4\tfly\ne.mp4\trun\n"})
    two = class_names(base / "t.txt", "2")
    assert two == ["climb a wall", "jump"]
    assert is_subset("2") and not is_subset("") and not is_subset(str(base / "t.txt")) and not is_subset("k400")
    assert short(read_list(base / "t.txt", classes=two, subset=True), base) == [("b.mp4", 1), ("c.mp4", 0)]
    named = class_names(base / "t.txt", "run, climb_a_wall")
    assert short(read_list(base / "t.txt", classes=named, subset=True), base) == [("a.mp4", 0), ("c.mp4", 1)]
    assert short(read_list(base / "v.txt", classes=named, subset=True), base) == [("e.mp4", 0)]
    with pytest.raises(ValueError, match="no video of the 2 classes"):
        read_list(base / "v.txt", classes=two, subset=True)
    numbers = tree(lists={"n.txt": "a.mp4 2\nb.mp4 0\nc.mp4 1\n"}) / "n.txt"
    assert short(read_list(numbers, classes=class_names(numbers, "2"), subset=True), base) == [
        ("b.mp4", 0),
        ("c.mp4", 1),
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run,jmup", "'jmup' is no class of the training list; did you mean 'jump'?"),
        ("run,jump,run", "a class is named twice"),
        ("9", "data.classes=9: the training list has 2 classes"),
        ("0", "data.classes=0: the training list has 2 classes"),
        ("classs.txt", "no such list or folder"),
    ],
)
def test_subset_mistakes(tree, setting, message):
    path = tree(lists={"t.txt": "a.mp4\trun\nb.mp4\tjump\n"}) / "t.txt"
    with pytest.raises(ValueError, match=re.escape(message)):
        class_names(path, setting)
