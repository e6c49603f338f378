"""The video files that benches measure: their own, of known structure, or folders of yours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness.runner import at_least
from pipelines import prepare, synthetic
from pipelines.decode.encoder import encode
from pipelines.decode.video_info import Row, read_row
from pipelines.storage import videos_below
from utils.files import replacing
from utils.workers import worker_pool

# What is measured unless asked otherwise: the same moving textures, coded five ways.
SETS = ("h264_bframes", "h264_gop250", "h264_gop12", "vp9_gop12", "vp9_gop4")
SET = re.compile(r"(h264|hevc|vp9)_gop([1-9]\d*)(_prepared)?|(h264|hevc)_bframes(_prepared)?")
# About 0.4 Mbit/s at 340x256 with few key frames, as Kinetics files of that size; of the same quality with more.
CRF = {"h264": 15, "hevc": 11, "vp9": 18}
FPS = 30


@dataclass(frozen=True)
class Files:
    """The settings of a bench that say which files it measures. A set is CODEC_gopN (a key frame every N frames, no
    B-frames) or h264_bframes (x264's own habits: a key frame every 250 and 3 B-frames, as most of Kinetics);
    SET_prepared is what pipelines.prepare makes of it."""

    folder: tuple[str, ...] = ()
    sets: tuple[str, ...] = SETS
    sizes: tuple[str, ...] = ("340x256",)
    files: int = 8
    length: int = 300
    cache: str = str(Path(tempfile.gettempdir()) / "clipline-bench")

    def __post_init__(self) -> None:
        for word in self.sets:
            if not SET.fullmatch(word):
                raise ValueError(f"sets={word}: expected CODEC_gopN, h264_bframes, or one of them with _prepared")
        for word in self.sizes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", word):
                raise ValueError(f"sizes={word}: expected WIDTHxHEIGHT")
        at_least(self, files=1, length=1)

    def find(self) -> dict[str, list[str]]:
        """Name of a set -> its paths. Raises ValueError for a folder without a readable video."""
        if self.folder:
            return {Path(folder).stem: find(folder) for folder in self.folder}
        found = {}
        for size in self.sizes:
            for name in self.sets:
                more = f" {size}" if len(self.sizes) > 1 else ""
                found[name + more] = self._make(name, *map(int, size.split("x")))
        return found

    def _make(self, name: str, width: int, height: int) -> list[str]:
        coded, wanted = name.removesuffix("_prepared"), name.endswith("_prepared")
        own = generate(Path(self.cache), coded, self.files, width, height, self.length)
        return prepared(own, Path(self.cache)) if wanted else own


def coding(name: str) -> dict[str, Any]:
    """What pipelines.decode.encoder is asked for."""
    codec, _, rest = name.partition("_")
    gop, bframes = (250, 3) if rest == "bframes" else (int(rest.removeprefix("gop")), 0)
    return {"codec": codec, "gop": gop, "bframes": bframes, "crf": CRF[codec]}


def generate(folder: Path, name: str, files: int, width: int, height: int, length: int) -> list[str]:
    """The files of a set in folder/WIDTHxHEIGHT_LENGTH/NAME/; those of an earlier call with the same settings stay."""
    made = folder / f"{width}x{height}_{length}" / name
    done = {"version": synthetic.VERSION, "coding": coding(name)}
    note = made / "made_by.json"
    if not note.exists() or json.loads(note.read_text()) != done:
        for file in made.glob("*.mp4"):
            file.unlink()
    made.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(done))
    paths = [made / f"{i:03d}.mp4" for i in range(files)]
    todo = [i for i, path in enumerate(paths) if not path.exists()]
    work = partial(_write, made, name, width, height, length)
    with worker_pool(len(os.sched_getaffinity(0))) as pool:
        for count, _ in enumerate(pool.map(work, todo) if len(todo) > 2 else map(work, todo), 1):
            print(f"writing videos of {name}: {count} of {len(todo)}", flush=True)
    return [str(path) for path in paths]


def _write(made: Path, name: str, width: int, height: int, length: int, index: int) -> None:
    video = synthetic.render(index % 8, 0, index, length, width, height)
    with replacing(made / f"{index:03d}.mp4") as temporary:
        encode(temporary, video, FPS, **coding(name))


def prepared(paths: list[str], cache: Path) -> list[str]:
    """What pipelines.prepare makes of files, with its own settings; made once."""
    place = cache / "prepared" / "_".join(Path(paths[0]).absolute().parts[1:-1])
    place.mkdir(parents=True, exist_ok=True)
    listed = place / "all.txt"
    listed.write_text("".join(f"{os.path.abspath(path)} 0\n" for path in paths))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = prepare.main([str(listed), str(place), f"root={Path(paths[0]).absolute().parent}"])
    if status:
        raise ValueError(f"preparing {paths[0]} and others: {said.getvalue()}")
    lines = (place / "all.txt").read_text().splitlines()
    return [str(place / line.partition("\t")[0]) for line in lines]


def find(folder: str) -> list[str]:
    """The readable videos of a folder and its sub-folders, or the one file; ValueError if there is none."""
    path = Path(folder)
    if not path.exists():
        raise ValueError(f"folder={folder}: no such folder or file")
    good = []
    for file in map(str, [path] if path.is_file() else videos_below(path)):
        if error := read_row(file).error:
            print(f"left out: {file}: {error}")
        else:
            good.append(file)
    if not good:
        raise ValueError(f"folder={folder}: no readable video in it")
    return good


def describe(rows: list[Row]) -> dict[str, Any]:
    """What the files of a set are, for the result."""
    return {
        "files": len(rows),
        "codecs": sorted({row.codec for row in rows}),
        "sizes": sorted({f"{row.width}x{row.height}" for row in rows})[:10],
        "mean_frames": round(sum(row.num_frames for row in rows) / len(rows), 1),
        "mean_keyframes": round(sum(len(row.keyframes) for row in rows) / len(rows), 1),
        "mean_kbit_per_s": round(sum(8e-3 * r.size * r.fps / r.num_frames for r in rows) / len(rows), 1),
    }
