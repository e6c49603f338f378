"""Videos to index, a note of which of them are read, and what a bad one must look like."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.data import metadata
from pipelines.data.dataset import VideoEntry
from pipelines.decode.encoder import encode_video
from pipelines.decode.video_info import VideoInfo, read_video_info


def write(
    path: Path,
    num_frames: int = 12,
    codec: str = "vp9",
    *,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    gop: int | None = None,
) -> None:
    """Write a video of noise; `size` is (width, height)."""
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, size[1], size[0], 3), np.uint8)
    encode_video(path, frames, fps, codec=codec, gop=gop)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write(folder / "c.mp4", 12, "vp9", fps=25, size=(64, 48), gop=5)
    write(folder / "a.mp4", 17, "h264", fps=30, size=(48, 64), gop=8)
    write(folder / "b.mp4", 10, "mjpeg", fps=10, size=(80, 48))
    return folder


@pytest.fixture
def videos(originals, tmp_path) -> list[VideoEntry]:
    """Return three good files of three codecs."""
    for path in originals.iterdir():
        shutil.copy2(path, tmp_path)
    return [VideoEntry(str(tmp_path / name), 0) for name in ("c.mp4", "a.mp4", "b.mp4")]


@pytest.fixture
def read_paths(monkeypatch) -> list[str]:
    """Return a list to which the path of every file is added that is read from now on."""
    paths: list[str] = []
    monkeypatch.setattr(metadata, "read_video_info", lambda path: paths.append(path) or read_video_info(path))
    return paths


def assert_bad(info: VideoInfo, reason: str) -> None:
    assert info.num_frames == 0 and re.search(reason, info.error), info
    assert info.path not in info.error, "the path is a field of its own"
