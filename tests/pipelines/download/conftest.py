"""A server on this machine that mirrors a small data set."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.helpers.file_server import serve_files
from tests.helpers.mirror import HEADER, STEMS, row, tar_of


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
