"""Batches of stored features in the place of clips: minutes instead of hours where nothing is augmented.

The samples come in the order in which a VideoLoader of as many videos would yield them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from configs.schema import Data
from pipelines.batch_loader import Batch
from pipelines.data.dataset import few_per_class
from pipelines.data.feature_shards import FeatureShards, LabeledVideo
from pipelines.sampling import order
from utils.device import to_device
from utils.distributed import World


class FeatureLoader:
    """Yield stored features: video (B, N, D), or (B, 1, D) of one vector per video, label (B,), sample_index (B,).

    In training the rows are shuffled anew in each epoch. Otherwise they come in the order of the list they are of, and
    sample_index is -1 for padding and for videos that could not be read. The other arguments are VideoLoader's.
    """

    bad_videos: Mapping[int, str] = {}

    def __init__(  # noqa: PLR0913
        self,
        folder: str,
        data: Data,
        *,
        train: bool,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        world: World | None = None,
        global_batch_size: int = 0,
    ):
        self.shards, self.device, self.dtype, self.seed, self.train = FeatureShards(folder), device, dtype, seed, train
        self.world = world or World()
        self.batch_size, self.epoch, self.batch_index = data.batch_size, 0, 0
        limit = data.max_per_class if train else data.eval_max_per_class
        lines = few_per_class(self.shards.labels, limit, data.few_shot_seed if train else "first")
        row_of = {int(line): row for row, line in enumerate(self.shards.line)}
        rows = [row_of.get(line, -1) for line in lines]  # -1: the video could not be read
        self.rows = [row for row in rows if row >= 0] if train else rows
        self.balance = order.balanced_order(data.balance, self.shards.label[self.rows], seed) if train else None
        self.grad_accum_steps = order.grad_accum_steps(global_batch_size, self.batch_size, self.world.size)
        if not len(self):
            clips = self.batch_size * self.world.size * self.grad_accum_steps
            raise ValueError(f"{folder}: {len(self.rows)} videos do not fill one step of {clips}")
        if self.world.is_main:
            kind = "x".join(map(str, self.shards.shape))
            print(f"{folder}: {kind} features of {len(self.shards)} of {len(self.shards.labels)} videos", flush=True)

    @property
    def classes(self) -> list[str]:
        """The class names, by label."""
        return self.shards.classes

    @property
    def videos(self) -> list[LabeledVideo]:
        """The videos, in the order of sample_index; those that could not be read have no name."""
        shards = self.shards
        known = [LabeledVideo(name, label) for name, label in zip(shards.name, shards.label.tolist(), strict=True)]
        return [known[row] if row >= 0 else LabeledVideo("", -1) for row in self.rows]

    def __len__(self) -> int:
        """Count the batches per epoch."""
        return order.batches_per_epoch(
            len(self.rows),
            self.batch_size,
            self.world.size,
            train=self.train,
            grad_accum_steps=self.grad_accum_steps,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the current one to the end of the epoch."""
        if self.batch_index == len(self):
            self.epoch, self.batch_index = self.epoch + 1, 0
        epoch = self.epoch
        while self.epoch == epoch and self.batch_index < len(self):
            batch = self._batch(self.batch_index)
            self.batch_index += 1
            yield batch
        if self.epoch == epoch:
            self.epoch, self.batch_index = self.epoch + 1, 0

    def _batch(self, batch_index: int) -> Batch:
        world, count = self.world, len(self.rows)
        positions = [
            order.epoch_position(batch_index, slot, self.batch_size, world.rank, world.size)
            for slot in range(self.batch_size)
        ]
        if self.train:
            if self.balance:
                indices = [self.balance.at(self.epoch, position)[0] for position in positions]
            else:
                indices = [order.shuffled_index(count, self.seed, self.epoch, position) for position in positions]
            scored = indices
        else:
            indices = [min(position, count - 1) for position in positions]
            is_scored = [position < count and self.rows[position] >= 0 for position in positions]
            scored = [index if ok else -1 for index, ok in zip(indices, is_scored, strict=True)]
        rows = [max(self.rows[index], 0) for index in indices]
        features = self.shards.rows(rows)
        features = features if features.ndim == 3 else features[:, None]
        video = to_device(features, self.device).to(self.dtype)
        label, sample_index = (
            to_device(np.array(values, np.int64), self.device) for values in (self.shards.label[rows], scored)
        )
        epoch = self.epoch if self.train else 0
        return Batch(video, label, sample_index, tuple((self.seed, epoch, index) for index in indices))

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the run."""
        epochs, batch_index = divmod(self.batch_index, len(self))
        return {"epoch": self.epoch + epochs, "seen": batch_index * self.batch_size * self.world.size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where state_dict() was called, on another number of ranks with what the epoch has not seen."""
        done = order.batches_done(state["seen"], self.batch_size, self.world.size, self.grad_accum_steps)
        self.epoch, self.batch_index = (state["epoch"], done) if done < len(self) else (state["epoch"] + 1, 0)

    def share_faults(self) -> None:
        """Do nothing: there is no video to be read."""

    def release_memory(self) -> None:
        """Do nothing: DALI holds no memory."""
