"""Index a list: find out what each file contains by demuxing it and reading the headers of its packets.

    python -m pipelines.index LIST [root=FOLDER] [multi_label=yes]
    python -m pipelines.index LIST --verify [min_frames=64]     also decode every file completely

The index is kept beside the list, in LIST.index.jsonl, one line per file; a file whose size or mtime has changed is
read again. For each file it is proven which packets give which frames: by the headers of its packets, or if those leave
a doubt by decoding it once. A file for which neither works is decoded from its first frame whenever it is used.

--verify decodes every file completely and compares clips, drawn as in training, bit for bit: from the first frame and
trimmed, with every decoder of this machine. It writes LIST.verify.csv, which names the files that are broken or differ,
are short (fewer than min_frames frames), portrait, rotated, of variable frame rate, or of another pixel format than
4:2:0 with 8 bits. The exit status is 1 if a file cannot be used or differs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.data.dataset import load_dataset
from pipelines.data.metadata import build_index, cache_path, summary
from pipelines.data.verify import verify, write_results
from utils.cli import parse_args, run_command


@dataclass(frozen=True)
class Settings:
    """The settings of the command."""

    root: str = ""
    multi_label: bool = False
    verify: bool = False
    min_frames: int = 64

    def __post_init__(self) -> None:
        if self.min_frames < 0:
            raise ValueError(f"min_frames={self.min_frames}: expected at least 0")


def index_list(arguments: Sequence[str]) -> int:
    """Build or refresh the index of a list and describe it; return 1 if a file of it cannot be used."""
    arguments = ["verify=yes" if argument == "--verify" else argument for argument in arguments]
    (path,), settings = parse_args(Settings, arguments, ["LIST"])
    dataset = load_dataset(path, settings.root, labeled=None, multi_label=settings.multi_label)
    videos = dataset.videos
    infos = build_index(videos, cache_path(path))
    lines = [", ".join(filter(None, (summary(infos), dataset.describe_classes())))]
    reasons = {info.path: info.error for info in infos if info.error}  # why a file cannot be used
    if settings.verify:
        from pipelines.dali_verify import verify_with_dali  # here: torch and DALI take seconds to import

        results = verify(videos, cache_path(path, "verify.jsonl"))
        csv_path = cache_path(path, "verify.csv")
        lines += [write_results(results, settings.min_frames, csv_path), f"written: {csv_path}"]
        reasons = {result.path: result.broken for result in results if result.broken}
        dali_results = verify_with_dali([info for info in infos if info.path not in reasons])
        differing = {result.path: result.broken for result in dali_results if result.broken}
        lines.append(f"{len(dali_results)} files compared in DALI's decoder, {len(differing)} differ")
        reasons |= differing
    for video_path, reason in reasons.items():
        print(f"{video_path}: {reason}")
    print("\n".join(lines))
    return 1 if reasons else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    return run_command("pipelines.index", __doc__, index_list, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
