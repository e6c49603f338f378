"""annotations and classes: the lists and folders of the public data sets, their class maps, subsets."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.annotations import cache_stem, read_entries
from pipelines.data.classes import read_classes
from pipelines.data.dataset import VideoEntry, read_class_names, read_list

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


def relative(videos: list[VideoEntry], base: Path) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, base), label) for path, label, *_ in videos]


@pytest.mark.parametrize("root", ["{base}/", "{base}", "{base}/./", "file://{base}/"])
def test_kinetics_split_is_preferred_for_any_spelling_of_root(tree, root):
    csv = HEADER + "x,01234567890,0,10,train,0\n"
    base = tree("train/01234567890_000000_000010.mp4", "test/01234567890_000000_000010.mp4", lists={"l.csv": csv})
    ((path, *_),) = read_list(base / "l.csv", root.format(base=base))
    assert path.endswith("/train/01234567890_000000_000010.mp4")


# --- Kinetics -----------------------------------------------------------------------------------------------------


def test_kinetics_in_cvdfs_layout(tree):
    """A flat folder per split beside annotations/; odd ids; a replaced file; a missing one keeps its expected path."""
    rows = [
        "riding a bike,-abcdefghij,3,13,train,0",
        '"passing, or not",_bcdefghij-,10,20,train,1',
        "riding a bike,cdefghijklm,123,133,train,0",
        "archery,nothere0000,0,10,train,0",
    ]
    base = tree(
        "k400/train/-abcdefghij_000003_000013.mp4",
        "k400/train/_bcdefghij-_000010_000020.mkv",
        "k400/train/cdefghijklm_000123_000133.mp4",
        "k400/val/-abcdefghij_000003_000013.mp4",
        "k400/replacement/replacement_for_corrupted_k400/cdefghijklm_000123_000133.mp4",
        lists={"k400/annotations/train.csv": HEADER + "\n".join(rows)},
    )
    path = base / "k400/annotations/train.csv"
    assert relative(read_list(path), base / "k400") == [
        ("train/-abcdefghij_000003_000013.mp4", 2),
        ("train/_bcdefghij-_000010_000020.mkv", 1),
        ("replacement/replacement_for_corrupted_k400/cdefghijklm_000123_000133.mp4", 2),
        ("train/nothere0000_000000_000010.mp4", 0),
    ]
    assert read_class_names(path) == ["archery", "passing, or not", "riding a bike"]
    assert read_list(path, base / "k400") == read_list(path)


def test_kinetics_with_linked_folders_and_quoted_headers(tree):
    header = '"label", "youtube_id", "time_start", "time_end", "split"\n'
    base = tree(
        "elsewhere/archery/abcdefghijk_000003_000013.mp4",
        lists={"k/annotations/train.csv": header + "archery, abcdefghijk, 3, 13, train\n"},
    )
    (base / "k/train").symlink_to(base / "elsewhere")
    (base / "k/train/archery/again").symlink_to(base / "k")  # must not be walked endlessly
    assert relative(read_list(base / "k/annotations/train.csv"), base) == [
        ("k/train/archery/abcdefghijk_000003_000013.mp4", 0)
    ]


def test_class_folder_ignores_root(tree):
    base = tree("data/train/run/a.mp4")
    assert relative(read_list(base / "data/train", root=base / "data"), base) == [("data/train/run/a.mp4", 0)]


def test_labels_with_leading_zeros(tree):
    path = tree(lists={"n.txt": "a.mp4 01\nb.mp4 00\nc.mp4 02\n"}) / "n.txt"
    videos = read_list(path, classes=read_class_names(path, class_subset="2"), subset=True)
    assert [video.label for video in videos] == [1, 0]


def test_official_kinetics_csv_with_class_folders_in_a_split(tree):
    base = tree(
        "videos/train/riding_a_bike/abcdefghijk_000003_000013.mp4",
        lists={"train.csv": "label,youtube_id,time_start,time_end,split\nriding a bike,abcdefghijk,3.0,13.0,train\n"},
    )
    assert relative(read_list(base / "train.csv", base / "videos", ["riding_a_bike"]), base) == [
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
def test_malformed_kinetics_csv_is_refused(tree, text, message):
    path = tree(lists={"x.csv": text}) / "x.csv"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        read_list(path)


@pytest.mark.parametrize(("name", "count"), [("k400", 400), ("k600", 600), ("k700", 700)])
def test_shipped_class_names(tree, name, count):
    text = HEADER + "zumba,abcdefghijk,0,10,train,0\nabseiling,abcdefghijl,0,10,train,0\n"
    path = tree(lists={"train.csv": text}) / "train.csv"
    names = read_class_names(path, name)
    assert len(names) == count == len({n.lower() for n in names}) and names == sorted(names)
    assert [video.label for video in read_list(path, classes=names)] == [count - 1, 0]


def test_class_names_from_json_have_the_order_of_its_numbers(tree):
    """VideoTransformer-pytorch numbers Kinetics-600 in an order of its own: its class map is a JSON file of numbers."""
    base = tree(
        lists={"l.txt": "a.mp4\tair_drumming\nb.mp4\targuing\n", "map.json": '{"arguing": 0, "air drumming": 1}'}
    )
    names = read_class_names(base / "l.txt", base / "map.json")
    assert names == ["arguing", "air drumming"]
    assert [video.label for video in read_list(base / "l.txt", classes=names)] == [1, 0]
    with pytest.raises(ValueError, match="the numbers of its 2 names are not 0 to 1"):
        read_classes(tree(lists={"map.json": '{"a": 1, "b": 2}'}) / "map.json")


# --- lines with numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b/c.mp4 300 5\nd.mp4 10 0\n", [("a b/c.mp4", "5"), ("d.mp4", "0")]),
        ("a b/c.mp4\t300\t5\nd.mp4\t10\t0\n", [("a b/c.mp4", "5"), ("d.mp4", "0")]),
        ("a/c.mp4,5\nb, c.mp4,0\n", [("a/c.mp4", "5"), ("b, c.mp4", "0")]),
        ("clip 12 5\nd.mp4 10 0\n", [("clip 12", "5"), ("d.mp4 10", "0")]),  # without suffix, 12 is part of the path
        (
            "Biking/v_Biking_g01_c02.avi\nRowing/v_Rowing_g01_c02.avi\n",
            [("Biking/v_Biking_g01_c02.avi", "Biking"), ("Rowing/v_Rowing_g01_c02.avi", "Rowing")],
        ),
        ("Biking/v_Biking_g08_c02.avi 11\n", [("Biking/v_Biking_g08_c02.avi", "Biking")]),
        (
            "HandstandPushups/v_HandStandPushups_g08_c01.avi 37\nBiking/v_Biking_g01_c02.avi 11\n",
            [
                ("HandstandPushups/v_HandStandPushups_g08_c01.avi", "HandstandPushups"),
                ("Biking/v_Biking_g01_c02.avi", "Biking"),
            ],
        ),
        ("my drive/Biking/v_Biking_g08_c02.avi 1\n", [("my drive/Biking/v_Biking_g08_c02.avi", "Biking")]),
        (
            "Biking/v_Biking_g08_c02.avi 1\nRowing/v_Rowing_g01_c02.avi 1\n",  # the user's own classes
            [("Biking/v_Biking_g08_c02.avi", "1"), ("Rowing/v_Rowing_g01_c02.avi", "1")],
        ),
        (
            "Biking/v_Biking_g08_c02.avi 1\nRowing/v_Rowing_g01_c02.avi 0\n",
            [("Biking/v_Biking_g08_c02.avi", "1"), ("Rowing/v_Rowing_g01_c02.avi", "0")],
        ),
        ("my video.mp4,3\nb.mp4,0\n", [("my video.mp4", "3"), ("b.mp4", "0")]),
        ("a b.mp4, 3\n", [("a b.mp4", "3")]),
        ("a.mp4\t300\tplaying chess\n", [("a.mp4", "playing chess")]),
    ],
)
def test_format_is_recognized_by_the_first_line(tree, text, expected):
    path = tree(lists={"l.txt": text}) / "l.txt"
    assert [(entry.file, entry.label) for entry in read_entries(str(path))] == expected


_file = st.from_regex(r"[a-z]([a-z0-9 ,._-]{0,6}[a-z0-9])?\.mp4", fullmatch=True)


@given(
    st.lists(st.tuples(_file, st.integers(0, 999), st.integers(0, 99)), min_size=1, max_size=6),
    st.sampled_from([" {frames} {label}", "\t{frames}\t{label}", " {label}", "\t{label}"]),
)
def test_frame_counts_are_not_part_of_path_or_label(tmp_path_factory, videos, line_format):
    path = tmp_path_factory.getbasetemp() / "frames.txt"
    lines = [file + line_format.format(frames=frames, label=label) + "\n" for file, frames, label in videos]
    path.write_text("".join(lines))
    expected = [(file, str(label)) for file, _, label in videos]
    assert [(entry.file, entry.label) for entry in read_entries(str(path))] == expected


# --- Something-Something, UCF-101, HMDB-51 ------------------------------------------------------------------------


def test_something_something(tree):
    annotations = [
        {"id": "78687", "label": "holding potato next to vicks", "template": "Holding [something] next to [something]"},
        {"id": "42", "label": "x", "template": "Moving something"},
    ]
    labels = {"Moving something": "1", "Holding something next to something": "0"}
    base = tree(
        "v2/78687.webm", "v2/42.webm", lists={"train.json": json.dumps(annotations), "labels.json": json.dumps(labels)}
    )
    names = read_class_names(base / "train.json", base / "labels.json")
    videos = read_list(base / "train.json", base / "v2", names)
    assert relative(videos, base) == [("v2/78687.webm", 0), ("v2/42.webm", 1)]
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
    names = read_class_names(base / "split/testlist01.txt", base / "split/classInd.txt")
    assert names == ["Biking", "RockClimbing"]
    assert relative(read_list(base / "split/testlist01.txt", base, names), base) == [
        ("RockClimbing/v_RockClimbing_g01_c01.avi", 1)
    ]


def test_hmdb51(tree):
    base = tree(
        lists={
            "s/brush_hair_test_split1.txt": "a b.avi 1 \nc.avi 2 \nd.avi 0 \n",
            "s/wave_test_split1.txt": "e.avi 2\nf.avi 1\n",
            "s/wave_test_split2.txt": "e.avi 1\n",
            "bad/x_test_split1.txt": "e.avi 3\n",
        }
    )
    assert relative(read_list(f"{base}/s/*_test_split1.txt:train", base), base) == [
        ("brush_hair/a b.avi", 0),
        ("wave/f.avi", 1),
    ]
    assert relative(read_list(f"{base}/s/*_test_split1.txt:test", base), base) == [
        ("brush_hair/c.avi", 0),
        ("wave/e.avi", 1),
    ]
    with pytest.raises(ValueError, match="x_test_split1.txt:1: .*expected 'video.avi 1'"):
        read_list(f"{base}/bad/*_test_split1.txt:train")
    with pytest.raises(ValueError, match="no such file"):
        read_list(f"{base}/s/*_test_split3.txt:train")


def test_cache_stem_is_unique_per_list():
    names = [cache_stem(f"s/*_test_split1.txt:{part}") for part in ("train", "test")]
    assert names == ["s/all_test_split1_train.txt", "s/all_test_split1_test.txt"]
    assert cache_stem("a:b/l.txt") == "a:b/l.txt" and cache_stem("videos/") == "videos"


# --- subsets ------------------------------------------------------------------------------------------------------


def test_class_subset_leaves_out_videos_of_other_classes(tree):
    base = tree(lists={"t.txt": "a.mp4\trun\nb.mp4\tjump\nc.mp4\tclimb a wall\n", "v.txt": "d.mp4\tfly\ne.mp4\trun\n"})

    def read_subset(name: str, classes: list[str]) -> list[tuple[str, int]]:
        return relative(read_list(base / name, classes=classes, subset=True), base)

    first_two = read_class_names(base / "t.txt", class_subset="2")
    assert first_two == ["climb a wall", "jump"]
    assert read_subset("t.txt", first_two) == [("b.mp4", 1), ("c.mp4", 0)]
    named = read_class_names(base / "t.txt", class_subset="run, climb_a_wall")
    assert read_subset("t.txt", named) == [("a.mp4", 0), ("c.mp4", 1)]
    assert read_subset("v.txt", named) == [("e.mp4", 0)]
    with pytest.raises(ValueError, match="no video of the 2 classes"):
        read_subset("v.txt", first_two)
    numbered = tree(lists={"n.txt": "a.mp4 2\nb.mp4 0\nc.mp4 1\n"}) / "n.txt"
    first_two = read_class_names(numbered, class_subset="2")
    assert read_subset("n.txt", first_two) == [("b.mp4", 0), ("c.mp4", 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_subset": "run,jmup"}, "there is no class 'jmup'; did you mean 'jump'?"),
        ({"class_subset": "run,jump,run"}, "a class is named twice"),
        ({"class_subset": "9"}, "data.class_subset=9: expected 1 to 2"),
        ({"class_subset": "0"}, "data.class_subset=0: expected 1 to 2"),
        ({"class_names": "classs.txt"}, "no such list or folder"),
    ],
)
def test_wrong_class_settings_are_refused(tree, settings, message):
    path = tree(lists={"t.txt": "a.mp4\trun\nb.mp4\tjump\n"}) / "t.txt"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_class_names(path, **settings)
