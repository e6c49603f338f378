"""The loaders that Clipline is measured beside: a torch DataLoader whose workers decode with a given library.

A peer gets the very clips that Clipline's source drew (frame numbers, crop box, flip) and does with them what such
loaders do: read the frames, crop and resize with torchvision, flip, normalise, collate.
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

from utils.workers import deaf_to_interrupts, light_main


@dataclass(frozen=True)
class Drawn:
    """One clip: what Clipline's source drew for it."""

    path: str
    frames: tuple[int, ...]
    box: tuple[int, int, int, int]  # top, left, height, width
    mirror: bool
    label: int


def read_decord(path: str, frames: Sequence[int], whole: bool = False) -> torch.Tensor:
    import decord

    decord.bridge.set_bridge("torch")
    try:
        video = decord.VideoReader(path, num_threads=1)
        wanted = list(frames)
        pictures = video.get_batch(range(len(video)))[wanted] if whole else video.get_batch(wanted)
    except decord.DECORDError as error:  # which is no RuntimeError
        raise RuntimeError(str(error)) from None
    return pictures.permute(0, 3, 1, 2)


def read_decord_whole(path: str, frames: Sequence[int]) -> torch.Tensor:
    """All frames are decoded, then those of the clip taken."""
    return read_decord(path, frames, whole=True)


def read_torchcodec(path: str, frames: Sequence[int], seek_mode: str = "exact") -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=seek_mode).get_frames_at(list(frames)).data


def read_torchcodec_approximate(path: str, frames: Sequence[int]) -> torch.Tensor:
    return read_torchcodec(path, frames, "approximate")


def read_pyav(path: str, frames: Sequence[int]) -> torch.Tensor:
    """Everything up to the last wanted frame is decoded."""
    wanted, pictures = set(frames), {}
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pictures[number] = frame.to_ndarray(format="rgb24")
            if number >= max(wanted):
                break
    return torch.from_numpy(np.stack([pictures[number] for number in frames])).permute(0, 3, 1, 2)


# name of the case -> (T, C, H, W) uint8 of a file's frames
READERS: dict[str, Callable[[str, Sequence[int]], torch.Tensor]] = {
    "decord": read_decord,
    "decord_whole": read_decord_whole,
    "torchcodec": read_torchcodec,
    "torchcodec_approx": read_torchcodec_approximate,
    "pyav": read_pyav,
}


class Clips(Dataset):
    """Item i is ((C, T, H, W) float32, label) of the i-th drawn clip."""

    def __init__(self, reader: str, drawn: Sequence[Drawn], size: int, mean: Sequence[float], std: Sequence[float]):
        self.reader, self.drawn, self.size, self.mean, self.std = reader, list(drawn), size, list(mean), list(std)

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        clip = self.drawn[i]
        video = READERS[self.reader](clip.path, clip.frames)
        video = tv.resized_crop(video, *clip.box, [self.size] * 2, InterpolationMode.BILINEAR, antialias=True)
        if clip.mirror:
            video = tv.horizontal_flip(video)
        video = tv.normalize(tv.to_dtype(video, torch.float32, scale=True), self.mean, self.std, inplace=True)
        return video.permute(1, 0, 2, 3), clip.label


def batches(clips: Clips, batch: int, workers: int, prefetch: int, pin: bool = False) -> Iterator[list[torch.Tensor]]:
    """The batches in order, once; the workers (each with one torch thread) live as long as the iterator."""
    more = {"multiprocessing_context": "forkserver", "persistent_workers": True, "prefetch_factor": prefetch}
    set_forkserver_preload(["bench.baselines.loaders"])  # torch is imported once, not by every worker of every case
    with light_main(), deaf_to_interrupts():
        return iter(DataLoader(clips, batch, num_workers=workers, pin_memory=pin, **more if workers else {}))


def missing(reader: str, path: str) -> str:
    """Why the library cannot be used here; empty if it can."""
    try:
        READERS[reader](path, [0])
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().splitlines()[0]
    return ""
