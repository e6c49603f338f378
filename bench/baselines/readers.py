"""Read a clip with one library each, as that library's documentation has it; all of them decode on one CPU thread.

A reader gets a clip and the size of its frames and returns them cropped, resized and flipped, (T, C, size, size) uint8.
Libraries that crop and resize while they decode do so; torchvision does it for the others. Every one of them was tried
with more decoding threads: with a worker per core those cost more CPU time per clip.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch

from bench.baselines.clips import DrawnClip, crop_resize, describe_error, filter_graph

Reader = Callable[[DrawnClip, int], torch.Tensor]


def read_decord(clip: DrawnClip, image_size: int, whole_video: bool = False) -> torch.Tensor:
    """Read with the module decord; `whole_video` decodes all frames of the file first."""
    import decord

    decord.bridge.set_bridge("torch")
    try:
        video = decord.VideoReader(clip.path, num_threads=1)
        numbers = list(clip.frames)
        frames = video.get_batch(range(len(video)))[numbers] if whole_video else video.get_batch(numbers)
    except decord.DECORDError as error:  # it does not derive from RuntimeError
        raise RuntimeError(str(error)) from None
    return crop_resize(frames.permute(0, 3, 1, 2), clip, image_size)


def decord_distribution() -> str:
    """Name the distribution that the installed module decord comes from; empty if there is none.

    decord and its successors install the same module, and the one that was installed last has overwritten the others.
    """
    if not find_spec("decord"):
        return ""
    import decord

    names = metadata.packages_distributions().get("decord", ["decord"])
    return next((name for name in names if metadata.version(name) == decord.__version__), names[0])


@cache
def _box_crop() -> Any:
    from torchcodec.transforms import RandomCrop

    class BoxCrop(RandomCrop):
        """torchcodec's RandomCrop with a box that was drawn before."""

        def __init__(self, box: tuple[int, int, int, int]):
            super().__init__(box[2:])
            self.box = box

        def _make_transform_spec(self, input_dims: tuple[int | None, int | None]) -> str:
            top, left, height, width = self.box
            return f"crop, {height}, {width}, {left}, {top}"

    return BoxCrop


def read_torchcodec(clip: DrawnClip, image_size: int, seek_mode: str = "exact") -> torch.Tensor:
    """Read with torchcodec, whose decoder crops and resizes; `approximate` seeks without a scan of the file."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    transforms = [_box_crop()(clip.box), Resize((image_size, image_size))]
    decoder = VideoDecoder(clip.path, num_ffmpeg_threads=1, seek_mode=seek_mode, transforms=transforms)
    video = decoder.get_frames_at(list(clip.frames)).data
    return video.flip(-1) if clip.mirror else video


def read_video_reader_rs(clip: DrawnClip, image_size: int) -> torch.Tensor:
    """Read with video_reader-rs, whose filter graph has to begin with the conversion to yuv420p."""
    description = f"format=yuv420p,{filter_graph(clip, image_size)}"
    reader = _import_video_reader().PyVideoReader(clip.path, threads=1, filter=description)
    return clip.select(torch.from_numpy(reader.get_batch(clip.unique_frames))).permute(0, 3, 1, 2)


def _import_video_reader() -> Any:
    """Import video_reader. The wheel's libwebp looks for libsharpyuv in a folder of the machine that built it, so that
    the copy in the wheel is loaded before."""
    spec = find_spec("video_reader")
    if spec and spec.origin and "video_reader" not in sys.modules:
        for library in (Path(spec.origin).parents[1] / "video_reader_rs.libs").glob("libsharpyuv*"):
            ctypes.CDLL(str(library))
    import video_reader

    return video_reader


class Timestamps(NamedTuple):
    """The presentation times of a file's frames in units of its time base, and its key frames."""

    pts: np.ndarray  # of all frames, in presentation order
    keyframes: list[tuple[int, int]]  # (pts, dts)


@cache
def read_timestamps(path: str) -> Timestamps:
    """Read the timestamps from the packets, once per file and process, as Clipline has them from its index."""
    with av.open(path, metadata_errors="ignore") as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.pts is not None]
    keyframes = [
        (packet.pts, packet.pts if packet.dts is None else packet.dts) for packet in packets if packet.is_keyframe
    ]
    return Timestamps(np.array(sorted(packet.pts for packet in packets)), sorted(keyframes))


def read_pyav(clip: DrawnClip, image_size: int) -> torch.Tensor:
    """Seek with PyAV to the key frame before the clip, decode to its last frame, and filter the frames it has."""
    pts, keyframes = read_timestamps(clip.path)
    wanted = {int(pts[frame]) for frame in clip.frames}
    start = max((keyframe for keyframe in keyframes if keyframe[0] <= min(wanted)), default=keyframes[0])
    images = []
    with av.open(clip.path, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        container.seek(start[1], stream=stream)
        graph = _build_graph(stream, filter_graph(clip, image_size))
        for frame in container.decode(stream):
            if frame.pts in wanted:
                graph.push(frame)
                images.append(graph.pull().to_ndarray())
                if len(images) == len(wanted):
                    break
    return clip.select(torch.from_numpy(np.stack(images))).permute(0, 3, 1, 2)


def _build_graph(stream: Any, description: str) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    filters = [part.partition("=") for part in f"{description},format=rgb24".split(",")]
    nodes = [graph.add(name, arguments) if arguments else graph.add(name) for name, _, arguments in filters]
    graph.link_nodes(graph.add_buffer(template=stream), *nodes, graph.add("buffersink")).configure()
    return graph


# name of the case -> its reader; decord and decord2 are two distributions of the same module
READERS: dict[str, Reader] = {
    "decord": read_decord,
    "decord2": read_decord,
    "decord_whole": partial(read_decord, whole_video=True),
    "torchcodec": read_torchcodec,
    "torchcodec_approx": partial(read_torchcodec, seek_mode="approximate"),
    "video_reader_rs": read_video_reader_rs,
    "pyav": read_pyav,
}


def unavailable_reason(case: str, path: str) -> str:
    """Return why a case cannot read a file here; empty if it can."""
    if case in ("decord", "decord2") and case != (installed := decord_distribution()):
        return f"the module decord of {installed} is installed" if installed else f"{case} is not installed"
    try:
        READERS[case](DrawnClip(path, (0,), (0, 0, 2, 2), mirror=False, label=0), 2)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return describe_error(error)
    return ""
