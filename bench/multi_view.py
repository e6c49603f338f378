"""The views of a multi-view test: all of a video from one decode, or every view decoded by itself.

    python -m bench.multi_view [key=value ...] [--dry-run]

    folder      folders of videos, or one video, with commas (default: files of its own)
    sets sizes=340x256 files=8 length=300 cache=PATH     its own files, as in bench.loading
    clips=10 crops=3 frames=16 stride=4 size=224         the views
    repeats=5   turns over all files of a set
    out=PATH    the result (default bench/results/views.json)

One process, one thread, the host decoder. `one` decodes what any view needs, once, and cuts all views from it; `clips`
decodes each clip once, for its crops; `views` decodes for each view, as a test does whose data set has an item a view.
All give the same pixels, which is checked. `one` is what eval.py does. Its `decoding` is measured by itself, too: the
rest is cropping and resizing, which no way is spared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.harness import videos
from bench.harness.runner import at_least, command, shown, spread
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.video_info import Row, read_row
from pipelines.sampling.spatial import view_boxes
from pipelines.sampling.temporal import uniform_clips


@dataclass(frozen=True)
class Settings(videos.Files):
    clips: int = 10
    crops: int = 3
    frames: int = 16
    stride: int = 4
    size: int = 224
    repeats: int = 5
    out: str = "bench/results/views.json"
    toy: ClassVar[str] = "sets=vp9_gop12 sizes=64x48 files=1 length=40 clips=2 frames=4 stride=2 size=32 repeats=1"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, clips=1, frames=1, stride=0, size=1, repeats=1)
        if self.crops not in (1, 3):
            raise ValueError(f"crops={self.crops}: expected 1 or 3")


def ways(row: Row, s: Settings) -> dict[str, Callable[[], np.ndarray]]:
    """How the views (clips * crops, 3, T, H, W) of a video are decoded."""
    frames = uniform_clips(row.num_frames, s.frames, s.stride, s.clips, "loop")
    boxes = view_boxes(row.width, row.height, s.size, s.size, s.crops)

    def decode(clips: slice, crops: slice) -> np.ndarray:
        return decode_views(row.path, frames[clips], boxes[crops], s.size, table=row.table)

    each = [(slice(c, c + 1), slice(k, k + 1)) for c in range(len(frames)) for k in range(len(boxes))]
    return {
        "one": lambda: decode(slice(None), slice(None)),
        "clips": lambda: np.concatenate([decode(slice(c, c + 1), slice(None)) for c in range(len(frames))]),
        "views": lambda: np.concatenate([decode(*view) for view in each]),
    }


def decode_alone(row: Row, s: Settings) -> None:
    """What one decode of all views costs before anything is cropped."""
    frames = uniform_clips(row.num_frames, s.frames, s.stride, s.clips, "loop")
    with open_video(row.path, table=row.table) as video:
        for _ in decode_frames(video, frames.reshape(-1)):
            pass


def measure(rows: Sequence[Row], s: Settings) -> dict[str, Any]:
    """Seconds a video of each way, and how often that of one decode goes into them."""
    turns: dict[str, list[float]] = {"one": [], "clips": [], "views": [], "decoding": []}
    for turn in range(s.repeats):
        spent = dict.fromkeys(turns, 0.0)
        for row in rows:
            found = {}
            for way, decode in ways(row, s).items():
                before = time.perf_counter()
                found[way] = decode()
                spent[way] += time.perf_counter() - before
            before = time.perf_counter()
            decode_alone(row, s)
            spent["decoding"] += time.perf_counter() - before
            if not turn:
                assert all(np.array_equal(pixels, found["one"]) for pixels in found.values()), row.path
        for way, seconds in spent.items():
            turns[way].append(seconds / len(rows))
    return {
        "seconds_a_video": {way: spread(seconds) for way, seconds in turns.items()},
        "times_faster": {way: spread(b / a for a, b in zip(turns["one"], turns[way], strict=True))
                         for way in ("clips", "views")},
    }  # fmt: skip


def measure_all(s: Settings) -> dict[str, Any]:
    sets = []
    for name, paths in s.find().items():
        rows = [read_row(path) for path in paths]
        sets.append({"name": name, **videos.describe(rows), **measure(rows, s)})
        times = "   ".join(f"{way} {shown(t, 3)} s" for way, t in sets[-1]["seconds_a_video"].items())
        print(f"{name:16} {times}   views / one {shown(sets[-1]['times_faster']['views'], 1)}", flush=True)
    return {"sets": sets}


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return command("views", __doc__, Settings, measure_all, arguments, ("av",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
