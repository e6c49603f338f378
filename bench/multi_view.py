"""Measure the decoding of a multi-view test: all views of a video from one decode, or each decoded by itself.

    python -m bench.multi_view [key=value ...] [--dry-run]

    folder=         folders of videos, or single videos, separated by commas (default: generated videos)
    sets= sizes=340x256 files=8 length=300 cache=PATH       generated videos, as in bench.loading
    num_clips=10 num_crops=3 num_frames=16 frame_stride=4 image_size=224        the views
    rounds=5        rounds over all files of a set
    out=PATH        the result (default bench/results/multi_view.json)

One process and one thread decode with PyAV. `one_decode` decodes all frames that any view needs once, and crops all
views from them, as eval.py does; `per_clip` decodes each clip once for all its crops; `per_view` decodes for each view,
as a test does whose data set has one item per view. All give the same pixels, which is checked. `decoding` is the
decoding of `one_decode` alone; the rest of it is cropping and resizing, which is the same for all three.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.harness.result_file import format_iqr, summarize
from bench.harness.runner import check_minimum, run_bench
from bench.harness.videos import VideoSettings, describe_videos
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.video_info import VideoInfo, read_video_info
from pipelines.sampling.spatial import scaled_size, view_boxes
from pipelines.sampling.temporal import uniform_clips


@dataclass(frozen=True)
class Settings(VideoSettings):
    """The settings of this benchmark; the module's help explains them."""

    num_clips: int = 10
    num_crops: int = 3
    num_frames: int = 16
    frame_stride: int = 4
    image_size: int = 224
    rounds: int = 5
    out: str = "bench/results/multi_view.json"
    dry_run_args: ClassVar[str] = (
        "sets=vp9_gop12 sizes=64x48 files=1 length=40 num_clips=2 num_frames=4 frame_stride=2 image_size=32 rounds=1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, num_clips=1, num_frames=1, frame_stride=0, image_size=1, rounds=1)
        if self.num_crops not in (1, 3):
            raise ValueError(f"num_crops={self.num_crops}: expected 1 or 3")


def choose_frames(info: VideoInfo, settings: Settings) -> np.ndarray:
    """Return the frame numbers (clips, frames) of all views."""
    return uniform_clips(
        info.num_frames, settings.num_frames, settings.frame_stride, settings.num_clips, pad_policy="wrap"
    )


def decode_variants(info: VideoInfo, settings: Settings) -> dict[str, Callable[[], np.ndarray]]:
    """Return the ways to decode the views (clips * crops, 3, T, H, W) of a video."""
    frames, size = choose_frames(info, settings), settings.image_size
    boxes = view_boxes(info.width, info.height, size, size, settings.num_crops)

    def decode(clips: slice, crops: slice) -> np.ndarray:
        scaled = scaled_size(info.width, info.height, size)
        return decode_views(info.path, frames[clips], boxes[crops], size, scaled_size=scaled, table=info.table)

    everything = slice(None)
    each_clip = [slice(i, i + 1) for i in range(len(frames))]
    each_crop = [slice(i, i + 1) for i in range(len(boxes))]
    return {
        "one_decode": lambda: decode(everything, everything),
        "per_clip": lambda: np.concatenate([decode(clip, everything) for clip in each_clip]),
        "per_view": lambda: np.concatenate([decode(clip, crop) for clip in each_clip for crop in each_crop]),
    }


def decode_only(info: VideoInfo, settings: Settings) -> None:
    """Decode the frames of all views once, and crop nothing."""
    frames = choose_frames(info, settings)
    with open_video(info.path, table=info.table) as video:
        for _ in decode_frames(video, frames.reshape(-1)):
            pass


def measure(infos: Sequence[VideoInfo], settings: Settings) -> dict[str, Any]:
    """Return the seconds per video of each variant, and how much faster one decode is than the others."""
    rounds: dict[str, list[float]] = {"one_decode": [], "per_clip": [], "per_view": [], "decoding": []}
    for number in range(settings.rounds):
        seconds = dict.fromkeys(rounds, 0.0)
        for info in infos:
            views = {}
            for name, decode in decode_variants(info, settings).items():
                before = time.perf_counter()
                views[name] = decode()
                seconds[name] += time.perf_counter() - before
            before = time.perf_counter()
            decode_only(info, settings)
            seconds["decoding"] += time.perf_counter() - before
            if not number:
                assert all(np.array_equal(pixels, views["one_decode"]) for pixels in views.values()), info.path
        for name, total in seconds.items():
            rounds[name].append(total / len(infos))
    return {
        "seconds_per_video": {name: summarize(values) for name, values in rounds.items()},
        "speedups": {
            name: summarize(b / a for a, b in zip(rounds["one_decode"], rounds[name], strict=True))
            for name in ("per_clip", "per_view")
        },
    }


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all sets of files."""
    sets = []
    for name, paths in settings.find_videos().items():
        infos = [read_video_info(path) for path in paths]
        result = {"name": name, **describe_videos(infos), **measure(infos, settings)}
        times = "   ".join(f"{key} {format_iqr(t, 3)} s" for key, t in result["seconds_per_video"].items())
        ratio = format_iqr(result["speedups"]["per_view"], 1)
        print(f"{name:16} {times}   per_view / one_decode {ratio}", flush=True)
        sets.append(result)
    return {"sets": sets}


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("multi_view", __doc__, Settings, measure_all, argv, ("av",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
