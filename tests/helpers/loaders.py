"""Loaders of small videos for tests, and how their streams are collected and compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

from configs import loading
from configs.schema import Config, Eval
from pipelines.batch_loader import Batch
from pipelines.loader import EvalVideoLoader, VideoLoader
from utils.distributed import World

CPU = torch.device("cpu")
CLASSES = [str(i) for i in range(6)]
Stream = list[tuple[list[int], list[int], Tensor]]  # labels, sample indices and video of each batch


def build_loader(
    cfg: Config,
    split: str,
    classes: Sequence[str] = CLASSES,
    world: World | None = None,
    device: torch.device = CPU,
) -> VideoLoader | EvalVideoLoader:
    """Build the loader of a split (train, val or test) as train.py and eval.py do."""
    data = cfg.data
    path = {"train": data.train, "val": data.val, "test": data.test or data.val}[split]
    common: dict[str, Any] = {"device": device, "world": world, "seed": cfg.run.seed, "classes": classes}
    if split == "train":
        return VideoLoader(path, data, global_batch_size=cfg.optim.global_batch_size, **common)
    center = Eval(num_clips=1, num_crops=1, batch_size=data.batch_size)
    return EvalVideoLoader(path, data, cfg.eval if split == "test" else center, **common)


def make_loader(
    path: Path | str,
    *overrides: str,
    split: str = "train",
    world: World | None = None,
    device: torch.device = CPU,
) -> VideoLoader:
    """Build a small loader over a list; `overrides` are section.key=value."""
    cfg = loading.load_config(
        None,
        [
            f"data.train={path}",
            f"data.val={path}",
            "data.num_frames=4",
            "data.frame_stride=3",
            "data.image_size=32",
            "data.batch_size=3",
            "data.num_workers=0",
            "data.dali_threads=1",
            "data.crop_scale=0.4,1",
            "data.decoder=dali",
            "eval.num_clips=2",
            "eval.batch_size=3",
            *overrides,
        ],
    )
    return build_loader(cfg, split, world=world, device=device)


def collect(loader: VideoLoader, epochs: int = 2) -> Stream:
    """Copy what a loader yields in some epochs."""
    return [copy_of(batch) for _ in range(epochs) for batch in loader]


def copy_of(batch: Batch) -> tuple[list[int], list[int], Tensor]:
    """Copy labels, sample indices and video of a batch."""
    return batch.label.tolist(), batch.sample_index.tolist(), batch.video.clone()


def first_video(loader: VideoLoader) -> Tensor:
    """Return the video of the first batch."""
    return next(iter(loader)).video


def gray_levels(video: Tensor) -> Tensor:
    """Turn differences of normalized pixels into levels of 0 to 255."""
    return video * 255 * 0.225


def is_same_stream(actual: Stream, expected: Stream) -> bool:
    """Compare two streams bit for bit."""
    pairs = zip(actual, expected, strict=True)
    return len(actual) == len(expected) and all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in pairs)


def write_rotated(source: Path, target: Path, quarter_turns: int) -> None:
    """Write the same packets with a display matrix by which a player rotates the frames counterclockwise."""
    with av.open(str(source)) as container, av.open(str(target), "w") as rotated:
        stream = rotated.add_stream_from_template(container.streams.video[0])
        stream.set_display_rotation(90 * quarter_turns)
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                packet.stream = stream
                rotated.mux(packet)
