"""Bytes that are read for a clip: the whole file, or the ranges that the clip needs.

    python -m bench.bytes [key=value ...]

    folders     folders of videos, or one video, with commas (default: files of its own, as in bench.decode)
    sets        which of its own files: h264_bframes,h264_gop250,h264_gop12,vp9_gop12,vp9_gop4
    clips=100   random clips of each set     specs=16x4,8x32   frames x stride     seed=0
    files=8 width=340 height=256 length=300 cache=PATH         its own files
    out=PATH    the result (default bench/results/bytes.json)

Three ways to the same trimmed video: `whole` demuxes the file; `ranges` knows its pictures from the index; `address`
does so through fsspec, in blocks, as from another machine. Counted is what the process reads, by the kernel's own
account (rchar), which holds the container's header, its index, and neighbours that are read along.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import files
from bench.common import head, shown, spread, write
from configs.words import parse
from pipelines.index import Row, read_row
from pipelines.sampling import random_clip
from pipelines.trim import trim


@dataclass(frozen=True)
class Settings:
    folders: tuple[str, ...] = ()
    sets: tuple[str, ...] = tuple(files.KINDS)
    clips: int = 100
    specs: tuple[str, ...] = ("16x4", "8x32")
    seed: int = 0
    files: int = 8
    width: int = 340
    height: int = 256
    length: int = 300
    cache: str = str(Path(tempfile.gettempdir()) / "clipline-bench")
    out: str = "bench/results/bytes.json"

    def __post_init__(self) -> None:
        for word in self.sets:
            if word not in files.KINDS:
                raise ValueError(f"sets={word}: expected some of {','.join(files.KINDS)}")
        for word in self.specs:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", word):
                raise ValueError(f"specs={word}: expected FRAMESxSTRIDE")
        for name in ("clips", "files", "width", "height", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")


def read_bytes() -> int:
    """That this process has read so far, from the page cache too."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(rows: Sequence[Row], spec: str, settings: Settings) -> dict[str, Any]:
    """-> bytes a clip of each way, and as shares of the files."""
    frames, stride = map(int, spec.split("x"))
    rng = np.random.default_rng(settings.seed)
    taken: dict[str, list[float]] = {"whole": [], "ranges": [], "address": []}
    read_bytes()
    overhead = -read_bytes() + read_bytes()  # of looking
    for number in range(settings.clips):
        row = rows[number % len(rows)]
        clip = random_clip(row.num_frames, frames, stride, "loop", rng)
        ways = {"whole": (row.path, ""), "ranges": (row.path, row.table),
                "address": (f"file://{os.path.abspath(row.path)}", row.table)}  # fmt: skip
        results = []
        for way, (path, table) in ways.items():
            before = read_bytes()
            results.append(trim(path, clip, table=table)[0])
            taken[way].append(read_bytes() - before - overhead)
        assert len(set(map(len, results))) == 1, row.path
    mean = sum(rows[n % len(rows)].size for n in range(settings.clips)) / settings.clips
    return {
        "spec": spec, "file_bytes": round(mean), "bytes": {way: spread(values) for way, values in taken.items()},
        "share_of_file": {way: round(float(np.mean(values)) / mean, 4) for way, values in taken.items()},
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        _, s = parse(Settings, arguments)
        if s.folders:
            sets = {Path(folder).stem: files.find(folder) for folder in s.folders}
        else:
            sets = files.generate(Path(s.cache), list(s.sets), s.files, s.width, s.height, s.length)
        result = head("bytes", s, ("fsspec",)) | {"sets": []}
        for name, paths in sets.items():
            rows = [read_row(path) for path in paths]
            results = [measure(rows, spec, s) for spec in s.specs]
            result["sets"].append({"name": name, **files.describe(rows), "specs": results})
            for found in results:
                shares = "   ".join(
                    f"{way} {100 * share:5.1f} % ({shown(found['bytes'][way], 0)} bytes)"
                    for way, share in found["share_of_file"].items()
                )
                print(f"{name:16} {found['spec']:6} {shares}", flush=True)
        write(result, s.out)
    except (ValueError, OSError) as error:
        print(f"bench.bytes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"written: {s.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
