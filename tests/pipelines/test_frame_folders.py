"""Folders of images in loaders: the same stream as from videos, with every decoder; bad folders; prepare, index."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from configs.schema import Data, Eval
from pipelines import index, prepare
from pipelines.decode.video_info import read_video_info
from pipelines.loader import VideoLoader
from pipelines.preview import main as preview_main
from pipelines.sliding_window import windows
from tests.helpers.image_folders import frames_of, moving_texture, write_images
from tests.helpers.loaders import CPU, Stream, collect, copy_of, gray_levels, is_same_stream, make_loader
from tests.helpers.videos import write_video

SIZES = ((160, 128), (128, 160), (98, 66))
DALI, PYAV = "data.decoder=dali", "data.decoder=pyav"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of six VP9 files N.mp4, their frames as PNG in png_N, as JPEG in jpeg_N, and three lists."""
    folder = tmp_path_factory.mktemp("folders")
    for number in range(6):
        # The shortest has fewer frames than a clip spans, the longest more than the clips of a test need.
        path = write_video(folder / f"{number}.mp4", "libvpx-vp9", *SIZES[number % 3], num_frames=7 + 5 * number)
        frames = frames_of(path)
        write_images(folder / f"png_{number}", frames, ".png", pattern="%d")
        write_images(folder / f"jpeg_{number}", frames, quality=95, subsampling=0)
    for name, pattern in {"mp4": "{}.mp4", "png": "png_{}", "jpeg": "jpeg_{}"}.items():
        lines = [f"{pattern.format(number)} {number}\n" for number in range(6)]
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


def mean_differences(actual: Stream, expected: Stream) -> list[float]:
    """Return the mean difference of each sample in gray levels; labels and samples must be equal."""
    assert [batch[:2] for batch in actual] == [batch[:2] for batch in expected]
    pairs = [pair for a, b in zip(actual, expected, strict=True) for pair in zip(a[2], b[2], strict=True)]
    return [float(gray_levels((clip - other).abs().mean())) for clip, other in pairs]


# --- the same stream as from videos -------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [DALI, PYAV])
@pytest.mark.parametrize(
    ("images", "split", "overrides"),
    [
        ("jpeg", "train", []),
        (
            "png",
            "train",
            ["data.crop=letterbox", "eval.num_crops=1", "data.aug_repeats=3"],
        ),
        ("png", "train", ["data.sampling=tsn"]),
        ("png", "test", ["data.num_frames=6"]),
    ],
)
def test_stream_from_images_is_that_of_the_video(videos, decoder, images, split, overrides) -> None:
    from_images, from_videos = (
        collect(make_loader(videos / f"{name}.txt", decoder, *overrides, split=split), 1) for name in (images, "mp4")
    )
    assert max(mean_differences(from_images, from_videos)) < 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_dali_and_pyav_give_the_same_views_of_images(videos, split) -> None:
    dali, pyav = (collect(make_loader(videos / "jpeg.txt", decoder, split=split), 1) for decoder in (DALI, PYAV))
    assert max(mean_differences(dali, pyav)) < 1


@pytest.mark.slow
def test_augmented_views_of_images_are_those_of_the_video(videos) -> None:
    from_images, from_videos = (
        collect(make_loader(videos / f"{name}.txt", DALI, "data.rand_augment=m7-n2-mstd0.5"), 1)
        for name in ("png", "mp4")
    )
    assert sorted(mean_differences(from_images, from_videos))[len(from_images)] < 6, "some operations enlarge rounding"


@pytest.fixture
def mixed_list(videos) -> Path:
    """Return a list of videos and folders in turn."""
    path = videos / "mixed.txt"
    names = ["0.mp4", "jpeg_1", "2.mp4", "png_3", "4.mp4", "jpeg_5"]
    path.write_text("".join(f"{name} {number}\n" for number, name in enumerate(names)))
    return path


@pytest.mark.parametrize("split", ["train", "test"])
def test_list_of_videos_and_folders_is_decoded_in_the_same_batch(videos, mixed_list, split, capsys) -> None:
    mixed = collect(make_loader(mixed_list, DALI, split=split), 1)
    assert "DALI CPU for 6 videos (jpeg_images, png_images, vp9)" in capsys.readouterr().out
    expected = collect(make_loader(videos / "mp4.txt", DALI, split=split), 1)
    assert max(mean_differences(mixed, expected)) < 2
    for (_, indices, video), (_, _, other) in zip(mixed, expected, strict=True):
        for index_, clip, expected_clip in zip(indices, video, other, strict=True):
            assert torch.equal(clip, expected_clip) or index_ not in (0, 2, 4), "videos do not change"


@pytest.mark.parametrize("decoder", [PYAV, "data.decoder=both"])
def test_workers_and_a_resume_change_nothing(mixed_list, decoder) -> None:
    overrides = [decoder, "data.pyav_share=0.5"] if decoder == "data.decoder=both" else [decoder]
    expected = collect(make_loader(mixed_list, *overrides), 2)
    with make_loader(mixed_list, *overrides, "data.num_workers=2") as loader:
        assert is_same_stream(collect(loader, 2), expected)
    first, resumed = make_loader(mixed_list, *overrides), make_loader(mixed_list, *overrides)
    start = [copy_of(batch) for batch, _ in zip(first, range(1), strict=False)]
    resumed.load_state_dict({"epoch": 0, "seen": 3, "faults": []})
    assert is_same_stream(start + collect(resumed, 2), expected)


def test_frames_repeated_by_several_clips_are_fed_once(videos) -> None:
    loader = make_loader(videos / "jpeg.txt", DALI, "eval.num_clips=10", "eval.batch_size=1", split="test")
    data, bounds, frame_order, *_ = loader.source.sample(0, 0)
    assert len(frame_order) == 40 and len(bounds) == 1 + 4 and bounds[-1] == len(data)
    assert loader.pipeline.max_images == 32 and not loader.pipeline.has_videos
    assert make_loader(videos / "mp4.txt", DALI).pipeline.max_images == 0


def test_seconds_of_a_folder_are_thirtieths(videos) -> None:
    """An image folder has no rate, so data.fps changes nothing either."""
    keys = {"num_frames": 2, "frame_stride": 1, "image_size": 32, "num_workers": 0, "device": CPU, "batch_size": 1}
    loader = VideoLoader([(videos / "png_5", 10 / 30, 12 / 30, 0)], fps=5, hflip=0.0, crop="letterbox", **keys)
    frames = loader.source.choose_frames(0, np.random.default_rng(0))
    assert frames.tolist() == [[10, 11]]


@pytest.mark.gpu
def test_gpu_decodes_images_as_pyav_does(videos, mixed_list) -> None:
    device = torch.device("cuda", 0)
    for path, split in ((videos / "jpeg.txt", "train"), (videos / "png.txt", "test"), (mixed_list, "train")):
        gpu = collect(make_loader(path, "data.decoder=auto", split=split, device=device), 1)
        pyav = collect(make_loader(path, PYAV, split=split), 1)
        on_host: Stream = [(labels, indices, video.cpu()) for labels, indices, video in gpu]
        assert max(mean_differences(on_host, pyav)) < 2


# --- bad folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_list(tmp_path: Path) -> Path:
    """Return a list of nine folders, of which 2 is missing, 4 holds a text, and 6 has images cut in the middle."""
    for number in range(9):
        write_images(tmp_path / f"clip_{number}", moving_texture(12, number, 80, 64))
    os.rename(tmp_path / "clip_2", tmp_path / "elsewhere")
    for path in (tmp_path / "clip_4").iterdir():
        path.write_text("no image")
    for number in range(2, 12):  # the index decodes the first and the last one
        path = tmp_path / "clip_6" / f"img_{number:05d}.jpg"
        path.write_bytes(path.read_bytes()[:900])
    (tmp_path / "list.txt").write_text("".join(f"clip_{number} {number % 6}\n" for number in range(9)))
    return tmp_path / "list.txt"


def test_training_replaces_unreadable_folders(bad_list, decoder) -> None:
    overrides = [decoder, "data.max_unreadable=0.5"]
    loader = make_loader(bad_list, *overrides)
    stream = collect(loader, 3)
    assert set(loader.bad_videos) == {2, 4, 6}
    assert loader.bad_videos[2] == "no such file" and "not a JPEG or PNG image" in loader.bad_videos[4]
    assert "a broken jpeg image" in loader.bad_videos[6]
    assert not {2, 4, 6} & {index for _, indices, _ in stream for index in indices}
    assert is_same_stream(collect(make_loader(bad_list, *overrides), 3), stream)


def test_evaluation_marks_unreadable_folders_as_failed(bad_list, decoder) -> None:
    loader = make_loader(bad_list, decoder, split="test")
    assert [index for _, batch, _ in collect(loader, 1) for index in batch] == [0, 1, -1, 3, -1, 5, -1, 7, 8]


def test_image_deleted_after_indexing_makes_the_folder_unreadable(bad_list, decoder) -> None:
    loader = make_loader(bad_list, decoder, split="test")
    (bad_list.parent / "clip_1" / "img_00006.jpg").unlink()
    collect(loader, 1)
    assert "has changed since it was indexed" in loader.bad_videos[1]
    again = make_loader(bad_list, decoder, split="test")
    assert again.infos[1].num_frames == 11 and 1 not in again.bad_videos


def test_images_that_dali_refuses_are_decoded_by_pyav(bad_list, capsys) -> None:
    """A JPEG without its end marker is complete for FFmpeg."""
    for path in (bad_list.parent / "clip_7").iterdir():
        path.write_bytes(path.read_bytes()[:-2])
    overrides = ["data.max_unreadable=0.5"]
    loader = make_loader(bad_list, DALI, *overrides)
    stream = collect(loader, 3)
    assert 7 not in loader.bad_videos and "clip_7: DALI refuses it (" in capsys.readouterr().out
    expected = collect(make_loader(bad_list, PYAV, *overrides), 3)
    assert max(mean_differences(stream, expected)) < 2


# --- commands -----------------------------------------------------------------------------------------------------


def first_view(path: Path, **keys: object) -> Tensor:
    (batch,) = list(VideoLoader([(path, 0)], num_workers=0, device=CPU, batch_size=1, crop="letterbox", **keys))
    return batch.video


def test_prepare_makes_a_video_of_a_folder(videos, tmp_path, capsys) -> None:
    assert prepare.main([str(videos / "png.txt"), str(tmp_path), "short_side=64", "crf=1", "workers=1"]) == 0
    assert "6 prepared, 0 not" in capsys.readouterr().out
    info = read_video_info(str(tmp_path / "png_5.mp4"))
    assert (info.num_frames, info.fps, info.codec) == (32, 30, "h264")
    keys = {"num_frames": 4, "frame_stride": 2, "image_size": 32, "hflip": 0.0}
    difference = first_view(tmp_path / "png_0.mp4", **keys) - first_view(videos / "png_0", **keys)
    assert gray_levels(difference.abs().mean()) < 4
    assert prepare.main([str(videos / "png.txt"), str(tmp_path), "short_side=64", "fps=12", "workers=1"]) == 0
    assert read_video_info(str(tmp_path / "png_5.mp4")).fps == 12


def test_index_command_verifies_every_image(bad_list, capsys) -> None:
    assert index.main([str(bad_list), "--verify"]) == 1
    out = capsys.readouterr().out
    assert "9 videos, 8 found, 1 missing, 1 unusable" in out
    assert "clip_6: img_00002.jpg: a broken jpeg image" in out and "clip_5" not in out


def test_repaired_folder_is_read_and_verified_again(bad_list, capsys) -> None:
    """Writing to an image changes nothing of the folder that can be asked for quickly."""
    index.main([str(bad_list), "--verify"])
    for name in ("clip_4", "clip_6"):
        for path in (bad_list.parent / name).iterdir():
            path.write_bytes((bad_list.parent / "clip_5" / path.name).read_bytes())
    os.rename(bad_list.parent / "elsewhere", bad_list.parent / "clip_2")
    capsys.readouterr()
    assert index.main([str(bad_list), "--verify", "min_frames=0"]) == 0
    assert "9 files decoded: nothing unusual" in capsys.readouterr().out


@pytest.mark.figures
def test_preview_and_sliding_windows_take_folders(videos, tmp_path) -> None:
    small = ["data.num_workers=0", "data.image_size=32", "data.batch_size=2", "data.num_frames=4"]
    assert preview_main([str(videos / "jpeg.txt"), *small, f"out={tmp_path / 'x.png'}"]) == 0
    assert imread(tmp_path / "x.png")[..., :3].std() > 0.05
    shown = list(windows(str(videos / "jpeg_5"), Data(num_frames=4, frame_stride=2, image_size=32), Eval()))
    assert len(shown) > 2 and shown[-1].end == pytest.approx(32 / 30)
