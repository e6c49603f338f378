"""What the network sees: clips as strips of frames, with their labels, in one picture.

python -m pipelines.show configs/NAME.yaml [key=value ...] [out=clips.png]     the first training clips, each as it
python -m pipelines.show LIST [key=value ...] [out=clips.png]                  was decoded and as the network gets it
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from configs import schema
from configs.keys import Config
from pipelines.lists import class_names
from pipelines.loader import build_loader
from pipelines.mixing import Mixing
from pipelines.source import Unreadable
from pipelines.world import World


def draw_strips(frames: np.ndarray, titles: Sequence[str]) -> Figure:
    """A row of frames for each clip of (B, T, H, W, 3) uint8, under its title."""
    clips, times = frames.shape[:2]
    figure = Figure(figsize=(1.1 * times, 1.45 * clips), layout="constrained")
    axes = figure.subplots(clips, times, squeeze=False)
    for row in range(clips):
        for column in range(times):
            axes[row, column].imshow(frames[row, column])
            axes[row, column].axis("off")
        axes[row, 0].set_title(titles[row], fontsize=8, loc="left")
    return figure


def draw_rows(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Figure:
    """Rows of pictures, (H, W) grey or (H, W, 3), under a title for each column."""
    figure = Figure(figsize=(2.0 * len(titles), 2.0 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            axes[number, column].imshow(picture, cmap="gray")
            axes[number, column].axis("off")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
    return figure


def warmed(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Frames (B, T, H, W, 3) uint8 with colours over them: heat (B, t, h, w), the largest of each clip being red.

    Each map stands for as many frames as come to it; between patches it is interpolated.
    """
    size = frames.shape[1:4]
    shown = F.interpolate(torch.from_numpy(heat)[:, None].float(), size, mode="trilinear")[:, 0].numpy()
    shown = shown / np.maximum(shown.max((1, 2, 3), keepdims=True), 1e-12)
    return (0.5 * frames + 127.5 * matplotlib.colormaps["jet"](shown)[..., :3] + 0.5).astype(np.uint8)


def pixels(video: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(B, C, T, H, W) normalised -> (B, T, H, W, 3) uint8, on the host."""
    clips = video.detach().float().cpu().permute(0, 2, 3, 4, 1).numpy()
    return np.clip(255 * (clips * np.array(std) + np.array(mean)) + 0.5, 0, 255).astype(np.uint8)


def before_and_after(cfg: Config, clips: int) -> Figure:
    """The first training clips of a configuration: the whole frames that were taken, and what the network gets."""
    classes = class_names(cfg.data.train, cfg.data.classes)
    data = dataclasses.replace(cfg.data, crop="letterbox", flip=0.0, rand_augment="", colour_jitter=0.0, grey=0.0)
    plain = dataclasses.replace(cfg, data=data)
    before, after = (next(iter(build_loader(c, "train", classes, World(), torch.device("cpu")))) for c in (plain, cfg))
    mix = Mixing(len(classes), cfg.data.mixup, cfg.data.cutmix, cfg.data.erase)
    after = mix(after) if mix else after
    pictures = torch.stack([before.video[:clips], after.video[:clips]], dim=1).flatten(0, 1)
    titles = [
        t
        for number in after.classes[:clips].tolist()
        for t in (f"{classes[number]}: the frames", "what the network gets")
    ]
    return draw_strips(pixels(pictures, cfg.data.mean, cfg.data.std), titles)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    source, *words = arguments
    out = next((word.removeprefix("out=") for word in words if word.startswith("out=")), "clips.png")
    overrides = [word for word in words if not word.startswith("out=")]
    try:
        recipe = source.endswith((".yaml", ".yml"))
        cfg = schema.load(source, overrides) if recipe else schema.load(None, [f"data.train={source}", *overrides])
        before_and_after(cfg, min(cfg.data.batch, 6)).savefig(out, dpi=90)
    except (ValueError, OSError, Unreadable) as error:
        print(f"pipelines.show: {error}", file=sys.stderr)
        return 2
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
