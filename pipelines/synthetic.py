"""Write a small, seeded data set of real video files: moving textures that only their motion tells apart.

    python -m pipelines.synthetic OUT [train=600] [val=60] [test=120] [codec=vp9|h264|hevc|mjpeg] [frames=60] [seed=0]
                                      [gop=12] [bframes=0] [classes=6|8] [workers=2]

OUT/{train,val,test}/<class>_<number>.mp4   OUT/{train,val,test}.txt ("train/left_00000.mp4 0")   OUT/classes.txt
Files of an earlier run with the same settings are kept; other settings replace them.

Classes, as seen on the screen (x to the right, y down). A horizontal flip turns left into right: train without one.
    0 left    content moves towards smaller x       4 zoom_in     content grows about the frame's centre
    1 right   content moves towards larger x        5 zoom_out    content shrinks
    2 up      content moves towards smaller y       6 rotate_cw   content turns clockwise     (classes=8)
    3 down    content moves towards larger y        7 rotate_ccw  content turns anticlockwise (classes=8)

A single frame says nothing of the class. All that is drawn is drawn alike for every label; a texture is a sum of plane
waves, and motion only moves their phases (translation), turns them (rotation) or scales them (zoom), each of which is
uniform already: phases and angles on the circle, log-wavelengths on a circle too. A wave that a zoom carries over one
end of the wavelength range comes back at the other, unseen: its amplitude is 0 there (Shepard's endless scale).
"""

import json
import math
import os
import re
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines.decode.encoder import GOP, check_coding, encode
from utils.cli import parse
from utils.files import replacing
from utils.workers import single_blas_thread, worker_pool

CLASSES = ("left", "right", "up", "down", "zoom_in", "zoom_out", "rotate_cw", "rotate_ccw")
SPLITS = ("train", "val", "test")
# Width, height. NVIDIA's decoders refuse VP9 below 128 and HEVC below 144 pixels a side; areas stay small, to be quick.
SIZES = ((160, 160), (192, 160), (160, 192), (208, 162), (164, 218), (178, 166))
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(30))
MANIFEST = "manifest.json"
VERSION = 2  # raise it when SIZES, render() or encode() change what is written: older files are then written anew

OCTAVES = 2.6  # longest wavelength / shortest = 2 ** OCTAVES
RADIUS = 0.6  # of zoom and rotation: where they move as fast as translation, in short sides from the centre
WAVES = 16  # per field; two fields make a texture


@dataclass(frozen=True)
class Settings:
    """What the command line sets. gop None: 12 frames (mjpeg: 1). frames: the mean; a clip has ±1/9 of it."""

    train: int = 600
    val: int = 60
    test: int = 120
    codec: str = "vp9"
    frames: int = 60
    seed: int = 0
    gop: int | None = None
    bframes: int = 0
    classes: int = 6
    workers: int = 2

    def __post_init__(self) -> None:
        check_coding(self.codec, self.gop, self.bframes)
        if self.classes not in (6, 8):
            raise ValueError(f"classes={self.classes}: expected 6 or 8")
        for name, least in dict(train=0, val=0, test=0, frames=2, seed=0, workers=1).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected a whole number of at least {least}")

    def manifest(self) -> dict:
        """What decides a file's content, but not how many files there are."""
        content = {k: v for k, v in asdict(self).items() if k not in (*SPLITS, "workers")}
        gop = 1 if self.codec == "mjpeg" else self.gop or GOP
        return {"made_by": "pipelines.synthetic", "version": VERSION, **content, "gop": gop}


def render(label: int, seed: int, index: int, num_frames: int, width: int, height: int, split: int = 0) -> np.ndarray:
    """One clip, uint8 (T, H, W, 3) RGB. The label sets the motion and nothing else.

    Motion is counted from the middle frame, so frame num_frames // 2 is the same picture for every label. Speed:
    0.5-1.8 px a frame for a short side of 100 px, in proportion for others; zoom and rotation have that speed at
    RADIUS short sides from the centre. Wavelengths: from 0.12-0.22 short sides to 6 times that.
    """
    rng = np.random.default_rng([seed, split, index, 1])
    short = min(width, height)
    t = np.arange(num_frames, dtype=np.float32) - num_frames // 2

    # draw: two fields (F) of plane waves (K), the same draws for every label
    speed = 0.01 * short * math.exp(rng.uniform(math.log(0.5), math.log(1.8)))  # px a frame
    kind = rng.choice(["noise", "checks", "ridges"])
    shortest = short * math.exp(rng.uniform(math.log(0.12), math.log(0.22)))  # wavelength in px
    gain = math.exp(rng.uniform(math.log(0.5), math.log(4)))  # soft waves ... hard-edged blobs
    spread = (np.arange(WAVES) + rng.uniform(size=(2, WAVES))) / WAVES  # [0, 1), stratified: waves in all directions
    if kind == "checks":
        spread = np.where(np.arange(WAVES) % 2, 0.5, 0.0) + rng.normal(0, 0.01, (2, WAVES))
    angle = np.pi * (spread + rng.uniform())
    level = rng.permuted(np.tile(np.arange(WAVES // 2), (2, 2, 1)), axis=2)  # each direction of checks has every one
    octave = level.swapaxes(1, 2).reshape(2, WAVES) / (WAVES // 2) + rng.uniform(size=(2, 1))
    phase = rng.uniform(0, 2 * np.pi, (2, WAVES))
    if kind == "ridges":
        shortest *= 1.6  # squaring halves the wavelength

    # move: displacement (T,), rotation (T, 1, 1), octaves (T, 1, 1)
    name = CLASSES[label]
    dx = t * speed * {"left": -1, "right": 1}.get(name, 0)
    dy = t * speed * {"up": -1, "down": 1}.get(name, 0)
    rate = t[:, None, None] * speed / (RADIUS * short)
    turn = rate * {"rotate_cw": 1, "rotate_ccw": -1}.get(name, 0)  # y points down: a growing angle is clockwise
    grow = rate * {"zoom_in": 1, "zoom_out": -1}.get(name, 0) / math.log(2)
    place = np.mod(octave + grow / OCTAVES, 1)  # (T, F, K) in [0, 1)
    number = 2 * np.pi / (shortest * 2 ** (OCTAVES * place))
    kx, ky = number * np.cos(angle + turn), number * np.sin(angle + turn)
    phase = phase - kx * dx[:, None, None] - ky * dy[:, None, None]
    power = np.sin(np.pi * place) ** 2
    power *= np.sqrt(2 / (power**2).sum(-1, keepdims=True))  # variance 1

    # a plane wave is a product: cos(kx x + ky y + phase) = Re exp(i ky y + i phase) exp(i kx x), so a field is a matmul
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2
    across = (kx[..., None] * x).astype(np.float32)  # (T, F, K, W)
    down = (ky[..., None] * y + phase[..., None]).astype(np.float32)  # (T, F, K, H)
    power = power[..., None].astype(np.float32)
    left = np.concatenate([power * np.cos(down), -power * np.sin(down)], axis=2)
    field = left.swapaxes(2, 3) @ np.concatenate([np.cos(across), np.sin(across)], axis=2)  # (T, F, H, W)
    field *= np.float32(gain)
    if kind == "ridges":
        np.square(field, out=field)
        field = 1 - 2 * field / (0.5 + field)
    else:
        field /= np.sqrt(np.float32(1) + field * field)
        field *= np.float32(0.75 * math.sqrt(1 + 1 / gain**2))

    # colour: base + two colour directions, the first with enough contrast in brightness; light; sensor noise
    base = rng.uniform(80, 175, 3)
    first = rng.choice([-1, 1]) * rng.uniform(40, 75) * rng.uniform(0.4, 1, 3)
    second = rng.uniform(-40, 40, 3)
    colours = np.stack([first, second, base]).astype(np.float32)  # (F + 1, 3)
    corner = (x / x[-1]) ** 2 + (y[:, None] / y[-1]) ** 2
    light = (1 - rng.uniform(0, 0.2) * corner).astype(np.float32)  # (H, W)
    drift = (1 + rng.uniform(-0.12, 0.12) * t / num_frames).astype(np.float32)
    noise = rng.standard_normal((num_frames, height, width), dtype=np.float32) * np.float32(rng.uniform(0.5, 2.5))
    video = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        shade = light * drift[i]
        for c in range(3):
            plane = field[i, 0] * colours[0, c] + field[i, 1] * colours[1, c] + colours[2, c]
            video[i, ..., c] = np.clip(plane * shade + noise[i] + 0.5, 0, 255)
    return video


def file_name(split: str, index: int, classes: int) -> str:
    """Relative path. Labels cycle, so a split is balanced: label = index % classes."""
    return f"{split}/{CLASSES[index % classes]}_{index:05d}.mp4"


def write_video(out: Path, settings: Settings, job: tuple[str, int]) -> None:
    """Render and encode one file: a function of settings and job = (split, index)."""
    split, index = job
    number = SPLITS.index(split)
    rng = np.random.default_rng([settings.seed, number, index])
    width, height = SIZES[rng.integers(len(SIZES))]
    fps = RATES[rng.integers(len(RATES))]
    num_frames = settings.frames + int(rng.integers(-(settings.frames // 9), settings.frames // 9 + 1))
    video = render(index % settings.classes, settings.seed, index, num_frames, width, height, split=number)
    with replacing(out / file_name(split, index, settings.classes)) as temporary:
        encode(temporary, video, fps, settings.codec, settings.gop, settings.bframes)


def prepare_folder(out: Path, settings: Settings) -> list[tuple[str, int]]:
    """Write lists and manifest, remove our files that do not belong, return the (split, index) still to be written.

    The manifest is written after the files of other settings are gone and before the first new one, so a file that
    exists beside it is right, whenever a run was interrupted. Only files that bear our names are ever removed.
    """
    manifest = out / MANIFEST
    before = manifest.read_text() if manifest.exists() else ""
    others = [manifest, *(out / f"{split}.txt" for split in SPLITS), *(p for s in SPLITS for p in (out / s).glob("*"))]
    if "pipelines.synthetic" not in before and any(path.exists() for path in others):
        raise ValueError(f"{out}: holds other files and no {MANIFEST} of ours; expected a new folder or one made here")
    content = json.dumps(settings.manifest(), indent=1)
    jobs = [(split, index) for split in SPLITS for index in range(getattr(settings, split))]
    wanted = {file_name(split, index, settings.classes): (split, index) for split, index in jobs}
    ours = re.compile(rf"({'|'.join(CLASSES)})_\d{{5,}}\.mp4")
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
    present = {f"{split}/{p.name}" for split in SPLITS for p in (out / split).iterdir() if ours.fullmatch(p.name)}
    keep = present & set(wanted) if before == content + "\n" else set()
    for name in present - keep:
        (out / name).unlink()

    texts = {manifest: content, out / "classes.txt": "\n".join(CLASSES[: settings.classes])}
    for split in SPLITS:
        lines = [f"{name} {i % settings.classes}" for name, (s, i) in wanted.items() if s == split]
        texts[out / f"{split}.txt"] = "\n".join(lines)
    for path, text in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(text + "\n" if text else "")
    return [wanted[name] for name in wanted if name not in keep]


def write(out: str | os.PathLike, settings: Settings) -> int:
    """Write the data set (what is missing of it) and return the number of videos written."""
    out = Path(out)
    todo = prepare_folder(out, settings)
    work = partial(write_video, out, settings)
    with ExitStack() as stack:
        results: Iterable[None] = map(work, todo)
        if settings.workers > 1 and len(todo) > 1:
            workers = min(settings.workers, len(todo))
            stack.enter_context(single_blas_thread())
            results = stack.enter_context(worker_pool(workers)).map(work, todo)
        for _ in tqdm(results, f"{out}", len(todo), unit="video", disable=None if todo else True):
            pass
    return len(todo)


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        (out,), settings = parse(Settings, arguments, ["OUT"])
        written = write(out, settings)
    except (ValueError, OSError) as error:
        print(f"pipelines.synthetic: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    kept = settings.train + settings.val + settings.test - written
    print(f"{out}: {settings.codec} videos of {settings.classes} classes, {written} written, {kept} kept")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
