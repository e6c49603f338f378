"""What the network sees: clips as strips of frames, with their labels, in one picture.

python -m pipelines.preview configs/NAME.yaml [key=value ...] [out=clips.png]     the first training clips, each as it
python -m pipelines.preview LIST [key=value ...] [out=clips.png]                  was decoded and as the network gets it
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from configs import loading
from configs.schema import Config
from pipelines.data.dataset import class_names
from pipelines.loader import build_loader
from pipelines.mixup import Mixing
from pipelines.sample_source import Unreadable
from utils.distributed import World
from utils.plotting import draw_strips, pixels


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
        cfg = loading.load(source, overrides) if recipe else loading.load(None, [f"data.train={source}", *overrides])
        before_and_after(cfg, min(cfg.data.batch, 6)).savefig(out, dpi=90)
    except (ValueError, OSError, Unreadable) as error:
        print(f"pipelines.preview: {error}", file=sys.stderr)
        return 2
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
