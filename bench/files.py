"""The video files that bench.decode measures: its own, of known structure, or a folder of yours."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

from configs.written import replacing
from pipelines import synthetic
from pipelines.index import Row, read_row
from pipelines.places import videos_below
from pipelines.world import worker_pool

# What is measured: the same moving textures, coded five ways.
KINDS: dict[str, dict[str, int | str]] = {
    "h264_bframes": {"codec": "h264", "gop": 250, "bframes": 3},  # x264's own habits: most of Kinetics
    "h264_gop250": {"codec": "h264", "gop": 250, "bframes": 0},
    "h264_gop12": {"codec": "h264", "gop": 12, "bframes": 0},
    "vp9_gop12": {"codec": "vp9", "gop": 12, "bframes": 0},
    "vp9_gop4": {"codec": "vp9", "gop": 4},
}
CRF = {"h264": 15, "vp9": 18}  # about 0.4 Mbit/s at 340x256, as Kinetics files of that size
FPS = 30


def generate(folder: Path, kinds: list[str], files: int, width: int, height: int, length: int) -> dict[str, list[str]]:
    """The files of each kind in folder/KIND/; those of an earlier call with the same settings are kept."""
    made = folder / f"{width}x{height}_{length}"
    done = {"version": synthetic.VERSION, "kinds": KINDS, "crf": CRF}
    note = made / "made_by.json"
    if not note.exists() or json.loads(note.read_text()) != done:
        for file in made.glob("*/*.mp4"):
            file.unlink()
    made.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(done))
    paths = {kind: [made / kind / f"{i:03d}.mp4" for i in range(files)] for kind in kinds}
    todo = [i for i in range(files) if not all(paths[kind][i].exists() for kind in kinds)]
    work = partial(_write, made, kinds, width, height, length)
    with worker_pool(len(os.sched_getaffinity(0))) as pool:
        for count, _ in enumerate(pool.map(work, todo) if len(todo) > 2 else map(work, todo), 1):
            print(f"writing videos: {count} of {len(todo)}", flush=True)
    return {kind: [str(path) for path in paths[kind]] for kind in kinds}


def _write(made: Path, kinds: list[str], width: int, height: int, length: int, index: int) -> None:
    video = synthetic.render(index % 8, 0, index, length, width, height)
    for kind in kinds:
        path = made / kind / f"{index:03d}.mp4"
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            synthetic.encode(temporary, video, FPS, crf=CRF[str(KINDS[kind]["codec"])], **KINDS[kind])  # type: ignore[arg-type]


def find(folder: str) -> list[str]:
    """The readable videos of a folder and its sub-folders, or the one file; ValueError if there is none."""
    path = Path(folder)
    if not path.exists():
        raise ValueError(f"folder={folder}: no such folder or file")
    files = [path] if path.is_file() else videos_below(path)
    good = []
    for file in map(str, files):
        if error := read_row(file).error:
            print(f"left out: {file}: {error}")
        else:
            good.append(file)
    if not good:
        raise ValueError(f"folder={folder}: no readable video in it")
    return good


def describe(rows: list[Row]) -> dict:
    """What the files of a set are, for the result."""
    return {
        "files": len(rows),
        "codecs": sorted({row.codec for row in rows}),
        "sizes": sorted({f"{row.width}x{row.height}" for row in rows})[:10],
        "mean_frames": round(sum(row.num_frames for row in rows) / len(rows), 1),
        "mean_keyframes": round(sum(len(row.keyframes) for row in rows) / len(rows), 1),
        "mean_kbit_per_s": round(sum(8e-3 * r.size * r.fps / r.num_frames for r in rows) / len(rows), 1),
    }
