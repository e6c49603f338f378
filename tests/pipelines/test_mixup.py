"""mixing: erasing, mixup and cutmix as their papers have them, drawn for each clip alone, labels in proportion."""

from __future__ import annotations

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.loader import Batch
from pipelines.mixup import Mixing, cutmix_box, erasing_box


def make_batch(clips: int = 5, size: tuple[int, int] = (24, 32), dtype=torch.float32) -> Batch:
    video = torch.randn(clips, 3, 4, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    label = torch.arange(clips) % 6
    return Batch(video, label, torch.arange(clips), tuple((0, 0, row) for row in range(clips)))


def as_images(video: torch.Tensor) -> torch.Tensor:
    return video.flatten(1, 2)


@pytest.mark.parametrize("clips", [1, 4, 5])
def test_mixup_is_kornias_with_the_same_shares(clips):
    batch, mix = make_batch(clips), Mixing(6, mixup=0.8)
    mixed = mix(batch)
    share = torch.tensor([mix.draw(seed, 24, 32)[2] for seed in batch.seeds])
    params = {"mixup_pairs": torch.arange(clips).flip(0), "mixup_lambdas": 1 - share}
    expected = K.RandomMixUpV2().apply_transform(as_images(batch.video), params)
    torch.testing.assert_close(as_images(mixed.video), expected)
    for number in range(clips):
        expected = torch.zeros(6)
        expected[batch.label[number]] += share[number]
        expected[batch.label[clips - 1 - number]] += 1 - share[number]
        torch.testing.assert_close(mixed.label[number], expected)
    assert clips == 1 or not torch.equal(mixed.video, batch.video)


@pytest.mark.parametrize("clips", [1, 4, 5])
def test_cutmix_takes_a_box_of_the_other_clip_in_every_frame(clips):
    batch, mix = make_batch(clips), Mixing(6, cutmix=1.0)
    mixed = mix(batch)
    for number, seed in enumerate(batch.seeds):
        _, (top, left, bottom, right), share = mix.draw(seed, 24, 32)
        expected, other = batch.video[number].clone(), batch.video[clips - 1 - number]
        expected[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        assert torch.equal(mixed.video[number], expected)
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / (24 * 32))
        assert mixed.label[number].sum() == pytest.approx(1, abs=1e-6)


def test_with_both_half_of_the_clips_have_each():
    mix = Mixing(6, mixup=0.8, cutmix=1.0, erase=0.25)
    drawn = [mix.draw((0, 0, row), 64, 64) for row in range(4000)]
    erased, cut, share = (np.array(column) for column in zip(*drawn, strict=True))
    boxes = cut[:, 2] > 0
    assert abs(boxes.mean() - 0.49) < 0.04  # a few boxes are empty
    assert abs((erased[:, 2] > 0).mean() - 0.25) < 0.03
    assert abs(share[~boxes].mean() - 0.5) < 0.03 and abs(share[boxes].mean() - 0.69) < 0.03
    area = (erased[:, 2] - erased[:, 0]) * (erased[:, 3] - erased[:, 1]) / 64**2
    assert area.max() < 0.36 and abs(area[area > 0].mean() - 0.17) < 0.02
    assert boxes.any() and Mixing(6, erase=1).draw((0, 0, 1), 64, 64)[1:] == ([0, 0, 0, 0], 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_erased_boxes_are_noise_and_nothing_else_changes(dtype):
    batch, mix = make_batch(dtype=dtype), Mixing(6, erase=1.0)
    out = mix(batch)
    assert torch.equal(out.label, batch.label) and out.video.dtype is dtype
    for number, seed in enumerate(batch.seeds):
        (top, left, bottom, right), _, _ = mix.draw(seed, 24, 32)
        outside = torch.ones(24, 32, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert torch.equal(out.video[number][..., outside], batch.video[number][..., outside])
        noise = out.video[number][..., top:bottom, left:right].float()
        assert 0.6 < noise.std() < 1.4 and not torch.equal(noise[:, 0], noise[:, 1]), "each frame has noise of its own"
    assert torch.equal(mix(batch).video, out.video)


@given(st.integers(2, 64), st.integers(2, 64), st.floats(0, 1), st.integers(0, 2**32))
def test_boxes_lie_in_the_frame(height, width, own, seed):
    rng = np.random.default_rng(seed)
    for top, left, bottom, right in (erasing_box(height, width, rng), cutmix_box(height, width, own, rng)):
        assert 0 <= top <= bottom <= height and 0 <= left <= right <= width


def test_what_is_drawn_for_a_clip_depends_on_it_alone():
    mix = Mixing(6, 0.8, 1.0, 0.5)
    assert mix.draw((0, 1, 2), 32, 32) == mix.draw((0, 1, 2), 32, 32)
    assert (
        len({str(mix.draw(seed, 32, 32)) for seed in ((0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2), (0, 1, 2, 1))}) == 5
    )
    assert not Mixing(6) and Mixing(6, erase=0.1)
