"""Blur and solarization: drawn for each clip alone, as their papers have them, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kornia.filters import gaussian_blur2d

from pipelines.batch_loader import Batch
from pipelines.device_augment import SIGMA, THRESHOLD, DeviceAugment, blur

MEAN, STD = (0.45, 0.4, 0.5), (0.225, 0.2, 0.25)


def make_batch(num_clips: int = 8, dtype: torch.dtype = torch.float32) -> Batch:
    pixels = torch.rand(num_clips, 3, 4, 40, 48, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (MEAN, STD))
    seeds = tuple((0, 0, index) for index in range(num_clips))
    index = torch.arange(num_clips)
    return Batch(((pixels - mean) / std).to(dtype), index % 6, index, seeds)


def test_blur_equals_kornias_and_spares_clips_with_sigma_0():
    video, sigma = make_batch(3).video, np.array([0.0, 0.7, 2.0])
    blurred = blur(video, sigma)
    assert torch.equal(blurred[0], video[0])
    for index in (1, 2):
        frames = video[index].flatten(0, 1)[None]
        expected = gaussian_blur2d(frames, 5, (sigma[index],) * 2)
        torch.testing.assert_close(blurred[index].flatten(0, 1)[None], expected, atol=1e-5, rtol=0)
    assert blurred[2].std() < blurred[1].std() < video[1].std()


def test_solarize_inverts_pixels_above_the_threshold():
    batch = make_batch()
    actual = DeviceAugment(0.0, 1.0, MEAN, STD)(batch).video
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (MEAN, STD))
    before, after = batch.video * std + mean, actual * std + mean
    is_bright = before >= THRESHOLD
    torch.testing.assert_close(after[is_bright], 1 - before[is_bright])
    torch.testing.assert_close(after[~is_bright], before[~is_bright])


def test_each_clip_is_drawn_alone_with_its_probability():
    augment = DeviceAugment(0.3, 0.2, MEAN, STD)
    sigma, threshold = np.array([augment.draw((0, 0, index)) for index in range(4000)]).T
    assert abs((sigma > 0).mean() - 0.3) < 0.03 and abs((threshold == THRESHOLD).mean() - 0.2) < 0.03
    assert sigma[sigma > 0].min() >= SIGMA[0] and sigma.max() <= SIGMA[1]
    batch = make_batch()
    changed = (augment(batch).video != batch.video).flatten(1).any(1).tolist()
    drawn = [augment.draw(seed) for seed in batch.seeds]
    assert [is_changed for is_changed, (s, _) in zip(changed, drawn, strict=True) if s] == [True] * sum(
        s > 0 for s, _ in drawn
    )
    half = Batch(batch.video[4:], batch.label[4:], batch.sample_index[4:], batch.seeds[4:])
    assert torch.equal(augment(batch).video[4:], augment(half).video), "other clips of the batch do not matter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtype_and_labels_stay(dtype):
    batch = make_batch(dtype=dtype)
    out = DeviceAugment(1.0, 1.0, MEAN, STD)(batch)
    assert out.video.dtype is dtype and out.video.isfinite().all() and torch.equal(out.label, batch.label)
    assert not DeviceAugment(0.0, 0.0, MEAN, STD)
