"""Changed clips: the right frames, stronger corruptions do more, and nothing depends on the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations import (
    CORRUPTIONS,
    MOTION,
    Perturbation,
    frame_order,
    list_perturbations,
    perturb,
    reencode,
)
from tests.helpers.networks import random_video

GIVEN = {"mean": (0.45, 0.4, 0.5), "std": (0.2, 0.25, 0.3), "seeds": [(0, 0, 7), (0, 0, 2)]}


def smooth_clips(num_frames: int = 8, size: int = 112) -> torch.Tensor:
    """Return clips (2, 2, 3, T, size, size) that look like videos: low frequencies that move, 0.2 to 0.8."""
    t, y, x = torch.meshgrid(torch.arange(num_frames), torch.arange(size), torch.arange(size), indexing="ij")
    waves = [0.5 + 0.3 * torch.sin(0.3 * x + 0.2 * y + 0.5 * t + phase) for phase in range(12)]
    pixels = torch.stack(waves).reshape(2, 2, 3, num_frames, size, size)
    mean, std = (torch.tensor(GIVEN[key]).view(3, 1, 1, 1) for key in ("mean", "std"))
    return (pixels - mean) / std


@given(st.sampled_from([*MOTION, "dropped_frames"]), st.integers(0, 4), st.integers(1, 33), st.integers(0, 99))
def test_frames_are_those_of_the_clip(name, level, num_frames, seed):
    order = frame_order(name, level, num_frames, np.random.default_rng(seed))
    assert order.shape == (num_frames,) and order.min() >= 0 and order.max() < num_frames
    if name == "shuffled":
        assert sorted(order) == list(range(num_frames))
    if name == "reversed":
        assert order.tolist() == list(range(num_frames))[::-1]
    if name == "one_frame":
        assert set(order.tolist()) == {num_frames // 2}
    if name in ("half_rate", "dropped_frames"):
        assert (order <= np.arange(num_frames)).all() and (np.diff(order) >= 0).all() and order[0] == 0
    if name == "dropped_frames":
        assert len(set(order.tolist())) == num_frames - min(round((level + 1) / 8 * num_frames), num_frames - 1)
        weaker = frame_order(name, max(level - 1, 0), num_frames, np.random.default_rng(seed))
        assert set(order.tolist()) <= set(weaker.tolist()), "a stronger one drops the same and more"


@pytest.mark.parametrize("perturbation", list_perturbations("all"), ids=lambda p: f"{p.name}{p.strength}")
def test_a_video_is_changed_in_the_same_way_in_every_batch(perturbation):
    clips = smooth_clips()
    changed = perturb(clips, perturbation, **GIVEN)
    assert changed.shape == clips.shape and changed.dtype == clips.dtype and not torch.equal(changed, clips)
    swapped = perturb(clips.flip(0), perturbation, **GIVEN | {"seeds": GIVEN["seeds"][::-1]})
    assert torch.equal(swapped.flip(0), changed)
    half = perturb(clips.half(), perturbation, **GIVEN)
    tolerance = 0.1 if perturbation.name == "compression" else 0.01  # the encoder may decide otherwise
    assert half.dtype == torch.float16 and (half.float() - changed).abs().mean() < tolerance


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_corruption_changes_more(name):
    clips = smooth_clips()
    changes = [(perturb(clips, Perturbation(name, s), **GIVEN) - clips).abs().mean().item() for s in range(1, 6)]
    assert changes == sorted(changes) and changes[0] > 0.002 and changes[4] > 1.2 * changes[0]
    noise = random_video(2, 2, 3, 8, 32, 32)
    mean, std = (torch.tensor(GIVEN[key]).view(3, 1, 1, 1) for key in ("mean", "std"))
    if name != "dropped_frames":
        pixels = perturb(noise, Perturbation(name, 5), **GIVEN) * std + mean
        assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5, "pixels stay in their range"


def test_motion_changes_no_pixel():
    clips = smooth_clips()
    values = clips.sort(3).values
    for name in ("shuffled", "reversed"):
        assert torch.equal(perturb(clips, Perturbation(name), **GIVEN).sort(3).values, values)
    assert torch.equal(perturb(clips, Perturbation("one_frame"), **GIVEN), clips[:, :, :, 4:5].expand_as(clips))


def test_brightness_and_noise_have_the_documented_size():
    clips, std = torch.zeros(2, 2, 3, 8, 32, 32), torch.tensor(GIVEN["std"]).view(3, 1, 1, 1)
    mean = torch.tensor(GIVEN["mean"]).view(3, 1, 1, 1)
    brighter = perturb(clips, Perturbation("brightness", 2), **GIVEN) * std + mean
    torch.testing.assert_close(brighter, (mean * 0.7 / 0.5).expand_as(clips))  # the value of HSV is 0.5 before
    black = perturb(clips - mean / std, Perturbation("brightness", 2), **GIVEN) * std + mean
    torch.testing.assert_close(black, torch.full_like(clips, 0.2))
    noisy = perturb(clips, Perturbation("noise", 1), **GIVEN) * std
    assert noisy.std().item() == pytest.approx(0.08, rel=0.02) and abs(noisy.mean().item()) < 1e-3


def test_blur_has_the_documented_sigma():
    """The response to a point, along a row, has the standard deviation of the kernel."""
    clips = torch.zeros(2, 1, 3, 1, 224, 224)
    clips[..., 112, 112] = 1.0
    still = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "seeds": GIVEN["seeds"]}
    for strength, sigma in ((1, 1.0), (4, 4.0), (5, 6.0)):
        row = perturb(clips, Perturbation("blur", strength), **still)[0, 0, 0, 0].sum(0)
        position = torch.arange(224.0) - 112
        assert ((row * position**2).sum() / row.sum()).sqrt().item() == pytest.approx(sigma, rel=0.03)


@pytest.mark.slow
def test_compression_gives_the_same_frames_every_time():
    """x264 did not, once in a thousand times, with its lookahead."""
    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 256, (4, 32, 32, 3), np.uint8) for _ in range(4)]
    expected = [reencode(clip, 30) for clip in clips]
    for index in range(4000):
        memory = np.random.default_rng(index).random(1000 + 37 * index)  # so that freed memory has other contents
        assert np.array_equal(reencode(clips[index % 4], 30), expected[index % 4]) and len(memory)


def test_odd_frames_cannot_be_compressed():
    with pytest.raises(ValueError, match="frames of 31x31 cannot be compressed, expected an even size"):
        perturb(torch.zeros(2, 1, 3, 4, 31, 31), Perturbation("compression", 1), **GIVEN)
