"""Several clips of each training video: their frames, order and crops, and what they share."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_frames
from pipelines.sampling import order
from tests.helpers.loaders import collect, first_video, gray_levels, is_same_stream, make_loader, write_rotated


def read_crop(path: str, frames: np.ndarray, box: np.ndarray) -> torch.Tensor:
    """Read frames, cut the box out and resize it to 32x32 pixels as torch does: (C, T, H, W), normalized."""
    with open_frames(path) as video:
        decoded = {
            position: frame.to_ndarray(format="rgb24")
            for frame, positions in decode_frames(video, frames)
            for position in positions
        }
    top, left, bottom, right = box.astype(int)
    rgb = np.stack([decoded[position] for position in range(len(frames))])[:, top:bottom, left:right]
    pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    return ((resized / 255 - 0.45) / 0.225).transpose(0, 1)


@pytest.mark.parametrize("repeats", [1, 2])
def test_clips_of_a_video_share_crop_and_flip(clips_folder, tmp_path, decoder, repeats):
    several = ["data.num_clips=2", "data.batch_size=4", f"data.aug_repeats={repeats}", "data.hflip=0.5"]
    loader = make_loader(clips_folder(tmp_path, 6), decoder, *several)
    batch, source = next(iter(loader)), loader.source
    assert batch.video.shape == (4, 2, 3, 4, 32, 32) and batch.video.is_contiguous()
    for slot, index in enumerate(batch.sample_index.tolist()):
        frames, boxes, mirror = source.choose_views(index, order.sample_rng(0, 0, index))
        assert frames.shape == (2, 4) and len(boxes) == len(mirror) == repeats
        for clip in range(2):
            crop = slot % repeats
            expected = read_crop(source.videos[index].path, frames[clip], boxes[crop])
            expected = expected.flip(-1) if mirror[crop] else expected
            difference = gray_levels((batch.video[slot, clip] - expected).abs())
            assert difference.mean() < 1.5 and difference[..., 2:-2, 2:-2].max() < 8


def test_rotated_videos_of_several_clips_are_mirrored_alike(video, tmp_path, decoder):
    shutil.copy(video("vp9", 30, 96, 64), tmp_path / "stored.mp4")
    write_rotated(tmp_path / "stored.mp4", tmp_path / "rotated.mp4", 1)
    path = tmp_path / "list.txt"
    path.write_text("rotated.mp4 0\n" * 3)
    several = ["data.num_clips=2", "data.crop_scale=1,1", "data.crop_ratio=1,1.5"]
    straight, mirrored = (first_video(make_loader(path, decoder, *several, f"data.hflip={flip}")) for flip in (0, 1))
    assert torch.equal(mirrored, straight.flip(-1))


@pytest.mark.slow
def test_augmentation_and_erasing_are_the_same_in_all_clips(clips_folder, tmp_path, decoder):
    """A video shorter than a clip has only one, several times: what is done to them must be the same."""
    path = clips_folder(tmp_path, 4, frames=2)
    augment = ["data.rand_augment=m9-n2", "data.random_erasing=1", "data.blur=1", "data.frame_stride=2"]
    video = first_video(make_loader(path, decoder, "data.num_clips=3", *augment))
    plain = first_video(make_loader(path, decoder, "data.num_clips=3", "data.frame_stride=2"))
    assert torch.equal(plain[:, 0], plain[:, 1]) and not torch.allclose(video, plain)
    same = (video[:, 0] == video[:, 1]).flatten(1).float().mean(1)
    assert (same > 0.5).all() and (same < 1).all(), "only the noise of erased boxes differs"


def test_stream_of_several_clips_does_not_depend_on_workers_or_interruption(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 7)
    expected = collect(make_loader(path, decoder, "data.num_clips=2"))
    assert is_same_stream(collect(make_loader(path, decoder, "data.num_clips=2", "data.num_workers=2")), expected)
    loader = make_loader(path, decoder, "data.num_clips=2")
    next(iter(loader))
    resumed = make_loader(path, decoder, "data.num_clips=2")
    resumed.load_state_dict(loader.state_dict())
    assert is_same_stream(collect(resumed), expected[1:])
