"""A corpus of damage: training and evaluation over it finish, name every bad file with its reason, and never hang."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import eval as eval_command
import train as train_command
from pipelines.data.dataset import read_list
from pipelines.data.metadata import build_index
from pipelines.decode.demuxer import Video
from pipelines.decode.encoder import encode
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_row
from pipelines.sample_source import Unreadable
from pipelines.synthetic import render
from tests.pipelines.test_loader import make, turned


def good(path: Path, frames: int = 30, width: int = 64, height: int = 48, **options) -> bytes:
    encode(path, render(0, 0, 1, frames, width, height), Fraction(30), "h264", **options)
    return path.read_bytes()


def odd(path: Path, width: int, height: int, pix_fmt: str = "yuv420p", frames: int = 20, times=None) -> None:
    """FFV1 in Matroska holds any size and pixel format."""
    with av.open(str(path), "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for number in range(frames):
            picture = np.full((height, width, 3), number * 5 % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture).reformat(format=pix_fmt)
            frame.pts, frame.time_base = (times or range(frames))[number], Fraction(1, 30)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> tuple[Path, set[str], set[str]]:
    """-> list, names of what must be refused, names of what must be read."""
    folder = tmp_path_factory.mktemp("corpus")
    whole = good(folder / "whole.mp4", width=128, height=96)
    start = whole.index(b"mdat") + 4
    half = start + (int.from_bytes(whole[start - 8 : start - 4], "big") - 8) // 2
    bad = {
        "zero.mp4": b"", "header.mp4": whole[:20], "cut.mp4": whole[:half], "text.mp4": b"no video at all\n" * 50,
        "noise.mp4": random.Random(0).randbytes(5000), "html.mp4": b"<html>404</html>",
    }  # fmt: skip
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    with av.open(str(folder / "audio.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    (folder / "directory.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    refused = {*bad, "audio.mp4", "directory.mp4", "pipe.mp4", "missing.mp4"}
    if os.getuid():  # root may read everything
        (folder / "secret.mp4").write_bytes(whole)
        (folder / "secret.mp4").chmod(0)
        refused.add("secret.mp4")

    (folder / "as_avi.mp4").write_bytes(whole)
    os.rename(folder / "as_avi.mp4", folder / "mp4_in_disguise.avi")
    good(folder / "one.mp4", frames=1)
    odd(folder / "1x1.mkv", 1, 1)
    odd(folder / "7x500.mkv", 7, 500)
    odd(folder / "4096x16.mkv", 4096, 16)
    odd(folder / "yuv422p.mkv", 48, 32, "yuv422p")
    odd(folder / "ten_bits.mkv", 48, 32, "yuv420p10le")
    odd(folder / "variable.mkv", 48, 32, times=[n * n for n in range(20)])
    good(folder / "-dash.mp4")
    for name in (" spaces in it .mp4", "a:colon.mp4", "ünïcödé 影片.mp4", "per%20cent#hash?.mp4", "quote'\".mp4"):
        (folder / name).write_bytes((folder / "-dash.mp4").read_bytes())
    turned(folder / "-dash.mp4", folder / "rotated.mp4", 1)
    (folder / "no_times.h264").write_bytes(annex_b(folder / "-dash.mp4"))
    (folder / "flipped.mp4").write_bytes(flipped(whole, start))
    read = {p.name for p in folder.iterdir()} - refused
    names = sorted(refused | read)
    (folder / "list.txt").write_text("".join(f"{name}\t{n % 6}\n" for n, name in enumerate(names)))
    return folder / "list.txt", refused, read


def annex_b(path: Path) -> bytes:
    with av.open(str(path)) as file:
        convert = av.BitStreamFilterContext("h264_mp4toannexb", file.streams.video[0])
        packets = [p for packet in file.demux(video=0) for p in convert.filter(packet)]
        return b"".join(bytes(p) for p in packets if p.size)


def flipped(whole: bytes, start: int) -> bytes:
    """A few bits of the pictures turned over: FFmpeg hides it, or a wanted frame is lost."""
    data, rng = bytearray(whole), random.Random(1)
    for _ in range(3):
        data[rng.randrange(start + 3000, start + 4000)] ^= 1 << rng.randrange(8)
    return bytes(data)


def test_the_index_names_every_bad_file_and_reads_the_others(corpus):
    path, refused, read = corpus
    begun = time.monotonic()
    rows = {Path(row.path).name: row for row in build_index(read_list(path), path.with_suffix(".index"), workers=1)}
    assert time.monotonic() - begun < 30
    assert {name for name, row in rows.items() if row.error} == refused
    assert all(row.num_frames > 0 and row.width > 0 for name, row in rows.items() if name in read)
    reasons = {name: rows[name].error for name in ("zero.mp4", "pipe.mp4", "directory.mp4", "audio.mp4", "missing.mp4")}
    assert reasons == {
        "zero.mp4": "empty file", "pipe.mp4": "no regular file", "directory.mp4": "a folder",
        "audio.mp4": "no video stream (the file has: audio)", "missing.mp4": "no such file",
    }  # fmt: skip
    assert (rows["1x1.mkv"].width, rows["one.mp4"].num_frames, rows["rotated.mp4"].turns) == (1, 1, 1)


def test_evaluation_scores_what_can_be_read_and_fails_none_silently(corpus, tmp_path):
    path, refused, read = corpus
    loader = make(path, "data.batch=4", "data.decoder=auto", split="val")
    scored = [row for batch in loader for row in batch.sample.tolist() if row >= 0]
    names = [Path(clip.path).name for clip in loader.source.clips]
    assert len(scored) == len(set(scored))
    failed = {names[row] for row in loader.bad}
    assert {names[row] for row in scored} | failed == set(names) and {names[row] for row in scored}.isdisjoint(failed)
    assert refused <= failed <= refused | {"flipped.mp4"}


def test_training_over_a_few_of_them_finishes_and_names_each(corpus, clips_folder, tmp_path, capsys):
    path, refused, read = corpus
    (tmp_path / "data").mkdir()
    lines = clips_folder(tmp_path / "data", 9).read_text().splitlines()
    every = [f"{tmp_path}/data/{line}" for line in lines] * 20
    mixed = every + [f"{path.parent}/{name}\t0" for name in [*sorted(refused), *sorted(read - {"flipped.mp4"})]]
    every = [line.replace(".mp4 ", ".mp4\t") for line in mixed]
    (tmp_path / "list.txt").write_text("\n".join(every) + "\n")
    common = [
        f"data.train={tmp_path}/list.txt", f"data.val={tmp_path}/list.txt", f"run.folder={tmp_path}", "run.name=a",
        "data.frames=4", "data.stride=2", "data.size=32", "data.batch=6", "data.workers=2", "data.threads=1",
        "model.name=vivit_tiny", "model.args={depth: 1, patch_size: 16}", "optim.epochs=1", "optim.warmup_epochs=0",
        "run.device=cpu", "eval.clips=1", "eval.crops=1", "eval.batch=6",
    ]  # fmt: skip
    assert train_command.main(common) == 0, capsys.readouterr().err
    with (tmp_path / "a/bad_videos.csv").open(newline="") as file:
        named = {Path(row[0]).name: row[1] for row in csv.reader(file)}
    assert set(named) - {"path"} <= refused and len(set(named) & refused) >= len(refused) - 3, named
    assert eval_command.main([str(tmp_path / "a")]) == 0
    summary = json.loads((tmp_path / "a/eval/1x1/summary.json").read_text())
    assert summary["failed"] == len(refused) and summary["scored"] == len(every) - len(refused)


def test_a_file_that_takes_too_long_counts_as_unreadable(tmp_path, clips_folder):
    good(tmp_path / "long.mp4", frames=400)
    with pytest.raises(ValueError, match=r"long.mp4: not read within 1e-06 seconds"):
        trim(tmp_path / "long.mp4", [3], seconds=1e-6)
    with pytest.raises(ValueError, match="not read within"), Video(tmp_path / "long.mp4", 0.05) as video:
        time.sleep(0.06)
        video.in_time()
    assert read_row(str(tmp_path / "long.mp4")).num_frames == 400
    loader = make(clips_folder(tmp_path, 6), "data.decoder=host", split="val")
    loader.decoder.source = dataclasses.replace(loader.source, seconds=1e-6)
    with pytest.raises(Unreadable, match="100 videos in a row cannot be read"):
        next(iter(loader))
