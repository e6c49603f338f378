"""Fetch many archives into one folder and unpack them, in parallel and over any number of calls.

FOLDER/SPLIT/ID_000010_000020.mp4     the videos of a split
FOLDER/replacement/...                videos that replace corrupted ones (`pipelines.data.dataset` prefers them)
FOLDER/annotations/SPLIT.csv          the list of a split
FOLDER/archives/...                   what is being downloaded
FOLDER/download.jsonl                 what is done
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from pipelines.data.annotations import is_kinetics_list, read_entries, read_text
from pipelines.data.mirrors import Split, file_name, list_archives, local_path, quote_address
from pipelines.data.transfer import Stopped, Transfer, TransferError, fetch_file, part_size, remote_size
from pipelines.data.unpack import BadArchive, DamagedArchive, Unpacked, unpack_file, unpack_videos

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
REPLACEMENTS = "replacement"  # the folder of videos that replace corrupted ones
_UNPACKED = 1.02  # bytes of videos per byte of archive: k400's 436 GB of archives hold 443 GB of videos


class Archive(NamedTuple):
    """A tar to fetch, and where its videos go."""

    address: str
    folder: str  # of the videos, below the folder of the download


class Journal:
    """Keep what is done in a folder in download.jsonl, one line of JSON per archive and list.

    Only one process at a time can open the journal of a folder.
    """

    def __init__(self, folder: Path):
        self._mutex = threading.Lock()
        self._file = open(folder / "download.jsonl", "a+", encoding="utf-8")
        self._lock_file(folder)
        self._file.seek(0)
        text = self._file.read()
        if text and not text.endswith("\n"):  # the process was killed while it wrote the last line
            self._file.write("\n")
        records = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        self.archives = {(record["archive"], record["folder"]) for record in records if "archive" in record}
        self.lists = {record["list"]: record["address"] for record in records if "list" in record}  # the last one wins

    def _lock_file(self, folder: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"{folder}: another download into this folder is running") from None
        except OSError as error:  # some cluster file systems have no locks
            print(f"{folder}: cannot be locked ({error.strerror}): let no other download into it run", file=sys.stderr)

    def add_archive(self, archive: Archive, unpacked: Unpacked) -> None:
        """Remember that an archive is unpacked."""
        self._append({"archive": archive.address, "folder": archive.folder, "videos": unpacked.num_videos})
        self.archives.add(archive)

    def add_list(self, name: str, address: str) -> None:
        """Remember where the list of a split is from."""
        self._append({"list": name, "address": address})
        self.lists[name] = address

    def _append(self, record: dict[str, Any]) -> None:
        with self._mutex:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Release the folder."""
        self._file.close()


class Download:
    """Fetch the lists and archives of splits into a folder; `failures` says what could not be fetched, and why."""

    def __init__(
        self, folder: Path, workers: int = 4, keep_archives: bool = False, *, retries: int = 5, timeout: float = 30.0
    ):
        self.folder, self.workers, self.keep_archives = folder, workers, keep_archives
        self.journal = Journal(folder)
        self.failures: list[str] = []
        self.bar = tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty())
        self.stop = threading.Event()
        mutex = threading.Lock()

        def progress(num_bytes: int) -> None:
            with mutex:
                self.bar.update(num_bytes)

        self.transfer = Transfer(
            retries=retries,
            timeout=timeout,
            stop=self.stop,
            log=lambda line: tqdm.write(line, file=sys.stderr),
            progress=progress,
        )

    def close(self) -> None:
        """Release the folder."""
        self.bar.close()
        self.journal.close()

    def fetch_lists(self, splits: Sequence[Split]) -> None:
        """Fetch the annotations of the splits."""
        tars = set()
        for split in splits:
            target = self.folder / "annotations" / f"{split.name}.csv"
            if target.exists() and self.journal.lists.get(target.name) != split.annotations:
                raise ValueError(
                    f"{target}: is there, but not from {split.annotations}: delete it, or take a new folder"
                )
            if target.exists():
                continue
            self.journal.add_list(target.name, split.annotations)
            target.parent.mkdir(exist_ok=True)
            address, _, member = split.annotations.partition("#")
            with self._collecting_failures():
                if member:
                    tars.add(tar := self._kept_path(address))
                    fetch_file(quote_address(address), tar, self.transfer)
                    with _deleting_if_damaged(tar, address):
                        unpack_file(tar, member, target)
                else:
                    fetch_file(quote_address(address), target, self.transfer)
                _check_list(target, split.annotations)
        if not self.keep_archives:
            for tar in tars:
                tar.unlink(missing_ok=True)

    def find_archives(self, splits: Sequence[Split]) -> list[Archive]:
        """Return the archives of the splits, without those that are unpacked. Fetches the text files that list them."""
        archives: list[Archive] = []
        for split in splits:
            addresses: Sequence[str] = ()
            with self._collecting_failures():
                addresses = self._addresses(split)
            archives += [Archive(address, REPLACEMENTS) for address in split.replacements]
            archives += [Archive(address, split.name) for address in addresses]
        archives = list(dict.fromkeys(archives))
        by_path: dict[Path, Archive] = {}
        for archive in archives:
            other = by_path.setdefault(self._kept_path(archive.address), archive)
            if other != archive:
                raise ValueError(
                    f"{archive.address} (for {archive.folder}): would be kept in the same file as {other.address} "
                    f"(for {other.folder})"
                )
        left = [archive for archive in archives if archive not in self.journal.archives]
        _print(f"{_count(len(archives), 'archive')}, {len(archives) - len(left)} of them done")
        return left

    def _addresses(self, split: Split) -> Sequence[str]:
        if not isinstance(split.archives, str):
            return split.archives
        path = self._kept_path(split.archives)
        fetch_file(quote_address(split.archives), path, self.transfer)
        try:
            return list_archives(path.read_text(encoding="utf-8", errors="replace"), split.archives)
        except ValueError as error:
            path.unlink()  # the next call asks for it again
            raise TransferError(str(error)) from None

    def check_space(self, archives: Sequence[Archive]) -> None:
        """Compare what the archives need with the free space. Raises ValueError with both if it is too little."""
        sizes: list[int] = []
        with contextlib.closing(self._in_parallel(self._size, archives)) as results:
            sizes = [size for _, future in results if (size := future.result()) is not None]
        unknown = len(archives) - len(sizes)
        present = sum(part_size(self._kept_path(archive.address)) for archive in archives)
        at_once = sizes if self.keep_archives else sorted(sizes)[-self.workers :]
        needed = max(_UNPACKED * sum(sizes) + sum(at_once) - present, 0)
        free = shutil.disk_usage(self.folder).free
        without_size = f" (of {unknown} the size is not known)" if unknown else ""
        line = f"{_count(len(archives), 'archive')} of {_format_bytes(sum(sizes))} to fetch{without_size}"
        space = f"about {_format_bytes(needed)} are needed in {self.folder}, {_format_bytes(free)} are free"
        if needed > free:
            raise ValueError(f"not enough space: {line}; {space}")
        _print(f"{line}; {space}")
        self.bar.reset(None if unknown else sum(sizes))
        self.bar.update(present)

    def fetch_archives(self, archives: Sequence[Archive]) -> None:
        """Fetch and unpack archives in parallel; those that cannot be fetched are remembered as failures."""
        num_done = 0
        with contextlib.closing(self._in_parallel(self._fetch, archives)) as results:
            for archive, future in results:
                with self._collecting_failures():
                    unpacked = future.result()
                    num_done += 1
                    others = _count(unpacked.num_skipped, "other file")
                    skipped = f", {others} left out" if unpacked.num_skipped else ""
                    _print(
                        f"{archive.folder}/{file_name(archive.address)}: {_count(unpacked.num_videos, 'video')}, "
                        f"{_format_bytes(unpacked.num_bytes)}{skipped} ({num_done} of {len(archives)})"
                    )

    def _fetch(self, archive: Archive) -> Unpacked:
        """Fetch one archive and unpack it; a damaged one is deleted."""
        path, folder = self._kept_path(archive.address), self.folder / archive.folder
        folder.mkdir(exist_ok=True)
        fetch_file(archive.address, path, self.transfer)
        with _deleting_if_damaged(path, archive.address):
            unpacked = unpack_videos(path, folder, self._go_on)
        os.sync()  # after a power cut, what the journal calls done must not be empty files
        self.journal.add_archive(archive, unpacked)
        if not self.keep_archives:
            path.unlink()
        return unpacked

    def _size(self, archive: Archive) -> int | None:
        self._go_on()
        return remote_size(archive.address, self.transfer)

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _kept_path(self, address: str) -> Path:
        """Return where a file of a server is kept, after making the folder for it."""
        path = self.folder / "archives" / local_path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def _collecting_failures(self) -> Iterator[None]:
        """Keep the reason why something could not be fetched; other errors, as of a full disk, end the command."""
        try:
            yield
        except (TransferError, BadArchive) as error:
            self.failures.append(str(error))

    def _in_parallel(
        self, work: Callable[[ItemT], ResultT], items: Sequence[ItemT]
    ) -> Generator[tuple[ItemT, Future[ResultT]], None, None]:
        """Yield each item with its finished future; if the loop over them ends early, what is left is stopped."""
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                futures = {pool.submit(work, item): item for item in items}
                for future in as_completed(futures):
                    yield futures[future], future
            except BaseException:
                self.stop.set()
                self.transfer.log(f"stopping: a server that is silent may take up to {self.transfer.timeout:g} s")
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextlib.contextmanager
def _deleting_if_damaged(archive: Path, address: str) -> Iterator[None]:
    """Delete an archive that turns out to be damaged, so that the next call fetches it again."""
    try:
        yield
    except DamagedArchive as error:
        archive.unlink()
        raise DamagedArchive(f"{address}: {error} (deleted; the same command fetches it again)") from None


def _check_list(path: Path, address: str) -> None:
    """Delete what is no list of videos, as the page of a proxy, and raise TransferError. Test lists have no labels."""
    try:
        if not is_kinetics_list(read_text(path)):
            read_entries(str(path))
    except ValueError as error:
        path.unlink()
        raise TransferError(f"{address}: not a list of videos: {error}") from None


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _print(line: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(line)
    sys.stdout.flush()


def _format_bytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
