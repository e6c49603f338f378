"""Unpack the videos of a tar into one folder, whatever folders they are in there; nothing else leaves the tar.

The archives of Kinetics hold their videos flat, in a folder per class, or under the whole path of the machine that
packed them; some hold beside each video the ._NAME that macOS adds, and some are not compressed in spite of their name.
"""

from __future__ import annotations

import contextlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipelines.storage import VIDEO_SUFFIXES
from utils.files import atomic_path, write_errors_named

_CHUNK = 1 << 20  # bytes per read


class BadArchive(ValueError):
    """An archive without what it should hold, or with a member that must not be unpacked."""


class DamagedArchive(BadArchive):
    """A file that is not a whole tar."""


class Unpacked(NamedTuple):
    """Count what was unpacked of an archive."""

    num_videos: int
    num_bytes: int
    num_skipped: int  # files and links that are not videos


def unpack_videos(archive: Path, folder: Path, go_on: Callable[[], None]) -> Unpacked:
    """Write every video of a tar to `folder` under its own name, replacing a file of that name.

    Each file gets its name when it is complete. `go_on` is called before each and may raise to end the work. Raises
    DamagedArchive for what is damaged or ends early, BadArchive for an archive without a video, or one of whose members
    leads out of its folder; ValueError for a file that cannot be read or written.
    """
    num_videos = num_bytes = num_skipped = 0
    for tar, member in _members(archive):
        go_on()
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise BadArchive(f"{archive}: refused: its member {member.name!r} leads out of the folder")
        if member.isreg() and path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
            _write_member(archive, tar, member, folder / path.name)
            num_videos, num_bytes = num_videos + 1, num_bytes + member.size
        elif not member.isdir():
            num_skipped += 1
    if not num_videos:
        raise BadArchive(f"{archive}: there are no videos in it")
    return Unpacked(num_videos, num_bytes, num_skipped)


def unpack_file(archive: Path, name: str, target: Path) -> None:
    """Write one file of a tar to `target`, once all of the tar was read without damage.

    Raises DamagedArchive, and BadArchive for a tar without that file.
    """
    names = []
    with atomic_path(target) as temporary:
        for tar, member in _members(archive):
            names.append(str(PurePosixPath(member.name)))
            if member.isreg() and PurePosixPath(member.name) == PurePosixPath(name):
                _write_member(archive, tar, member, temporary)
        if not temporary.exists():
            raise BadArchive(f"{archive}: there is no {name} in it; there is {', '.join(names[:10])}")


def _members(archive: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the open tar with each of its members."""
    with _as_bad_archive(archive), tarfile.open(archive) as tar:
        for member in tar:
            if member.size < 0:  # tarfile would read the same headers again and again
                raise tarfile.ReadError(f"{member.name} has a size of {member.size} bytes")
            yield tar, member
        _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError unless zeros and nothing else follow the last member: tarfile takes any damage there for the end.

    This also reads the checksum at the end of a compressed tar.
    """
    assert tar.fileobj is not None
    # The block of zeros that tarfile has read; at the file's end there is none, or a part of one.
    header_read = tar.fileobj.tell() - tar.offset >= tarfile.BLOCKSIZE
    while rest := tar.fileobj.read(_CHUNK):
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"damaged, or another tar, after byte {tar.offset}")
    if not header_read:
        raise tarfile.ReadError(f"it ends early, at byte {tar.offset}")


def _write_member(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Copy one member to a file, which appears when it is complete. Several archives may hold the same file."""
    temporary = target.with_name(f".{target.name}.{archive.name}.part")
    with write_errors_named(target):
        try:
            with open(temporary, "wb") as file:
                for chunk in _read_member(archive, tar, member):
                    file.write(chunk)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _read_member(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    with _as_bad_archive(archive):
        source = tar.extractfile(member)
        assert source is not None, "only regular files are read"
        rest = member.size
        while chunk := source.read(_CHUNK):
            rest -= len(chunk)
            yield chunk
        if rest:
            raise tarfile.ReadError(f"{member.name} ends early")


@contextlib.contextmanager
def _as_bad_archive(archive: Path) -> Iterator[None]:
    """Turn whatever a damaged archive makes its readers raise into a DamagedArchive that names it.

    Errors of the disk or the network that it lies on say nothing about the archive, and become a ValueError.
    """
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:  # OSError: gzip's checksum
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{archive}: cannot be read: {error.strerror}") from None
        problem = next(iter(str(error).splitlines()), type(error).__name__)  # tarfile's may have one per compression
        raise DamagedArchive(f"{archive}: not a whole tar: {problem.rstrip(':')}") from None
