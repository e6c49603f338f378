"""Write a small, seeded data set of real video files: moving textures that only their motion distinguishes.

    python -m pipelines.synthetic OUT [train=600] [val=60] [test=120] [codec=vp9|h264|hevc|mjpeg] [frames=60] [seed=0]
                                      [gop=12] [bframes=0] [classes=6|8] [workers=2]

OUT/{train,val,test}/<class>_<number>.mp4   OUT/{train,val,test}.txt ("train/left_00000.mp4 0")   OUT/classes.txt
Files of an earlier run with the same settings are kept; other settings replace them.

Classes, as seen on the screen (x to the right, y down). A horizontal flip turns left into right: train without one.
    0 left    content moves towards smaller x       4 zoom_in     content grows around the center of the frame
    1 right   content moves towards larger x        5 zoom_out    content shrinks
    2 up      content moves towards smaller y       6 rotate_cw   content rotates clockwise        (classes=8)
    3 down    content moves towards larger y        7 rotate_ccw  content rotates counterclockwise (classes=8)

A single frame does not reveal the class. Everything is drawn from the same distributions for every label. A texture is
a sum of plane waves, and motion only shifts their phases (translation), rotates them or scales them (zoom). Each of
these is uniform already: phases and angles on the circle, and log-wavelengths on a circle too. A wave that a zoom moves
past one end of the range of wavelengths reappears at the other end, where its amplitude is 0 (Shepard's endless scale).
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pipelines.decode.encoder import GOP, check_coding, encode_video
from utils.cli import parse_args, run_command
from utils.files import atomic_path, atomic_write_text
from utils.workers import worker_environment, worker_pool

CLASSES = ("left", "right", "up", "down", "zoom_in", "zoom_out", "rotate_cw", "rotate_ccw")
SPLITS = ("train", "val", "test")
# Width, height. NVIDIA's decoders refuse VP9 below 128 and HEVC below 144 pixels per side; small frames are quick.
SIZES = ((160, 160), (192, 160), (160, 192), (208, 162), (164, 218), (178, 166))
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(30))
MANIFEST = "manifest.json"
VERSION = 2  # raise it when SIZES, render() or encode_video() change the files: older files are then replaced

OCTAVES = 2.6  # longest wavelength / shortest = 2 ** OCTAVES
RADIUS = 0.6  # distance from the center, in short sides, at which zoom and rotation are as fast as translation
NUM_WAVES = 16  # per field; two fields make a texture


@dataclass(frozen=True)
class Settings:
    """The settings of the command."""

    train: int = 600
    val: int = 60
    test: int = 120
    codec: str = "vp9"
    frames: int = 60  # mean per video; each has up to 1/9 more or fewer
    seed: int = 0
    gop: int | None = None  # None: 12 frames (mjpeg: 1)
    bframes: int = 0
    classes: int = 6
    workers: int = 2

    def __post_init__(self) -> None:
        check_coding(self.codec, self.gop, self.bframes)
        if self.classes not in (6, 8):
            raise ValueError(f"classes={self.classes}: expected 6 or 8")
        for name, minimum in dict(train=0, val=0, test=0, frames=2, seed=0, workers=1).items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)}: expected a whole number of at least {minimum}")

    def manifest(self) -> dict:
        """Return the settings that change the content of the files; how many files there are is not among them."""
        content = {k: v for k, v in asdict(self).items() if k not in (*SPLITS, "workers")}
        gop = 1 if self.codec == "mjpeg" else self.gop or GOP
        return {"made_by": "pipelines.synthetic", "version": VERSION, **content, "gop": gop}


class Waves(NamedTuple):
    """Two fields (F) of plane waves (K) at rest: what is drawn for a texture, whatever its label."""

    speed: float  # pixels per frame
    kind: str  # noise, checks or ridges
    shortest: float  # shortest wavelength in pixels
    gain: float  # from soft waves to blobs with hard edges
    angle: np.ndarray  # (F, K)
    octave: np.ndarray  # (F, K), wavelength on the circle [0, 1) of OCTAVES
    phase: np.ndarray  # (F, K)


def render(label: int, seed: int, index: int, num_frames: int, width: int, height: int, split: int = 0) -> np.ndarray:
    """Render one video, uint8 (T, H, W, 3) RGB. The label decides the motion and nothing else.

    Motion is relative to the middle frame, so frame num_frames // 2 is the same for every label. The speed is 0.5 to
    1.8 pixels per frame for a short side of 100 pixels and proportional for others; zoom and rotation have that speed
    RADIUS short sides from the center. Wavelengths range from 0.12-0.22 short sides to 6 times that.
    """
    rng = np.random.default_rng([seed, split, index, 1])
    waves = _draw_waves(min(width, height), rng)
    t = np.arange(num_frames, dtype=np.float32) - num_frames // 2
    field = _render_field(waves, CLASSES[label], t, width, height)
    return _colorize(field, t, rng)


def _draw_waves(short_side: int, rng: np.random.Generator) -> Waves:
    k = NUM_WAVES
    speed = 0.01 * short_side * math.exp(rng.uniform(math.log(0.5), math.log(1.8)))
    kind = rng.choice(["noise", "checks", "ridges"])
    shortest = short_side * math.exp(rng.uniform(math.log(0.12), math.log(0.22)))
    gain = math.exp(rng.uniform(math.log(0.5), math.log(4)))
    direction = (np.arange(k) + rng.uniform(size=(2, k))) / k  # [0, 1), stratified: waves in all directions
    if kind == "checks":
        direction = np.where(np.arange(k) % 2, 0.5, 0.0) + rng.normal(0, 0.01, (2, k))
    angle = np.pi * (direction + rng.uniform())
    level = rng.permuted(np.tile(np.arange(k // 2), (2, 2, 1)), axis=2)  # both directions of checks have every level
    octave = level.swapaxes(1, 2).reshape(2, k) / (k // 2) + rng.uniform(size=(2, 1))
    phase = rng.uniform(0, 2 * np.pi, (2, k))
    if kind == "ridges":
        shortest *= 1.6  # squaring halves the wavelength
    return Waves(speed=speed, kind=kind, shortest=shortest, gain=gain, angle=angle, octave=octave, phase=phase)


def _render_field(waves: Waves, class_name: str, t: np.ndarray, width: int, height: int) -> np.ndarray:
    """Move the waves and sum them up: (T,) frame times -> (T, F, H, W) float32 brightness, about -1 to 1."""
    # Displacement (T,), then rotation and zoom in octaves (T, 1, 1).
    dx = t * waves.speed * {"left": -1, "right": 1}.get(class_name, 0)
    dy = t * waves.speed * {"up": -1, "down": 1}.get(class_name, 0)
    progress = t[:, None, None] * waves.speed / (RADIUS * min(width, height))
    # y points down, so a growing angle is a clockwise rotation.
    rotation = progress * {"rotate_cw": 1, "rotate_ccw": -1}.get(class_name, 0)
    zoom = progress * {"zoom_in": 1, "zoom_out": -1}.get(class_name, 0) / math.log(2)
    octave = np.mod(waves.octave + zoom / OCTAVES, 1)  # (T, F, K) in [0, 1)
    wave_number = 2 * np.pi / (waves.shortest * 2 ** (OCTAVES * octave))
    kx, ky = wave_number * np.cos(waves.angle + rotation), wave_number * np.sin(waves.angle + rotation)
    phase = waves.phase - kx * dx[:, None, None] - ky * dy[:, None, None]
    amplitude = np.sin(np.pi * octave) ** 2
    amplitude *= np.sqrt(2 / (amplitude**2).sum(-1, keepdims=True))  # variance 1

    # A plane wave is a product, cos(kx x + ky y + phase) = Re exp(i ky y + i phase) exp(i kx x): the sum is a matmul.
    x, y = _centered(width), _centered(height)
    x_phase = (kx[..., None] * x).astype(np.float32)  # (T, F, K, W)
    y_phase = (ky[..., None] * y + phase[..., None]).astype(np.float32)  # (T, F, K, H)
    amplitude = amplitude[..., None].astype(np.float32)
    columns = np.concatenate([amplitude * np.cos(y_phase), -amplitude * np.sin(y_phase)], axis=2)
    field = columns.swapaxes(2, 3) @ np.concatenate([np.cos(x_phase), np.sin(x_phase)], axis=2)  # (T, F, H, W)
    field *= np.float32(waves.gain)
    if waves.kind == "ridges":
        np.square(field, out=field)
        return 1 - 2 * field / (0.5 + field)
    field /= np.sqrt(np.float32(1) + field * field)
    field *= np.float32(0.75 * math.sqrt(1 + 1 / waves.gain**2))
    return field


def _colorize(field: np.ndarray, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add color, uneven light and sensor noise: (T, F, H, W) float32 -> (T, H, W, 3) uint8 RGB."""
    num_frames, _, height, width = field.shape
    base = rng.uniform(80, 175, 3)
    first = rng.choice([-1, 1]) * rng.uniform(40, 75) * rng.uniform(0.4, 1, 3)  # enough contrast in brightness
    second = rng.uniform(-40, 40, 3)
    colors = np.stack([first, second, base]).astype(np.float32)  # (F + 1, 3)
    x, y = _centered(width), _centered(height)
    corner = (x / x[-1]) ** 2 + (y[:, None] / y[-1]) ** 2
    light = (1 - rng.uniform(0, 0.2) * corner).astype(np.float32)  # (H, W)
    drift = (1 + rng.uniform(-0.12, 0.12) * t / num_frames).astype(np.float32)
    noise = rng.standard_normal((num_frames, height, width), dtype=np.float32) * np.float32(rng.uniform(0.5, 2.5))
    video = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        shade = light * drift[i]
        for c in range(3):
            plane = field[i, 0] * colors[0, c] + field[i, 1] * colors[1, c] + colors[2, c]
            video[i, ..., c] = np.clip(plane * shade + noise[i] + 0.5, 0, 255)
    return video


def _centered(size: int) -> np.ndarray:
    return np.arange(size) - (size - 1) / 2


def file_name(split: str, index: int, num_classes: int) -> str:
    """Return the relative path of a video. Labels cycle, so a split is balanced: label = index % num_classes."""
    return f"{split}/{CLASSES[index % num_classes]}_{index:05d}.mp4"


def write_video(out: Path, settings: Settings, job: tuple[str, int]) -> None:
    """Render and encode one file: a function of the settings and of job = (split, index)."""
    split, index = job
    split_number = SPLITS.index(split)
    rng = np.random.default_rng([settings.seed, split_number, index])
    width, height = SIZES[rng.integers(len(SIZES))]
    fps = RATES[rng.integers(len(RATES))]
    num_frames = settings.frames + int(rng.integers(-(settings.frames // 9), settings.frames // 9 + 1))
    video = render(index % settings.classes, settings.seed, index, num_frames, width, height, split=split_number)
    with atomic_path(out / file_name(split, index, settings.classes)) as temporary:
        encode_video(temporary, video, fps, codec=settings.codec, gop=settings.gop, bframes=settings.bframes)


def prepare_folder(out: Path, settings: Settings) -> list[tuple[str, int]]:
    """Write lists and manifest, remove outdated videos, and return the (split, index) of those still to be written.

    The manifest is written after the files of other settings are removed and before the first new one, so a file that
    exists beside it is right whenever a run was interrupted. Only files with names as in file_name() are ever removed.
    """
    manifest_path = out / MANIFEST
    old_manifest = manifest_path.read_text() if manifest_path.exists() else ""
    if "pipelines.synthetic" not in old_manifest and _has_files(out):
        raise ValueError(
            f"{out}: it has other files and no {MANIFEST} of pipelines.synthetic; "
            "expected a new folder or one that this command made"
        )
    manifest = json.dumps(settings.manifest(), indent=1)
    jobs = {
        file_name(split, index, settings.classes): (split, index)
        for split in SPLITS
        for index in range(getattr(settings, split))
    }
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
    is_video_name = re.compile(rf"({'|'.join(CLASSES)})_\d{{5,}}\.mp4").fullmatch
    existing = {f"{s}/{path.name}" for s in SPLITS for path in (out / s).iterdir() if is_video_name(path.name)}
    kept = existing & set(jobs) if old_manifest == manifest + "\n" else set()
    for name in existing - kept:
        (out / name).unlink()

    texts = {manifest_path: manifest, out / "classes.txt": "\n".join(CLASSES[: settings.classes])}
    for split in SPLITS:
        lines = [f"{name} {index % settings.classes}" for name, (s, index) in jobs.items() if s == split]
        texts[out / f"{split}.txt"] = "\n".join(lines)
    for path, text in texts.items():
        atomic_write_text(path, text + "\n" if text else "")
    return [job for name, job in jobs.items() if name not in kept]


def _has_files(out: Path) -> bool:
    """Return whether a folder has files where this command would write."""
    lists = [out / MANIFEST, *(out / f"{split}.txt" for split in SPLITS)]
    return any(path.exists() for path in lists) or any(any((out / split).glob("*")) for split in SPLITS)


def write(out: str | os.PathLike, settings: Settings) -> int:
    """Write the videos of the data set that are missing; return their number."""
    out = Path(out)
    jobs = prepare_folder(out, settings)
    work = partial(write_video, out, settings)
    with ExitStack() as stack:
        results: Iterable[None] = map(work, jobs)
        if settings.workers > 1 and len(jobs) > 1:
            workers = min(settings.workers, len(jobs))
            stack.enter_context(worker_environment())
            results = stack.enter_context(worker_pool(workers)).map(work, jobs)
        for _ in tqdm(results, f"{out}", len(jobs), unit="video", disable=None if jobs else True):
            pass
    return len(jobs)


def write_dataset(arguments: Sequence[str]) -> int:
    """Write the data set and report on it; return 0."""
    (out,), settings = parse_args(Settings, arguments, ["OUT"])
    num_written = write(out, settings)
    num_kept = settings.train + settings.val + settings.test - num_written
    print(f"{out}: {settings.codec} videos of {settings.classes} classes, {num_written} written, {num_kept} kept")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    return run_command("pipelines.synthetic", __doc__, write_dataset, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
