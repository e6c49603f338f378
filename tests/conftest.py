"""Shared fixtures: small real videos, written once per session, tiny runs over them, and the rule for GPU tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure

from pipelines.decode.decoder_choice import DaliSupport
from pipelines.decode.encoder import encode_video
from pipelines.decode.nvdec import HOPPER
from pipelines.synthetic import render
from tests.helpers.runs import TINY_RUN, train
from tests.helpers.videos import write_video

settings.register_profile("clipline", deadline=None)  # the machine may be busy: a slow example is not a fault
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
# A card that DALI's CPU decoder can emulate: it decodes VP9 of 128x128 pixels and more, as NVDEC does.
EMULATED_CARD = {("vp9", "4:2:0", 8): HOPPER["vp9", "4:2:0", 8]._replace(alignment=1)}
_DRAW = Figure.draw
SIZES = ((80, 64), (64, 80), (96, 72), (72, 72))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or os.environ.get("REQUIRE_GPU") == "1":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU (REQUIRE_GPU=1 makes this a failure)"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare the garbage collector what was imported: millions of objects that stay until the end."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let it collect them again, as libraries complain about what is left at the end."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave figures blank unless the test is marked `figures`: drawing them is two thirds of the time of a tiny run."""
    Figure.draw = _DRAW if "figures" in item.keywords else _draw_nothing  # type: ignore[method-assign]


def _draw_nothing(figure: Figure, renderer: RendererBase) -> None:
    return


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Let torch compute in one thread, because decoding runs beside it and threads that wait for a core are slow."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the path of a real video, video("h264_bframes", frames=75); each is written once."""
    folder = tmp_path_factory.mktemp("videos")

    def get(kind: str, frames: int = 75, width: int = 80, height: int = 64, index: int = 0) -> Path:
        path = folder / f"{kind}_{frames}_{width}x{height}_{index}.mp4"
        if not path.exists():
            encode_video(path, render(index % 6, 0, index, frames, width, height), Fraction(30), **KINDS[kind])
        return path

    return get


@pytest.fixture(scope="session")
def clips_folder(video: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that writes a list of n distinct videos of several sizes into a folder and gives its path."""

    def write(folder: Path, n: int, kind: str = "vp9", frames: int = 40, larger: int = 0) -> Path:
        lines = []
        for index in range(n):
            width, height = (side + larger for side in SIZES[index % len(SIZES)])
            os.symlink(video(kind, frames, width, height, index), folder / f"{index}.mp4")
            lines.append(f"{index}.mp4 {index % 6}")
        path = folder / "list.txt"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def arguments(clips_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Return the arguments of a run over the 13 small videos in tmp_path/data, which takes a second."""
    (tmp_path / "data").mkdir()
    path = clips_folder(tmp_path / "data", 13)
    return [f"data.train={path}", f"data.val={path}", f"run.output_dir={tmp_path}", *TINY_RUN]


@pytest.fixture
def run_dir(arguments: list[str]) -> Path:
    """Return the folder of a run that trained for one epoch."""
    return train(arguments, "a", "optim.epochs=1")


@pytest.fixture
def gpu_arguments(clips_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Return the arguments of the same run on a GPU, over H.264 files with B-frames that every NVDEC decodes."""
    (tmp_path / "gpu").mkdir()
    path = clips_folder(tmp_path / "gpu", 13, kind="h264_bframes", larger=90)
    cpu_only = ("run.device=cpu", "data.num_workers=0", "data.dali_threads=1")
    shared = [argument for argument in TINY_RUN if argument not in cpu_only]
    return [f"data.train={path}", f"data.val={path}", f"run.output_dir={tmp_path}", *shared, "run.device=cuda"]


@pytest.fixture(scope="session")
def mixed_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a list of nine videos: four that the emulated card decodes, then five that no card does."""
    folder = tmp_path_factory.mktemp("mixed")
    for index, size in enumerate(((160, 128), (128, 160), (146, 130), (176, 144))):
        write_video(folder / f"{index}.mp4", "libvpx-vp9", *size, seed=index)
    write_video(folder / "4.mp4", "libvpx-vp9", 100, 134, seed=4)
    write_video(folder / "5.mp4", "libx265", 160, 146, seed=5, pix_fmt="yuv420p10le")
    write_video(folder / "6.mp4", "libx264", 160, 146, seed=6, pix_fmt="yuv444p")
    write_video(folder / "7.mp4", "mjpeg", 160, 146, seed=7, pix_fmt="yuvj420p")
    write_video(folder / "8.mp4", "libx264", 160, 148, seed=8, options={"x264-params": "interlaced=1"})
    path = folder / "list.txt"
    path.write_text("".join(f"{index}.mp4 {index % 6}\n" for index in range(9)))
    return path


@pytest.fixture
def emulated_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make loaders believe that DALI's CPU decoder is a card."""
    monkeypatch.setattr("pipelines.build_source.probe_dali", lambda device: DaliSupport(True, EMULATED_CARD))
