"""Download Kinetics from its public mirrors: videos, annotations, and the replacements for corrupted videos.

    python -m pipelines.download SET FOLDER [key=value ...]

    SET                k400, k600, k700 or k700_2020; k700 is the lists of 2019 with the archives of 2020
    FOLDER             videos go to FOLDER/SPLIT/ID_000010_000020.mp4, replacements to FOLDER/replacement, and the list
                       that data.train takes to FOLDER/annotations/SPLIT.csv
    split=train,val    which of train, val and test to fetch
    workers=4          archives that are downloaded and unpacked at the same time
    keep_archives=no   yes: keep the archives in FOLDER/archives; otherwise each is deleted once it is unpacked
    retries=5          attempts in a row that bring nothing new before an archive is given up
    timeout=30         seconds without an answer after which a connection counts as dropped
    mirrors=FILE       other addresses; pipelines/data/mirrors.yaml describes the form
    archives=ADDRESS   of the text file that lists the archives of a split; annotations=ADDRESS of its list, and
                       replacements=ADDRESS,... of its replacements: instead of those of the mirrors, for a single split

The same command continues where it stopped, after Ctrl-C, a crash or a dropped connection: a file that was begun is
continued at its last byte, and FOLDER/download.jsonl remembers which archives are unpacked (delete it,
FOLDER/annotations and FOLDER/archives to fetch everything again). Before the first archive, the sizes that the servers
report are compared with the free space. An archive is done when it has the size that the server reported, is a whole
tar, and its videos are written. At the end the videos of each list are counted. The exit status is 1 if something could
not be fetched; it is named.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.archives import REPLACEMENTS, Download
from pipelines.data.dataset import load_dataset
from pipelines.data.mirrors import SHIPPED, choose_splits, override_addresses, read_mirror
from pipelines.storage import is_remote, videos_below
from utils.cli import parse_args, run_command

MAXIMUM = 1_000_000  # of any number among the settings; nobody waits longer


@dataclass(frozen=True)
class Settings:
    """The settings of the command."""

    split: tuple[str, ...] = ("train", "val")
    workers: int = 4
    keep_archives: bool = False
    retries: int = 5
    timeout: float = 30.0
    mirrors: str = ""
    archives: str = ""
    annotations: str = ""
    replacements: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, minimum in dict(workers=1, retries=0, timeout=0.1).items():
            if not minimum <= getattr(self, name) <= MAXIMUM:
                raise ValueError(f"{name}={getattr(self, name)}: expected {minimum} to {MAXIMUM:,}")


def describe_list(folder: Path, split: str) -> str:
    """Return the argument that train.py takes for a split, with the number of its videos that are there and missing."""
    path = folder / "annotations" / f"{split}.csv"
    try:
        videos = load_dataset(path).videos
    except ValueError as error:  # a test list without labels
        return (
            f"{path} is no list for training: {error}; {len(videos_below(folder / split))} videos in {folder / split}"
        )
    num_found = sum(os.path.exists(video.path) and os.path.getsize(video.path) > 0 for video in videos)
    num_replaced = sum(Path(video.path).parent == folder / REPLACEMENTS for video in videos)
    replaced = f" ({num_replaced} of them replacements)" if num_replaced else ""
    key = split if split in ("train", "val", "test") else "train"
    return f"data.{key}={path}: {num_found} of {len(videos)} videos found{replaced}, {len(videos) - num_found} missing"


def download(arguments: Sequence[str]) -> int:
    """Download the splits of a set and count the videos of their lists; return 1 if something could not be fetched."""
    (name, folder_name), settings = parse_args(Settings, arguments, ["SET", "FOLDER"])
    mirror = read_mirror(name, settings.mirrors or SHIPPED)
    splits = override_addresses(
        choose_splits(mirror, settings.split), settings.archives, settings.annotations, settings.replacements
    )
    if mirror.note:
        print(f"{name}: {mirror.note}")
    if is_remote(folder_name):
        raise ValueError(f"{folder_name}: expected a local folder")
    folder = Path(os.path.normpath(folder_name))
    folder.mkdir(parents=True, exist_ok=True)
    run = Download(folder, settings.workers, settings.keep_archives, retries=settings.retries, timeout=settings.timeout)
    with contextlib.closing(run):
        run.fetch_lists(splits)
        archives = run.find_archives(splits)
        if archives:
            run.check_space(archives)
            run.fetch_archives(archives)
    for failure in run.failures:
        print(failure)
    for split in splits:
        if (folder / "annotations" / f"{split.name}.csv").exists():
            print(describe_list(folder, split.name))
    if run.failures:
        them = "it" if len(run.failures) == 1 else "them"
        print(f"{len(run.failures)} could not be fetched; the same command tries {them} again")
    return 1 if run.failures else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    interrupted = "interrupted; the same command continues from here"
    return run_command("pipelines.download", __doc__, download, arguments, interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
