"""Videos of tars, as mirrors pack them and as nobody should: flat, in folders, damaged, leading out of the folder."""

from __future__ import annotations

import errno
import gzip
import io
import random
import tarfile

import pytest

from pipelines.data.unpack import BadArchive, DamagedArchive, Unpacked, unpack_file, unpack_videos

VIDEO = random.Random(0).randbytes(3000)


def write_tar(path, members, mode="w:gz"):
    """Write a tar of {name: content}; a content of type TarInfo.type is a member of that type without content."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if len(content) == 1:
                member.type, member.linkname = content, "../../etc/passwd"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def unpack(archive, folder):
    folder.mkdir(exist_ok=True)
    return unpack_videos(archive, folder, lambda: None)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_videos_of_all_folders_go_into_one(tmp_path, mode):
    members = {"./": tarfile.DIRTYPE, "./a.mp4": VIDEO, "home/me/train/b.mp4": VIDEO[:10], "riding a bike/c.MKV": b"xy"}
    archive = write_tar(tmp_path / "part_0.tar.gz", members, mode)
    assert unpack(archive, tmp_path / "v") == Unpacked(num_videos=3, num_bytes=3012, num_skipped=0)
    assert names(tmp_path / "v") == ["a.mp4", "b.mp4", "c.MKV"]
    assert (tmp_path / "v/a.mp4").read_bytes() == VIDEO


def test_what_is_not_a_regular_video_is_left_out(tmp_path):
    """macOS adds ._NAME; a link could lead anywhere."""
    kinds = {"l.mp4": tarfile.SYMTYPE, "h.mp4": tarfile.LNKTYPE, "f.mp4": tarfile.FIFOTYPE, "d.mp4": tarfile.DIRTYPE}
    archive = write_tar(tmp_path / "a.tar.gz", {"a.mp4": VIDEO, "._a.mp4": VIDEO, "readme.md": VIDEO, **kinds})
    assert unpack(archive, tmp_path / "v") == Unpacked(num_videos=1, num_bytes=3000, num_skipped=5)
    assert names(tmp_path / "v") == ["a.mp4"]


@pytest.mark.parametrize("name", ["../b.mp4", "/tmp/b.mp4", "x/../../b.mp4"])
def test_member_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    archive = write_tar(tmp_path / "a.tar.gz", {"a.mp4": VIDEO, name: VIDEO})
    with pytest.raises(BadArchive, match="leads out of the folder"):
        unpack(archive, tmp_path / "v")
    assert names(tmp_path / "v") == ["a.mp4"]
    assert names(tmp_path) == ["a.tar.gz", "v"]


def test_archive_without_videos_is_refused(tmp_path):
    with pytest.raises(BadArchive, match="there are no videos in it"):
        unpack(write_tar(tmp_path / "a.tar.gz", {"readme.md": VIDEO}), tmp_path / "v")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.99])
def test_archive_that_ends_early_is_refused(tmp_path, mode, share):
    archive = write_tar(tmp_path / "a.tar", {f"{i}.mp4": random.Random(i).randbytes(20_000) for i in range(9)}, mode)
    content = archive.read_bytes() if mode == "w:gz" else archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadArchive, match="not a whole tar"):
        unpack(archive, tmp_path / "v")
    assert not [name for name in names(tmp_path / "v") if not name.endswith(".mp4")]  # nothing unfinished is left


@pytest.mark.parametrize("rest", [0, 1, 100, 511])
def test_tar_cut_after_a_member_or_within_a_header_is_refused(tmp_path, rest):
    """tarfile takes the end of the file for the end of the archive."""
    archive = write_tar(tmp_path / "a.tar", {"a.mp4": b"x" * 512, "b.mp4": b"y" * 512}, "w")
    archive.write_bytes(archive.read_bytes()[: 1024 + rest])
    with pytest.raises(DamagedArchive, match="it ends early, at byte 1024"):
        unpack(archive, tmp_path / "v")


def test_damaged_header_is_not_taken_for_the_end(tmp_path):
    archive = write_tar(tmp_path / "a.tar", {"a.mp4": b"x" * 512, "b.mp4": b"y" * 512}, "w")
    content = bytearray(archive.read_bytes())
    content[1024:1030] = b"broken"
    archive.write_bytes(content)
    with pytest.raises(BadArchive, match="damaged, or another tar, after byte 1024"):
        unpack(archive, tmp_path / "v")


def test_wrong_checksum_of_gzip_is_found(tmp_path):
    plain = write_tar(tmp_path / "a.tar", {"a.mp4": VIDEO}, "w").read_bytes()
    content = bytearray(gzip.compress(plain, compresslevel=0))
    content[content.index(VIDEO) + 100] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(BadArchive, match="CRC"):
        unpack(tmp_path / "a.tar", tmp_path / "v")


def test_unpacking_can_be_ended_between_two_videos(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", {f"{i}.mp4": VIDEO for i in range(5)})
    (tmp_path / "v").mkdir()
    steps = iter([None, None])
    with pytest.raises(StopIteration):
        unpack_videos(archive, tmp_path / "v", lambda: next(steps))
    assert names(tmp_path / "v") == ["0.mp4", "1.mp4"]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", {"a.mp4": VIDEO})
    (tmp_path / "v/a.mp4").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"v/a\.mp4: cannot be written: .* free\)") as caught:
        unpack(archive, tmp_path / "v")
    assert not isinstance(caught.value, BadArchive)


def test_one_file_is_unpacked_by_its_name(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", {"./k/test.csv": b"no", "./k/train.csv": b"label"})
    unpack_file(archive, "k/train.csv", tmp_path / "train.csv")
    assert (tmp_path / "train.csv").read_bytes() == b"label"
    with pytest.raises(BadArchive, match=r"there is no k/val.csv in it; there is k/test.csv, k/train.csv"):
        unpack_file(archive, "k/val.csv", tmp_path / "val.csv")
    assert names(tmp_path) == ["a.tar.gz", "train.csv"]


def test_file_of_a_tar_that_is_damaged_after_it_is_not_written(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", {"train.csv": b"label", "rest": random.Random(0).randbytes(20_000)})
    archive.write_bytes(archive.read_bytes()[:-5])
    with pytest.raises(DamagedArchive):
        unpack_file(archive, "train.csv", tmp_path / "train.csv")
    assert names(tmp_path) == ["a.tar.gz"]


def test_disk_that_fails_does_not_make_an_archive_a_damaged_one(tmp_path, monkeypatch):
    archive = write_tar(tmp_path / "a.tar.gz", {"a.mp4": VIDEO})

    def fail(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(tarfile.TarFile, "extractfile", fail)
    with pytest.raises(ValueError, match=r"a\.tar\.gz: cannot be read: Stale file handle") as caught:
        unpack(archive, tmp_path / "v")
    assert not isinstance(caught.value, BadArchive)
