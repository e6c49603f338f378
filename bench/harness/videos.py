"""The video files that benchmarks read: generated ones of known structure, or the user's folders."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness.runner import check_minimum
from pipelines import prepare, synthetic
from pipelines.decode.encoder import encode_video
from pipelines.decode.video_info import VideoInfo, read_video_info
from pipelines.storage import videos_below
from utils.files import atomic_path
from utils.workers import worker_pool

# What is measured by default: the same moving textures, encoded in five ways.
SETS = ("h264_bframes", "h264_gop250", "h264_gop12", "vp9_gop12", "vp9_gop4")
SET_NAME = re.compile(r"(h264|hevc|vp9)_gop([1-9]\d*)(_prepared)?|(h264|hevc)_bframes(_prepared)?|mixed(_prepared)?")
# About 0.4 Mbit/s at 340x256 with few key frames, like Kinetics files of that size; the quality is the same with more.
CRF = {"h264": 15, "hevc": 11, "vp9": 18}
FPS = 30
# The files of the set mixed, in turn: width, height, frames per second and quality. Kinetics has them side by side.
MIXED = ((320, 240, 25, 15), (340, 256, 30, 15), (454, 256, 30, 16), (640, 360, 24, 20), (1280, 720, 30, 27))


@dataclass(frozen=True)
class VideoSettings:
    """The settings of a benchmark that choose its videos.

    A set is CODEC_gopN (a key frame every N frames, no B-frames) or h264_bframes (x264's defaults: a key frame every
    250 frames and 3 B-frames, as in most of Kinetics); mixed is like h264_bframes with files of several sizes and frame
    rates; SET_prepared is the output of pipelines.prepare for it.
    """

    folder: tuple[str, ...] = ()
    sets: tuple[str, ...] = SETS
    sizes: tuple[str, ...] = ("340x256",)
    files: int = 8
    length: int = 300
    cache: str = str(Path(tempfile.gettempdir()) / "clipline-bench")

    def __post_init__(self) -> None:
        for name in self.sets:
            if not SET_NAME.fullmatch(name):
                raise ValueError(
                    f"sets={name}: expected CODEC_gopN, h264_bframes, mixed, or one of them with _prepared"
                )
        for size in self.sizes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                raise ValueError(f"sizes={size}: expected WIDTHxHEIGHT")
        check_minimum(self, files=1, length=1)

    def find_videos(self) -> dict[str, list[str]]:
        """Return the paths of each set by its name. Raises ValueError for a folder without a readable video."""
        if self.folder:
            return {Path(folder).stem: find_in_folder(folder) for folder in self.folder}
        paths = {}
        for size in self.sizes:
            for name in self.sets:
                suffix = f" {size}" if len(self.sizes) > 1 and not name.startswith("mixed") else ""
                paths[name + suffix] = self._generate(name, *map(int, size.split("x")))
        return paths

    def _generate(self, name: str, width: int, height: int) -> list[str]:
        paths = generate_videos(
            Path(self.cache),
            name.removesuffix("_prepared"),
            self.files,
            width=width,
            height=height,
            length=self.length,
        )
        return prepare_videos(paths, Path(self.cache)) if name.endswith("_prepared") else paths


def encoder_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of encode_video() for a set."""
    codec, _, structure = name.partition("_")
    gop, bframes = (250, 3) if structure == "bframes" else (int(structure.removeprefix("gop")), 0)
    return {"codec": codec, "gop": gop, "bframes": bframes, "crf": CRF[codec]}


def file_recipe(name: str, index: int, size: tuple[int, int], length: int) -> dict[str, Any]:
    """Return what a file of a set is made of: width, height, fps, number of frames, arguments of encode_video().

    `size` (width, height) and `length`, frames at 30 per second, apply to all sets but mixed, which keeps the duration.
    """
    if name == "mixed":
        width, height, fps, crf = MIXED[index % len(MIXED)]
        coding = encoder_arguments("h264_bframes") | {"crf": crf}
        num_frames = max(round(length * fps / FPS), 1)
        return {"width": width, "height": height, "fps": fps, "num_frames": num_frames, "coding": coding}
    width, height = size
    return {"width": width, "height": height, "fps": FPS, "num_frames": length, "coding": encoder_arguments(name)}


def generate_videos(folder: Path, name: str, files: int, *, width: int, height: int, length: int) -> list[str]:
    """Write the files of a set below folder/WIDTHxHEIGHT_LENGTH/NAME; those of an equal earlier call are reused."""
    size = "mixed" if name == "mixed" else f"{width}x{height}"
    set_folder = folder / f"{size}_{length}" / name
    coding = [file_recipe(name, i, (width, height), length) for i in range(len(MIXED) if name == "mixed" else 1)]
    recipe = {"version": synthetic.VERSION, "coding": coding if name == "mixed" else coding[0]["coding"]}
    recipe_file = set_folder / "made_by.json"
    if not recipe_file.exists() or json.loads(recipe_file.read_text()) != recipe:
        for file in set_folder.glob("*.mp4"):
            file.unlink()
    set_folder.mkdir(parents=True, exist_ok=True)
    recipe_file.write_text(json.dumps(recipe))
    paths = [set_folder / f"{i:03d}.mp4" for i in range(files)]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    write = partial(_write_video, set_folder, name, (width, height), length)
    with worker_pool(len(os.sched_getaffinity(0))) as pool:
        for count, _ in enumerate(pool.map(write, missing) if len(missing) > 2 else map(write, missing), 1):
            print(f"writing videos of {name}: {count} of {len(missing)}", flush=True)
    return [str(path) for path in paths]


def _write_video(folder: Path, name: str, size: tuple[int, int], length: int, index: int) -> None:
    recipe = file_recipe(name, index, size, length)
    video = synthetic.render(index % 8, 0, index, recipe["num_frames"], recipe["width"], recipe["height"])
    with atomic_path(folder / f"{index:03d}.mp4") as temporary:
        encode_video(temporary, video, recipe["fps"], **recipe["coding"])


def prepare_videos(paths: Sequence[str], cache: Path) -> list[str]:
    """Run pipelines.prepare with its default settings on files, once, and return the paths of its output."""
    folder = cache / "prepared" / "_".join(Path(paths[0]).absolute().parts[1:-1])
    folder.mkdir(parents=True, exist_ok=True)
    list_file = folder / "all.txt"
    list_file.write_text("".join(f"{os.path.abspath(path)} 0\n" for path in paths))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = prepare.main([str(list_file), str(folder), f"root={Path(paths[0]).absolute().parent}"])
    if status:
        raise ValueError(f"pipelines.prepare failed on {paths[0]} and others: {output.getvalue()}")
    lines = (folder / "all.txt").read_text().splitlines()
    return [str(folder / line.partition("\t")[0]) for line in lines]


def find_in_folder(folder: str) -> list[str]:
    """List the readable videos below a folder, or the one file. Raises ValueError if there is none."""
    path = Path(folder)
    if not path.exists():
        raise ValueError(f"folder={folder}: no such folder or file")
    paths = []
    for file in map(str, [path] if path.is_file() else videos_below(path)):
        if error := read_video_info(file).error:
            print(f"left out: {file}: {error}")
        else:
            paths.append(file)
    if not paths:
        raise ValueError(f"folder={folder}: no readable video in it")
    return paths


def describe_videos(infos: Sequence[VideoInfo]) -> dict[str, Any]:
    """Describe the files of a set for the result."""
    bitrates = [8e-3 * info.size * info.fps / info.num_frames for info in infos]
    return {
        "files": len(infos),
        "codecs": sorted({info.codec for info in infos}),
        "sizes": sorted({f"{info.width}x{info.height}" for info in infos})[:10],
        "mean_frames": round(sum(info.num_frames for info in infos) / len(infos), 1),
        "mean_keyframes": round(sum(len(info.keyframes) for info in infos) / len(infos), 1),
        "mean_kbit_per_s": round(sum(bitrates) / len(infos), 1),
    }
