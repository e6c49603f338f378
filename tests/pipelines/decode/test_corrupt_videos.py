"""Damaged videos: training and evaluation over them finish, name every bad file with its reason, and never hang."""

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
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.encoder import encode_video
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_video_info
from pipelines.sample_source import TooManyUnreadableVideos
from pipelines.synthetic import render
from tests.helpers.loaders import make_loader, write_rotated
from tests.helpers.videos import write_ffv1


def write_h264(path: Path, num_frames: int = 30, width: int = 64, height: int = 48, **options) -> bytes:
    """Write a valid H.264 video and return its bytes; `options` go to encode_video()."""
    encode_video(path, render(0, 0, 1, num_frames, width, height), Fraction(30), "h264", **options)
    return path.read_bytes()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], set[str]]:
    """Write videos; return the list, the names of files that must be refused, and those that must be read."""
    folder = tmp_path_factory.mktemp("corpus")
    valid = write_h264(folder / "whole.mp4", width=128, height=96)
    data_start = valid.index(b"mdat") + 4
    refused = write_refused_files(folder, valid, data_start)
    write_readable_files(folder, valid, data_start)
    readable = {path.name for path in folder.iterdir()} - refused
    names = sorted(refused | readable)
    (folder / "list.txt").write_text("".join(f"{name}\t{number % 6}\n" for number, name in enumerate(names)))
    return folder / "list.txt", refused, readable


def write_refused_files(folder: Path, valid: bytes, data_start: int) -> set[str]:
    """Write files that cannot be read as video; return their names and that of a file that does not exist."""
    middle = data_start + (int.from_bytes(valid[data_start - 8 : data_start - 4], "big") - 8) // 2
    contents = {
        "zero.mp4": b"",
        "header.mp4": valid[:20],
        "cut.mp4": valid[:middle],
        "text.mp4": b"no video at all\n" * 50,
        "noise.mp4": random.Random(0).randbytes(5000),
        "html.mp4": b"<html>404</html>",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with av.open(str(folder / "audio.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    (folder / "directory.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    refused = {*contents, "audio.mp4", "directory.mp4", "pipe.mp4", "missing.mp4"}
    if os.getuid():  # root may read every file
        (folder / "secret.mp4").write_bytes(valid)
        (folder / "secret.mp4").chmod(0)
        refused.add("secret.mp4")
    return refused


def write_readable_files(folder: Path, valid: bytes, data_start: int) -> None:
    """Write unusual files that can be read: odd names, sizes, pixel formats, times, rotation and damage."""
    (folder / "mp4_in_disguise.avi").write_bytes(valid)
    write_h264(folder / "one.mp4", num_frames=1)
    write_ffv1(folder / "1x1.mkv", 1, 1)
    write_ffv1(folder / "7x500.mkv", 7, 500)
    write_ffv1(folder / "4096x16.mkv", 4096, 16)
    write_ffv1(folder / "yuv422p.mkv", 48, 32, pix_fmt="yuv422p")
    write_ffv1(folder / "ten_bits.mkv", 48, 32, pix_fmt="yuv420p10le")
    write_ffv1(folder / "variable.mkv", 48, 32, times=[number * number for number in range(20)])
    write_h264(folder / "-dash.mp4")
    for name in (" spaces in it .mp4", "a:colon.mp4", "ünïcödé 影片.mp4", "per%20cent#hash?.mp4", "quote'\".mp4"):
        (folder / name).write_bytes((folder / "-dash.mp4").read_bytes())
    write_rotated(folder / "-dash.mp4", folder / "rotated.mp4", 1)
    (folder / "no_times.h264").write_bytes(annex_b(folder / "-dash.mp4"))
    (folder / "flipped.mp4").write_bytes(flip_bits(valid, data_start))


def annex_b(path: Path) -> bytes:
    """Return the raw H.264 stream of an MP4, which has no times."""
    with av.open(str(path)) as file:
        convert = av.BitStreamFilterContext("h264_mp4toannexb", file.streams.video[0])
        packets = [converted for packet in file.demux(video=0) for converted in convert.filter(packet)]
        return b"".join(bytes(packet) for packet in packets if packet.size)


def flip_bits(valid: bytes, data_start: int) -> bytes:
    """Flip three bits of pictures: FFmpeg conceals the damage, or a requested frame is lost."""
    data, rng = bytearray(valid), random.Random(1)
    for _ in range(3):
        data[rng.randrange(data_start + 3000, data_start + 4000)] ^= 1 << rng.randrange(8)
    return bytes(data)


def test_index_names_bad_files_and_reads_the_others(corpus):
    path, refused, readable = corpus
    start = time.monotonic()
    infos = build_index(read_list(path), path.with_suffix(".index"), workers=1)
    assert time.monotonic() - start < 30
    info_of = {Path(info.path).name: info for info in infos}
    assert {name for name, info in info_of.items() if info.error} == refused
    assert all(info.num_frames > 0 and info.width > 0 for name, info in info_of.items() if name in readable)
    names = ("zero.mp4", "pipe.mp4", "directory.mp4", "audio.mp4", "missing.mp4")
    assert {name: info_of[name].error for name in names} == {
        "zero.mp4": "empty file",
        "pipe.mp4": "not a regular file",
        "directory.mp4": "a folder without images (.jpeg, .jpg, .png)",
        "audio.mp4": "no video stream (the file has: audio)",
        "missing.mp4": "no such file",
    }
    assert (info_of["1x1.mkv"].width, info_of["one.mp4"].num_frames, info_of["rotated.mp4"].rotation) == (1, 1, 1)


def test_eval_loader_scores_readable_videos_once_and_reports_the_others(corpus):
    path, refused, _ = corpus
    loader = make_loader(path, "data.batch_size=4", "data.decoder=auto", split="val")
    scored = [index for batch in loader for index in batch.sample_index.tolist() if index >= 0]
    names = [Path(video.path).name for video in loader.videos]
    assert len(scored) == len(set(scored))
    scored_names = {names[index] for index in scored}
    failed_names = {names[index] for index in loader.bad_videos}
    assert scored_names | failed_names == set(names) and scored_names.isdisjoint(failed_names)
    assert refused <= failed_names <= refused | {"flipped.mp4"}


def test_training_and_evaluation_finish_and_name_bad_files(corpus, clips_folder, tmp_path, capsys):
    path, refused, readable = corpus
    (tmp_path / "data").mkdir()
    lines = clips_folder(tmp_path / "data", 9).read_text().splitlines()
    entries = [f"{tmp_path}/data/{line}" for line in lines] * 20
    entries += [f"{path.parent}/{name}\t0" for name in [*sorted(refused), *sorted(readable - {"flipped.mp4"})]]
    entries = [entry.replace(".mp4 ", ".mp4\t") for entry in entries]
    (tmp_path / "list.txt").write_text("\n".join(entries) + "\n")
    arguments = [
        f"data.train={tmp_path}/list.txt",
        f"data.val={tmp_path}/list.txt",
        f"run.output_dir={tmp_path}",
        "run.name=a",
        "data.num_frames=4",
        "data.frame_stride=2",
        "data.image_size=32",
        "data.batch_size=6",
        "data.num_workers=2",
        "data.dali_threads=1",
        "model.name=vivit_tiny",
        "model.args={depth: 1, patch_size: 16}",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
        "run.device=cpu",
        "eval.num_clips=1",
        "eval.num_crops=1",
        "eval.batch_size=6",
    ]
    assert train_command.main(arguments) == 0, capsys.readouterr().err
    with (tmp_path / "a/bad_videos.csv").open(newline="") as file:
        reported = {Path(line[0]).name: line[1] for line in csv.reader(file)}
    assert set(reported) - {"path"} <= refused and len(set(reported) & refused) >= len(refused) - 3, reported
    assert eval_command.main([str(tmp_path / "a")]) == 0
    summary = json.loads((tmp_path / "a/eval/1x1/summary.json").read_text())
    assert summary["failed"] == len(refused) and summary["scored"] == len(entries) - len(refused)


def test_video_that_exceeds_timeout_is_unreadable(tmp_path, clips_folder):
    path = tmp_path / "long.mp4"
    write_h264(path, num_frames=400)
    with pytest.raises(ValueError, match=r"long.mp4: not read within 1e-06 seconds"):
        trim(path, [3], timeout=1e-6)
    with pytest.raises(ValueError, match="not read within"), VideoDemuxer(path, timeout=0.05) as video:
        time.sleep(0.06)
        video.check_timeout()
    assert read_video_info(str(path)).num_frames == 400
    loader = make_loader(clips_folder(tmp_path, 6), "data.decoder=pyav", split="val")
    loader.decoder.source = dataclasses.replace(loader.source, decode_timeout=1e-6)
    with pytest.raises(TooManyUnreadableVideos, match="100 videos in a row cannot be read"):
        next(iter(loader))
