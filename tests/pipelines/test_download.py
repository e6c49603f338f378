"""python -m pipelines.download, from a mirror on this machine: archives, lists, replacements, and what can go wrong."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from types import SimpleNamespace

import pytest

from pipelines.data import archives
from pipelines.data.dataset import load_dataset
from pipelines.data.metadata import build_index
from pipelines.download import main
from tests.helpers import ROOT
from tests.helpers.file_server import serve_files

HEADER = "label,youtube_id,time_start,time_end,split\n"
STEMS = [f"{index}bcdefghij-_{index:06d}_{index + 10:06d}" for index in range(6)]


def tar_of(members):
    """Return the bytes of a tar.gz of {name: content}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def row(index, split="train", label="archery"):
    return f"{label},{index}bcdefghij-,{index},{index + 10},{split}\n"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    with serve_files() as running:
        yield running


@pytest.fixture
def mirror(server, video, tmp_path):
    """A mirror of a set of two splits: train in two archives with five videos, one of them replaced; val in one."""
    videos = [video("vp9", 40, index=index).read_bytes() for index in range(6)]
    names = [f"./{stem}.mp4" for stem in STEMS]
    server.add("t/part 0.tar.gz", tar_of({names[0]: videos[0], names[1]: b"corrupted", f"._{names[0][2:]}": b"--"}))
    server.add("t/part_1.tar.gz", tar_of({f"home/me/{name[2:]}": videos[2] for name in names[2:4]}))
    server.add("t/list.txt", f"{server.address}/t/part 0.tar.gz\npart_1.tar.gz\n".encode())
    server.add("fixed.tgz", tar_of({f"replacement_for_corrupted/{STEMS[1]}.mp4": videos[1]}))
    server.add("v/part_0.tar.gz", tar_of({names[5]: videos[5]}))
    lists = {"k/train.csv": HEADER + row(0) + row(1, label="run") + row(2) + row(3) + row(4), "k/validate.csv": HEADER}
    lists["k/validate.csv"] += row(5, "validate", "run")
    server.add("k.tar.gz", tar_of({name: text.encode() for name, text in lists.items()}))
    path = tmp_path / "mirrors.yaml"
    path.write_text(
        f"toy:\n  note: a toy\n  splits:\n    train:\n      archives: {server.address}/t/list.txt\n"
        f"      annotations: {server.address}/k.tar.gz#k/train.csv\n      replacements: [{server.address}/fixed.tgz]\n"
        f"    val:\n      archives: ['{server.address}/v/part_0.tar.gz']\n"
        f"      annotations: {server.address}/k.tar.gz#k/validate.csv\n"
        f"other:\n  splits:\n    val:\n      archives: {server.address}/t/list.txt\n"
        f"      annotations: {server.address}/other.csv\n"
    )
    return SimpleNamespace(
        server=server,
        videos=videos,
        folder=tmp_path / "toy",
        argv=["toy", str(tmp_path / "toy"), f"mirrors={path}", "retries=1"],
    )


def files_below(folder):
    """Return the paths of all files, with HOST for the server."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(re.sub(r"127\.0\.0\.1:\d+", "HOST", path) for path in paths)


def kept_file(mirror, path):
    return mirror.folder / "archives" / mirror.server.address.removeprefix("http://") / path


ALL_FILES = sorted(
    ["annotations/train.csv", "annotations/val.csv", "archives/HOST/t/list.txt", "download.jsonl"]
    + [*(f"train/{stem}.mp4" for stem in STEMS[:4]), f"replacement/{STEMS[1]}.mp4", f"val/{STEMS[5]}.mp4"]
)


def test_download_ends_with_the_lists_that_training_takes(mirror, capsys):
    assert main(mirror.argv) == 0
    output = capsys.readouterr().out
    assert output.startswith("toy: a toy\n4 archives, 0 of them done\n4 archives of ")
    assert "train/part 0.tar.gz: 2 videos, 0.0 MB, 1 other files left out (" in output
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


def test_dropped_connections_are_reported_and_continued(mirror, capsys):
    mirror.server.files["t/part_1.tar.gz"].drops = [500, 1000]
    mirror.server.files["k.tar.gz"].drops = [100]
    assert main([*mirror.argv, "retries=2"]) == 0
    assert files_below(mirror.folder) == ALL_FILES
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.endswith("; trying again") for line in errors)
    assert (mirror.folder / f"train/{STEMS[3]}.mp4").read_bytes() == mirror.videos[2]


def test_missing_archive_is_named_and_fetched_by_the_next_call(mirror, capsys):
    missing = mirror.server.files.pop("t/part_1.tar.gz")
    assert main(mirror.argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{mirror.server.address}/t/part_1.tar.gz: HTTP status 404 (Not Found)" in lines
    assert any("2 of 5 videos found" in line for line in lines)
    assert lines[-1] == "1 could not be fetched; the same command tries them again"

    mirror.server.files["t/part_1.tar.gz"] = missing
    mirror.server.requests.clear()
    assert main(mirror.argv) == 0
    assert mirror.server.gets() == mirror.server.gets("t/part_1.tar.gz") == [""]
    assert files_below(mirror.folder) == ALL_FILES


@pytest.mark.parametrize("damage", ["truncated", "no tar"])
def test_bad_archive_is_named_deleted_and_fetched_again(mirror, capsys, damage):
    """A Content-Length that is too small passes for the size."""
    file = mirror.server.files["t/part_1.tar.gz"]
    whole = file.content
    file.content = whole[: len(whole) // 2] if damage == "truncated" else b"<html>" * 99
    assert main(mirror.argv) == 1
    output = capsys.readouterr().out
    assert f"{mirror.server.address}/t/part_1.tar.gz: " in output and "not a whole tar" in output
    assert "archives/HOST/t/part_1.tar.gz" not in files_below(mirror.folder)
    file.content = whole
    assert main(mirror.argv) == 0
    assert files_below(mirror.folder) == ALL_FILES


def test_list_that_is_no_list_is_named_and_asked_for_again(mirror, capsys):
    file = mirror.server.files["t/list.txt"]
    whole, file.content = file.content, b"<html>"
    assert main(mirror.argv) == 1
    assert f"{mirror.server.address}/t/list.txt:1: expected the address of a .tar.gz" in capsys.readouterr().out
    file.content = whole
    assert main(mirror.argv) == 0
    assert files_below(mirror.folder) == ALL_FILES


def test_missing_annotations_are_named_and_the_videos_fetched(mirror, capsys):
    mirror.server.files.pop("k.tar.gz")
    assert main([*mirror.argv, "split=val"]) == 1
    output = capsys.readouterr().out
    assert f"{mirror.server.address}/k.tar.gz: HTTP status 404" in output and "data.val" not in output
    assert (mirror.folder / f"val/{STEMS[5]}.mp4").exists()


def test_too_little_space_is_refused_before_the_first_archive(mirror, monkeypatch, capsys):
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    assert main(mirror.argv) == 2
    error = capsys.readouterr().err
    assert re.search(r"not enough space: 4 archives of 0\.\d MB to fetch; about 0\.\d MB are needed in .*toy, ", error)
    assert "0.0 MB are free" in error
    assert not any(path.endswith(("gz", "tgz")) for path in files_below(mirror.folder))


def test_archives_of_unknown_size_are_counted(mirror, capsys):
    mirror.server.files["v/part_0.tar.gz"].chunked = True
    assert main([*mirror.argv, "split=val"]) == 0
    assert "1 archives of 0.0 MB to fetch (1 of them do not tell their size); about " in capsys.readouterr().out


def test_full_disk_ends_the_command_with_the_file(mirror, capsys):
    part = kept_file(mirror, "v/part_0.tar.gz.part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    assert main([*mirror.argv, "split=val"]) == 2
    assert re.search(r"part_0\.tar\.gz\.part: cannot be written: No space left on device", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["to", "F"], "unknown data set to; did you mean toy?"),
        (["toy", "F", "split=trian"], "split=trian: toy has no split trian; did you mean train?"),
        (["toy", "F", "spilt=val"], "spilt=val: unknown argument; did you mean split=?"),
        (["toy"], "expected SET FOLDER [key=value ...], got toy"),
        (["toy", "F", "workers=0"], "workers=0: expected at least 1"),
        (
            ["toy", "F", "archives=http://h/l.txt"],
            "archives=http://h/l.txt: expected a single split, got split=train,val",
        ),
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


def test_journal_survives_a_line_that_was_cut_short(mirror):
    assert main([*mirror.argv, "split=val"]) == 0
    journal = mirror.folder / "download.jsonl"
    journal.write_text(journal.read_text() + '{"archive": "htt')
    mirror.server.requests.clear()
    assert main([*mirror.argv, "split=val"]) == 0
    assert mirror.server.requests == []
    assert main(mirror.argv) == 0
    mirror.server.requests.clear()
    assert main(mirror.argv) == 0
    assert mirror.server.requests == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ended_process_is_continued(mirror, how):
    content = tar_of({f"{STEMS[5]}.mp4": os.urandom(200_000)})
    mirror.server.add("v/part_0.tar.gz", content, delay=0.05)
    command = [sys.executable, "-m", "pipelines.download", *mirror.argv, "split=val"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    part, deadline = kept_file(mirror, "v/part_0.tar.gz.part"), time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(how)
    error = process.communicate(timeout=30)[1]
    held = part.stat().st_size
    assert 0 < held < len(content)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert error == "pipelines.download: interrupted; the same command continues from here\n"
    mirror.server.files["v/part_0.tar.gz"].delay = 0
    assert main([*mirror.argv, "split=val"]) == 0
    assert mirror.server.gets("v/part_0.tar.gz") == ["", f"bytes={held}-"]
    assert (mirror.folder / f"val/{STEMS[5]}.mp4").stat().st_size == 200_000


def test_help_names_every_setting(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    for key in ("split", "workers", "keep_archives", "retries", "timeout", "mirrors", "archives", "annotations"):
        assert f"{key}=" in output


def test_deleted_journal_fetches_everything_again(mirror):
    assert main(mirror.argv) == 0
    shutil.rmtree(mirror.folder / "train")
    (mirror.folder / "download.jsonl").unlink()
    shutil.rmtree(mirror.folder / "annotations")
    assert main(mirror.argv) == 0
    assert files_below(mirror.folder) == ALL_FILES
