"""Shared fixtures: small real videos, written once a session; the rule for GPU tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from pipelines.decode.encoder import encode
from pipelines.synthetic import render
from tests.helpers.runs import SMALL

settings.register_profile("clipline", deadline=None)  # the machine may be busy: slow is no fault here
settings.load_profile("clipline")

KINDS = {
    "vp9": {"codec": "vp9", "gop": 12},
    "h264": {"codec": "h264", "gop": 30},
    "h264_bframes": {"codec": "h264", "gop": 30, "bframes": 3},
    "h264_open": {"codec": "h264", "gop": 20, "bframes": 3, "open_gop": True},
    "hevc": {"codec": "hevc", "gop": 30, "bframes": 4},
    "hevc_open": {"codec": "hevc", "gop": 20, "bframes": 4, "open_gop": True},
    "mjpeg": {"codec": "mjpeg"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or os.environ.get("REQUIRE_GPU") == "1":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU (REQUIRE_GPU=1 makes this a failure)"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # decoding runs beside; two threads that wait for each other are slower than one


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """video("h264_bframes", frames=75): the path of a real file, each written once."""
    folder = tmp_path_factory.mktemp("videos")

    def get(kind: str, frames: int = 75, width: int = 80, height: int = 64, index: int = 0) -> Path:
        path = folder / f"{kind}_{frames}_{width}x{height}_{index}.mp4"
        if not path.exists():
            encode(path, render(index % 6, 0, index, frames, width, height), Fraction(30), **KINDS[kind])
        return path

    return get


@pytest.fixture
def arguments(clips_folder: Callable[[Path, int], Path], tmp_path: Path) -> list[str]:
    """Of a run over 13 small videos that takes a second."""
    (tmp_path / "data").mkdir()
    path = clips_folder(tmp_path / "data", 13)
    return [f"data.train={path}", f"data.val={path}", f"run.folder={tmp_path}", *SMALL]


@pytest.fixture
def gpu_arguments(clips_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Of the same run on a GPU, over H.264 files with B-frames that every NVDEC takes."""
    (tmp_path / "gpu").mkdir()
    path = clips_folder(tmp_path / "gpu", 13, kind="h264_bframes", larger=90)
    small = [word for word in SMALL if word not in ("run.device=cpu", "data.workers=0", "data.threads=1")]
    return [f"data.train={path}", f"data.val={path}", f"run.folder={tmp_path}", *small, "run.device=cuda"]


@pytest.fixture(scope="session")
def clips_folder(video: Callable[..., Path]) -> Callable[[Path, int], Path]:
    """Write a list of n distinct VP9 videos of several sizes into a folder; returns the list's path."""
    sizes = ((80, 64), (64, 80), (96, 72), (72, 72))

    def write(folder: Path, n: int, kind: str = "vp9", frames: int = 40, larger: int = 0) -> Path:
        lines = []
        for i in range(n):
            width, height = (side + larger for side in sizes[i % len(sizes)])
            os.symlink(video(kind, frames, width, height, i), folder / f"{i}.mp4")
            lines.append(f"{i}.mp4 {i % 6}")
        path = folder / "list.txt"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
