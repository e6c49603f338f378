"""What a download needs in space, and the journal of a folder."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from pipelines.data import archives
from pipelines.data.archives import Archive, Download, Journal
from pipelines.data.unpack import Unpacked
from tests.helpers.file_server import serve_files


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve_files() as running:
        yield running


def test_needed_space_counts_videos_and_archives_that_are_there_together(tmp_path, server):
    for name, size in {"a": 1000, "b": 3000, "c": 2000}.items():
        server.add(f"{name}.tar", b"x" * size)
    tars = [Archive(f"{server.address}/{name}.tar", "train") for name in "abc"]
    for workers, keep, needed in ((1, False, 6120 + 3000), (2, False, 6120 + 5000), (1, True, 6120 + 6000)):
        folder = tmp_path / f"{workers}{keep}"
        folder.mkdir()
        with contextlib.closing(Download(folder, workers, keep)) as run, pytest.MonkeyPatch.context() as patch:
            patch.setattr(archives.shutil, "disk_usage", lambda path, needed=needed: SimpleNamespace(free=needed - 1))
            with pytest.raises(ValueError, match="not enough space"):
                run.check_space(tars)
            next((folder / "archives").iterdir()).joinpath("b.tar.part").write_bytes(b"x")  # one byte less to fetch
            run.check_space(tars)


def test_folder_has_one_journal_at_a_time(tmp_path):
    with contextlib.closing(Journal(tmp_path)), pytest.raises(ValueError, match="another download into this folder"):
        Journal(tmp_path)
    Journal(tmp_path).close()


def test_journal_remembers_archives_and_where_lists_are_from(tmp_path):
    archive = Archive("http://h/a.tar", "train")
    with contextlib.closing(Journal(tmp_path)) as journal:
        journal.add_archive(archive, Unpacked(num_videos=2, num_bytes=9, num_skipped=0))
        journal.add_list("train.csv", "http://h/old.csv")
        journal.add_list("train.csv", "http://h/new.csv")
    with open(tmp_path / "download.jsonl", "a") as file:
        file.write('{"archive": "htt')  # the process was killed here
    with contextlib.closing(Journal(tmp_path)) as journal:
        journal.add_archive(archive._replace(folder="val"), Unpacked(num_videos=2, num_bytes=9, num_skipped=0))
    with contextlib.closing(Journal(tmp_path)) as journal:
        assert journal.archives == {archive, archive._replace(folder="val")}
        assert journal.lists == {"train.csv": "http://h/new.csv"}


def test_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(archives.fcntl, "flock", refuse)
    Journal(tmp_path).close()
    assert "cannot be locked (Function not implemented): let no other download" in capsys.readouterr().err
