"""Baseline loaders: a torch DataLoader whose workers decode with another library.

A baseline reads the same clips that Clipline's source drew (frame numbers, crop box, flip) in the usual way: read the
frames, crop and resize with torchvision, flip, normalize, collate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import set_forkserver_preload

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from utils.workers import ignore_sigint, spawn_without_main


@dataclass(frozen=True)
class DrawnClip:
    """One clip as Clipline's source drew it."""

    path: str
    frames: tuple[int, ...]
    box: tuple[int, int, int, int]  # top, left, height, width
    mirror: bool
    label: int


def read_decord(path: str, frames: Sequence[int], whole_video: bool = False) -> torch.Tensor:
    """Read frames with decord; `whole_video` decodes all frames of the file first."""
    import decord

    decord.bridge.set_bridge("torch")
    try:
        video = decord.VideoReader(path, num_threads=1)
        numbers = list(frames)
        clip = video.get_batch(range(len(video)))[numbers] if whole_video else video.get_batch(numbers)
    except decord.DECORDError as error:  # it does not derive from RuntimeError
        raise RuntimeError(str(error)) from None
    return clip.permute(0, 3, 1, 2)


def read_decord_whole(path: str, frames: Sequence[int]) -> torch.Tensor:
    """Decode all frames of the file with decord, then select those of the clip."""
    return read_decord(path, frames, whole_video=True)


def read_torchcodec(path: str, frames: Sequence[int], seek_mode: str = "exact") -> torch.Tensor:
    """Read frames with torchcodec on the CPU."""
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=seek_mode).get_frames_at(list(frames)).data


def read_torchcodec_approximate(path: str, frames: Sequence[int]) -> torch.Tensor:
    """Read frames with torchcodec without its scan of the file."""
    return read_torchcodec(path, frames, "approximate")


def read_pyav(path: str, frames: Sequence[int]) -> torch.Tensor:
    """Decode with PyAV from the first frame of the file to the last one of the clip."""
    numbers, images = set(frames), {}
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        for number, frame in enumerate(container.decode(stream)):
            if number in numbers:
                images[number] = frame.to_ndarray(format="rgb24")
            if number >= max(numbers):
                break
    return torch.from_numpy(np.stack([images[number] for number in frames])).permute(0, 3, 1, 2)


# name of the case -> function that reads frames of a file, (T, C, H, W) uint8
READERS: dict[str, Callable[[str, Sequence[int]], torch.Tensor]] = {
    "decord": read_decord,
    "decord_whole": read_decord_whole,
    "torchcodec": read_torchcodec,
    "torchcodec_approx": read_torchcodec_approximate,
    "pyav": read_pyav,
}


class ClipDataset(Dataset):
    """The drawn clips as a torch data set; an item is ((C, T, H, W) float32, label)."""

    def __init__(
        self,
        reader: str,
        drawn_clips: Sequence[DrawnClip],
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        self.reader, self.drawn_clips, self.image_size = reader, list(drawn_clips), image_size
        self.mean, self.std = list(mean), list(std)

    def __len__(self) -> int:
        return len(self.drawn_clips)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        clip = self.drawn_clips[i]
        video = READERS[self.reader](clip.path, clip.frames)
        video = tv.resized_crop(video, *clip.box, [self.image_size] * 2, InterpolationMode.BILINEAR, antialias=True)
        if clip.mirror:
            video = tv.horizontal_flip(video)
        video = tv.normalize(tv.to_dtype(video, torch.float32, scale=True), self.mean, self.std, inplace=True)
        return video.permute(1, 0, 2, 3), clip.label


def iterate_batches(
    clips: ClipDataset, batch_size: int, *, num_workers: int, prefetch: int, pin_memory: bool = False
) -> Iterator[list[torch.Tensor]]:
    """Yield the batches once, in order. The workers, with one torch thread each, live as long as the iterator."""
    options = {"multiprocessing_context": "forkserver", "persistent_workers": True, "prefetch_factor": prefetch}
    set_forkserver_preload(["bench.baselines.loaders"])  # so that torch is imported once and not by every worker
    with spawn_without_main(), ignore_sigint():
        return iter(
            DataLoader(
                clips, batch_size, num_workers=num_workers, pin_memory=pin_memory, **options if num_workers else {}
            )
        )


def unavailable_reason(reader: str, path: str) -> str:
    """Return why a library cannot read a file here; empty if it can."""
    try:
        READERS[reader](path, [0])
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().splitlines()[0]
    return ""
