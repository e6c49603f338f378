"""Baseline loaders: a torch DataLoader whose workers decode with another library.

A baseline delivers the clips that Clipline's source drew (frame numbers, crop box, flip), normalized and collated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing import set_forkserver_preload

import torch
from torch.utils.data import DataLoader, Dataset

from bench.baselines.clips import DrawnClip, Normalize
from bench.baselines.readers import READERS
from utils.workers import ignore_sigint, spawn_without_main


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
        self.normalize = Normalize(mean, std)

    def __len__(self) -> int:
        return len(self.drawn_clips)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        clip = self.drawn_clips[i]
        return self.normalize(READERS[self.reader](clip, self.image_size)), clip.label


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
