"""python -m pipelines.download, from a mirror on this machine: archives, lists, replacements, arguments."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pipelines.data.dataset import load_dataset
from pipelines.data.metadata import build_index
from pipelines.download import Settings, main
from tests.helpers.mirror import ALL_FILES, HEADER, STEMS, files_below, row, tar_of


def test_download_ends_with_the_lists_that_training_takes(mirror, capsys):
    assert main(mirror.argv) == 0
    output = capsys.readouterr().out
    assert output.startswith("toy: a toy\n4 archives, 0 of them done\n4 archives of ")
    assert "train/part 0.tar.gz: 2 videos, 0.0 MB, 1 other file left out (" in output
    assert output.splitlines()[-2:] == [
        f"data.train={mirror.folder}/annotations/train.csv: 4 of 5 videos found (1 of them replacements), 1 missing",
        f"data.val={mirror.folder}/annotations/val.csv: 1 of 1 videos found, 0 missing",
    ]
    assert files_below(mirror.folder) == ALL_FILES

    train = load_dataset(mirror.folder / "annotations/train.csv")
    assert train.classes == ["archery", "run"]
    infos = build_index(train.videos, mirror.folder / "index.jsonl")
    assert [info.num_frames for info in infos] == [40, 40, 40, 40, 0]  # the corrupted one is replaced
    val = load_dataset(mirror.folder / "annotations/val.csv", classes=train.classes)
    assert [video.label for video in val.videos] == [1]
    assert build_index(val.videos, mirror.folder / "val.index.jsonl")[0].error == ""


def test_second_call_asks_the_server_for_nothing(mirror, capsys):
    assert main(mirror.argv) == 0
    mirror.server.requests.clear()
    assert main(mirror.argv) == 0
    assert mirror.server.requests == []
    assert "4 archives, 4 of them done\n" in capsys.readouterr().out


def test_list_in_a_tar_is_fetched_once_for_all_splits(mirror):
    assert main(mirror.argv) == 0
    assert len(mirror.server.gets("k.tar.gz")) == 1


def test_one_split_leaves_the_other_alone(mirror, capsys):
    assert main([*mirror.argv, "split=val"]) == 0
    assert files_below(mirror.folder) == ["annotations/val.csv", "download.jsonl", f"val/{STEMS[5]}.mp4"]
    assert "data.train" not in capsys.readouterr().out


def test_archives_are_kept_on_request(mirror):
    assert main([*mirror.argv, "keep_archives=yes"]) == 0
    kept = {"k.tar.gz", "fixed.tgz", "t/list.txt", "t/part%200.tar.gz", "t/part_1.tar.gz", "v/part_0.tar.gz"}
    assert set(files_below(mirror.folder / "archives")) == {f"HOST/{name}" for name in kept}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["to", "F"], "unknown data set to; did you mean toy?"),
        (["toy", "F", "split=trian"], "split=trian: toy has no split trian; did you mean train?"),
        (["toy", "F", "spilt=val"], "spilt=val: unknown argument; did you mean split=?"),
        (["toy"], "expected SET FOLDER [key=value ...], got toy"),
        (["toy", "F", "workers=0"], "workers=0: expected 1 to 1,000,000"),
        (["toy", "F", "timeout=nan"], "timeout=nan: expected 0.1 to 1,000,000"),
        (["toy", "F", "archives=http://h/l"], "archives=http://h/l: expected a single split, got split=train,val"),
        (["toy", "F", "replacements=http://h/r"], "replacements=http://h/r: expected a single split, got split="),
        (["toy", "s3://bucket/F"], "s3://bucket/F: expected a local folder"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(mirror, tmp_path, capsys, arguments, message):
    place = [str(tmp_path / argument) if argument == "F" else argument for argument in arguments]
    assert main([*place, mirror.argv[2]]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "F").exists()


def test_addresses_of_the_command_line(mirror, capsys):
    server = mirror.server
    server.add("mine.csv", (HEADER + row(0) + row(2)).encode())
    server.add("mine.txt", b"t/part_1.tar.gz")
    addresses = [f"archives={server.address}/mine.txt", f"annotations={server.address}/mine.csv"]
    assert main([*mirror.argv, "split=val", *addresses]) == 0
    assert "data.val" in (output := capsys.readouterr().out) and "1 of 2 videos found, 1 missing" in output


def test_list_of_another_set_is_not_taken_for_this_one(mirror, capsys):
    assert main([*mirror.argv, "split=val"]) == 0
    assert main(["other", *mirror.argv[1:], "split=val"]) == 2
    assert "val.csv: is there, but not from http" in capsys.readouterr().err


def test_test_list_without_labels_is_no_list_for_training(mirror, capsys):
    mirror.server.add("other.csv", b"youtube_id,time_start,time_end,split\n0bcdefghij-,0,10,test\n")
    assert main(["other", *mirror.argv[1:], "split=val"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "val.csv is no list for training: " in last and last.endswith(f"4 videos in {mirror.folder}/val")


def test_archive_that_two_splits_list_is_refused(mirror, capsys):
    mirror.server.add("t/list.txt", b"../v/part_0.tar.gz")
    assert main(mirror.argv) == 2
    assert "/v/part_0.tar.gz (for val): would be kept in the same file as http" in capsys.readouterr().err


def test_archives_of_one_name_are_told_apart(mirror):
    mirror.server.add("t/list.txt", b"part_0.tar.gz")
    mirror.server.add("t/part_0.tar.gz", tar_of({f"{STEMS[0]}.mp4": b"train"}))
    assert main(mirror.argv) == 0
    assert (mirror.folder / f"train/{STEMS[0]}.mp4").read_bytes() == b"train"
    assert (mirror.folder / f"val/{STEMS[5]}.mp4").read_bytes() == mirror.videos[5]


def test_help_names_every_setting(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    for field in dataclasses.fields(Settings):
        assert re.search(rf"^    {field.name}=|, and\n +{field.name}=|; {field.name}=", output, re.MULTILINE)
