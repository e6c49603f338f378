"""Show what the network gets: clips as strips of frames with their labels, in one figure.

    python -m pipelines.preview configs/demo/demo.yaml [key=value ...] [out=clips.png]
    python -m pipelines.preview LIST [key=value ...] [out=clips.png]

The first training clips are drawn, each as it was decoded and below as the network gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from configs import loading
from configs.schema import Config
from pipelines.loader import VideoLoader
from pipelines.sample_source import TooManyUnreadableVideos
from utils.cli import run_command
from utils.plotting import denormalize, draw_strips


def draw_before_and_after(cfg: Config, num_clips: int) -> Figure:
    """Draw the first training clips of a configuration: the whole frames, and what the network gets of them."""
    data = cfg.data
    plain: dict[str, Any] = {
        "crop": "letterbox",
        "hflip": 0.0,
        "rand_augment": "",
        "color_jitter": 0.0,
        "grayscale": 0.0,
    }
    plain |= dict.fromkeys(("mixup", "cutmix", "random_erasing", "blur", "solarize"), 0.0)
    loaders = [
        VideoLoader(data.train, data, device="cpu", seed=cfg.run.seed, labeled=None, **keys) for keys in (plain, {})
    ]
    before, after = (next(iter(loader)) for loader in loaders)
    classes = loaders[0].classes
    first = [batch.video if data.num_clips == 1 else batch.video[:, 0] for batch in (before, after)]  # clips of each
    video = torch.stack([video[:num_clips] for video in first], dim=1).flatten(0, 1)
    titles = []
    names = after.label_names(classes) if classes else [""] * num_clips
    for name in names[:num_clips]:
        titles += [f"{name}: the frames" if name else "the frames", "what the network gets"]
    return draw_strips(denormalize(video, data.mean, data.std), titles)


def preview(argv: Sequence[str]) -> int:
    """Draw the figure and write it."""
    source, *arguments = argv
    out = next((argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")), "clips.png")
    overrides = [argument for argument in arguments if not argument.startswith("out=")]
    if source.endswith((".yaml", ".yml")):
        cfg = loading.load_config(source, overrides)
    else:
        cfg = loading.load_config(None, [f"data.train={source}", *overrides])
    draw_before_and_after(cfg, min(cfg.data.batch_size, 6)).savefig(out, dpi=90)
    print(f"written: {out}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    errors = (ValueError, OSError, TooManyUnreadableVideos)
    return run_command("pipelines.preview", __doc__ or "", preview, argv, errors=errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
