"""Test that the baselines deliver the frames that Clipline delivers, and read ahead no more than is used up."""

import dataclasses
import os
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bench.baselines import readers, spdl_loader
from bench.baselines.cases import CPU_BASELINES, clipline_loader, draw_clips, frame_differences, open_batches
from bench.baselines.clips import DrawnClip, Normalize, crop_resize
from bench.baselines.rounds import LoaderSetup
from bench.harness.ffmpeg import ffmpeg_libraries
from pipelines.decode.encoder import encode_video
from utils.workers import worker_pool

CPU = torch.device("cpu")
DISTRIBUTIONS = {
    "decord2": "decord2",
    "torchcodec": "torchcodec",
    "torchcodec_approx": "torchcodec",
    "video_reader_rs": "video-reader-rs",
    "pyav": "av",
    "spdl_window": "spdl-io",
    "spdl_sample": "spdl-io",
}
# The files of a list: width, height, frames per second. Every one has B-frames and several groups of pictures.
LISTS = {
    "one size": [(128, 96, 30)],
    "mixed": [(128, 96, 25), (160, 120, 30)],
}


class Outcome(NamedTuple):
    """What became of the cases: gray levels by which the worst clip differs, and why others could not run."""

    differences: dict[str, float]
    left_out: dict[str, str]
    shifted: float


def checkerboards(count: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Yield images of 4x4 random blocks: two that follow each other differ in about half of their pixels."""
    for number in range(count):
        blocks = np.random.default_rng(number).integers(0, 2, (4, 4, 1), np.uint8) * 180 + 30
        yield np.tile(np.kron(blocks, np.ones((height // 4, width // 4, 1), np.uint8)), 3)


def write_list(folder: Path, sizes: list[tuple[int, int, int]]) -> list[str]:
    paths = []
    for width, height, fps in sizes:
        path = folder / f"{width}x{height}.mp4"
        encode_video(path, checkerboards(40, width, height), fps, codec="h264", gop=12, bframes=3, crf=12)
        paths.append(str(path))
    return paths


def read_all_cases(paths: list[str], folder: Path) -> Outcome:
    """Read the same clips with every case that runs on a CPU; `shifted` are Clipline's one frame later."""
    torch.set_num_threads(1)
    options = dict(num_frames=3, frame_stride=3, image_size=48, batch_size=4, num_workers=0, prefetch=1)
    loader = clipline_loader(paths, 12, folder, device=CPU, **options)
    clips = draw_clips(loader, 12)
    first = {"clipline": torch.cat([batch.clone() for batch in open_batches("clipline", loader, clips, folder)])}
    left_out = {}
    for case in CPU_BASELINES:
        try:
            first[case] = torch.cat(list(open_batches(case, loader, clips, folder)))
        except RuntimeError as error:
            left_out[case] = str(error)
    later = [dataclasses.replace(clip, frames=tuple(min(f + 1, 39) for f in clip.frames)) for clip in clips]
    first["shifted"] = torch.cat(list(open_batches("pyav", loader, later, folder)))
    differences = frame_differences(first, loader.pipeline.std)
    shifted = differences.pop("shifted")["mean"]
    return Outcome({case: difference["worst_clip"] for case, difference in differences.items()}, left_out, shifted)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Read each list with all cases, in a process that finds FFmpeg's libraries where the system has none."""
    folder = tmp_path_factory.mktemp("baselines")
    path_lists = [write_list(folder, sizes) for sizes in LISTS.values()]
    with pytest.MonkeyPatch.context() as patch, worker_pool(1) as pool:
        libraries = ffmpeg_libraries(folder / "links")
        patch.setenv(
            "LD_LIBRARY_PATH", os.pathsep.join([*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), *libraries])
        )
        return dict(zip(LISTS, pool.map(read_all_cases, path_lists, [folder] * len(path_lists)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTS)
def test_every_installed_baseline_delivers_the_frames_of_clipline(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    installed = {distribution.metadata["Name"].replace("_", "-") for distribution in metadata.distributions()}
    expected = {case for case in CPU_BASELINES if DISTRIBUTIONS[case] in installed}
    assert outcome.differences.keys() == expected, outcome.left_out
    assert max(outcome.differences.values()) < 6, outcome.differences
    assert outcome.shifted > 30, "a shift by one frame does not pass"


def test_unavailable_reason_names_the_distribution_that_is_installed_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "decord_distribution", lambda: "eva-decord")
    assert readers.unavailable_reason("decord2", "v.mp4") == "the module decord of eva-decord is installed"
    monkeypatch.setattr(readers, "decord_distribution", lambda: "")
    assert readers.unavailable_reason("decord2", "v.mp4") == "decord2 is not installed"


def test_select_repeats_frames_in_the_order_of_the_clip() -> None:
    clip = DrawnClip("v.mp4", (7, 9, 2, 2), (0, 0, 8, 8), mirror=False, label=0)
    assert clip.unique_frames == [2, 7, 9]
    assert clip.select(torch.tensor([20, 70, 90])).tolist() == [70, 90, 20, 20]
    with pytest.raises(RuntimeError, match=r"v.mp4: 2 of 3 frames were decoded"):
        clip.select(torch.tensor([20, 70]))


def test_normalize_equals_torchvision() -> None:
    from torchvision.transforms.v2 import functional as tv

    video = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    expected = tv.normalize(tv.to_dtype(video, torch.float32, scale=True), mean, std).permute(1, 0, 2, 3)
    normalized = Normalize(mean, std)(video)
    torch.testing.assert_close(normalized, expected)
    assert normalized.is_contiguous()


def test_spdl_batches_keep_the_order_and_read_ahead_less_than_the_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round times what is read during it only if its warmup uses up what was read before."""
    pytest.importorskip("spdl.pipeline")
    num_read = []

    def read(clip: DrawnClip, image_size: int) -> torch.Tensor:
        num_read.append(clip.label)
        time.sleep(0.002 * (clip.label % 3))  # later clips are ready first
        return torch.full((1, 3, image_size, image_size), clip.label, dtype=torch.uint8)

    monkeypatch.setitem(spdl_loader.READERS, "fake", read)
    sizes = {"num_workers": 2, "prefetch": 2, "batch_size": 4, "num_rounds": 1, "clips_per_round": 4}
    rounds = LoaderSetup(**{field.name: sizes.get(field.name) for field in dataclasses.fields(LoaderSetup)}).rounds
    clips = [DrawnClip("", (0,), (0, 0, 4, 4), mirror=False, label=n) for n in range(90)]
    batches = spdl_loader.iterate_batches(
        "fake", clips, batch_size=4, num_threads=2, image_size=4, normalize=Normalize([0] * 3, [1] * 3)
    )
    first = next(batches)
    time.sleep(0.3)
    assert (len(num_read) - 4) / 4 < rounds.warmup
    values = (255 * torch.cat([first, *batches])[:, 0, 0, 0, 0]).round().tolist()
    assert values == list(range(88)), "the last, incomplete batch is dropped"


def test_crop_resize_flips_what_is_mirrored() -> None:
    video = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    clip = DrawnClip("", (0,), (2, 1, 4, 4), mirror=True, label=0)
    assert torch.equal(crop_resize(video, clip, 4), video[..., 2:6, 1:5].flip(-1))
