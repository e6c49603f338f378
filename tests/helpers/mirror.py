"""A mirror of a small data set on this machine, and what a download of it consists of."""

from __future__ import annotations

import io
import re
import tarfile

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
