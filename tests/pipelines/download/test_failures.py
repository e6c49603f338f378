"""python -m pipelines.download when something goes wrong: servers, archives, lists, the disk, the process itself."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from pipelines.data import archives
from pipelines.download import main
from tests.helpers import ROOT
from tests.helpers.mirror import ALL_FILES, HEADER, STEMS, files_below, kept_file, row, tar_of


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
    assert lines[-1] == "1 could not be fetched; the same command tries it again"

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


@pytest.mark.parametrize("address", ["other.csv", "k.tar.gz#k/validate.csv"])
def test_annotations_that_are_none_are_named_and_asked_for_again(mirror, capsys, address):
    """A proxy may answer anything with a page of its own."""
    mirror.server.add("other.csv", (HEADER + row(5)).encode())
    file = mirror.server.files[address.partition("#")[0]]
    whole, file.content = file.content, b"<html>" * 99
    arguments = [*mirror.argv, "split=val", f"annotations={mirror.server.address}/{address}", "keep_archives=yes"]
    assert main(arguments) == 1
    output = capsys.readouterr().out
    assert re.search(rf"/{address[:5]}\S+: \S*(not a list of videos|.*not a whole tar): ", output)
    assert "data.val" not in output and "annotations/val.csv" not in files_below(mirror.folder)
    file.content = whole
    assert main(arguments) == 0
    assert "1 of 1 videos found" in capsys.readouterr().out


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
    assert set(mirror.server.gets()) == {""} and mirror.server.gets("t/part_1.tar.gz") == []
    assert files_below(mirror.folder / "train") == []


def test_archives_of_unknown_size_are_counted(mirror, capsys):
    mirror.server.files["v/part_0.tar.gz"].chunked = True
    assert main([*mirror.argv, "split=val"]) == 0
    assert "1 archive of 0.0 MB to fetch (of 1 the size is not known); about " in capsys.readouterr().out


def test_full_disk_ends_the_command_with_the_file(mirror, capsys):
    part = kept_file(mirror, "v/part_0.tar.gz.part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    assert main([*mirror.argv, "split=val"]) == 2
    assert re.search(r"part_0\.tar\.gz\.part: cannot be written: No space left on device", capsys.readouterr().err)


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
        assert error.startswith("stopping: ")
        assert error.endswith("pipelines.download: interrupted; the same command continues from here\n")
    mirror.server.files["v/part_0.tar.gz"].delay = 0
    assert main([*mirror.argv, "split=val"]) == 0
    assert mirror.server.gets("v/part_0.tar.gz") == ["", f"bytes={held}-"]
    assert (mirror.folder / f"val/{STEMS[5]}.mp4").stat().st_size == 200_000


def test_deleted_journal_fetches_everything_again(mirror):
    assert main(mirror.argv) == 0
    shutil.rmtree(mirror.folder / "train")
    (mirror.folder / "download.jsonl").unlink()
    shutil.rmtree(mirror.folder / "annotations")
    shutil.rmtree(mirror.folder / "archives")
    before = mirror.server.gets()
    mirror.server.requests.clear()
    assert main(mirror.argv) == 0
    assert files_below(mirror.folder) == ALL_FILES
    assert len(mirror.server.gets()) == len(before) == 6
