"""SPDL on a CPU: a pipeline of threads that decode, crop, resize and batch, as SPDL's examples build it.

Each thread decodes on its own, which is SPDL's default: with two threads per decoder, clips took more CPU time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch

from bench.baselines.clips import DrawnClip, Normalize, describe_error, filter_graph

PIXEL_FORMAT = "format=pix_fmts=rgb24"


@cache
def read_timestamps(path: str) -> list[float]:
    """Return the times of a file's frames in seconds, read once per file, as Clipline has them from its index."""
    import spdl.io

    return spdl.io.demux_video(path).get_timestamps()


def read_window(clip: DrawnClip, image_size: int) -> torch.Tensor:
    """Decode a window of time from the key frame before it; the filter graph drops what the clip does not have."""
    import spdl.io

    times, frames = read_timestamps(clip.path), clip.unique_frames
    half_frame = (times[1] - times[0]) / 2 if len(times) > 1 else 0.5
    start, end = times[frames[0]] - half_frame, times[frames[-1]] + half_frame
    packets = spdl.io.demux_video(clip.path, timestamp=(start, end))
    chosen = "+".join(f"eq(n,{frame - frames[0]})" for frame in frames)
    filters = [f"trim=start={start}:end={end}", f"select='{chosen}'", filter_graph(clip, image_size), PIXEL_FORMAT]
    decoded = spdl.io.decode_packets(packets, filter_desc=",".join(filters))
    return clip.select(spdl.io.to_torch(spdl.io.convert_frames(decoded))).permute(0, 3, 1, 2)


def read_sample(clip: DrawnClip, image_size: int) -> torch.Tensor:
    """Decode the clip's frames by their numbers, from the packets of the whole file."""
    import spdl.io

    description = f"{filter_graph(clip, image_size)},{PIXEL_FORMAT}"
    packets = spdl.io.demux_video(clip.path)
    decoded = spdl.io.sample_decode_video(packets, clip.unique_frames, filter_desc=description)
    return clip.select(spdl.io.to_torch(spdl.io.convert_frames(decoded))).permute(0, 3, 1, 2)


# name of the case -> function that reads a clip, (T, C, image_size, image_size) uint8
READERS: dict[str, Callable[[DrawnClip, int], torch.Tensor]] = {"spdl_window": read_window, "spdl_sample": read_sample}


def iterate_batches(
    case: str,
    drawn_clips: Sequence[DrawnClip],
    *,
    batch_size: int,
    num_threads: int,
    image_size: int,
    normalize: Normalize,
) -> Iterator[torch.Tensor]:
    """Yield the full batches once, in order, (B, C, T, H, W) float32. The threads live as long as the iterator.

    Raises spdl.pipeline.PipelineFailure if a clip cannot be read.
    """
    from spdl.pipeline import PipelineBuilder

    def place_clips() -> Iterator[tuple[DrawnClip, torch.Tensor, int]]:
        """Yield each clip with the batch that it is written into and its position there: nothing is copied later."""
        for number, clip in enumerate(drawn_clips):
            position = number % batch_size
            if position == 0:
                batch = torch.empty(batch_size, 3, len(clip.frames), image_size, image_size)
            yield clip, batch, position

    def read(placed: tuple[DrawnClip, torch.Tensor, int]) -> torch.Tensor:
        clip, batch, position = placed
        normalize(READERS[case](clip, image_size), out=batch[position])
        return batch

    pipeline = (
        PipelineBuilder()
        .add_source(place_clips())
        # More clips than threads, so that none waits for the clip that is to be handed over first.
        .pipe(read, concurrency=2 * num_threads, output_order="input")
        .aggregate(batch_size, drop_last=True)
        .add_sink(1)  # the queues between the stages hold more batches than the other baselines prefetch
        .build(num_threads=num_threads, max_failures=0)
    )
    with pipeline.auto_stop():
        for batches in pipeline.get_iterator():
            yield batches[0]  # the same one for each of its clips


def unavailable_reason(case: str, clip: DrawnClip) -> str:
    """Return why SPDL cannot read a clip here; empty if it can."""
    try:
        READERS[case](clip, 2)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return describe_error(error)
    return ""
