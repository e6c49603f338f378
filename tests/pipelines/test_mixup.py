"""Random erasing, mixup and CutMix as in their papers: drawn for each clip alone, labels in proportion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipelines.batch_loader import Batch
from pipelines.mixup import NO_BOX, BatchMixing, cutmix_box, erasing_box

HEIGHT, WIDTH = 24, 32


def make_batch(num_clips: int = 5, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(num_clips, 3, 4, HEIGHT, WIDTH, generator=generator).to(dtype)
    index = torch.arange(num_clips)
    return Batch(video, index % 6, index, tuple((0, 0, sample_index) for sample_index in range(num_clips)))


def as_images(video: Tensor) -> Tensor:
    return video.flatten(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_clips", [1, 4, 5])
def test_mixup_equals_a_linear_interpolation_with_the_drawn_lambdas(num_clips, dtype):
    batch, mixing = make_batch(num_clips, dtype), BatchMixing(6, mixup=0.8)
    mixed = mixing(batch)
    lam = torch.tensor([mixing.draw(seed, HEIGHT, WIDTH).lam for seed in batch.seeds])
    clips = batch.video.float()
    expected = torch.lerp(clips.flip(0), clips, lam.view(-1, 1, 1, 1, 1))
    tolerance = {torch.float32: 1e-6, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(mixed.video.float(), expected, atol=tolerance, rtol=0)
    for clip in range(num_clips):
        expected = torch.zeros(6)
        expected[batch.label[clip]] += lam[clip]
        expected[batch.label[num_clips - 1 - clip]] += 1 - lam[clip]
        torch.testing.assert_close(mixed.label[clip], expected)
    assert num_clips == 1 or not torch.equal(mixed.video, batch.video)


@pytest.mark.parametrize("num_clips", [1, 4, 5])
def test_cutmix_takes_a_box_of_the_other_clip_in_every_frame(num_clips):
    batch, mixing = make_batch(num_clips), BatchMixing(6, cutmix=1.0)
    mixed = mixing(batch)
    for clip, seed in enumerate(batch.seeds):
        _, (top, left, bottom, right), lam = mixing.draw(seed, HEIGHT, WIDTH)
        expected, partner = batch.video[clip].clone(), batch.video[num_clips - 1 - clip]
        expected[..., top:bottom, left:right] = partner[..., top:bottom, left:right]
        assert torch.equal(mixed.video[clip], expected)
        assert lam == pytest.approx(1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH))
        assert mixed.label[clip].sum() == pytest.approx(1, abs=1e-6)


def test_mixup_and_cutmix_together_are_drawn_for_half_of_the_clips_each():
    mixing = BatchMixing(6, mixup=0.8, cutmix=1.0, erase=0.25)
    drawn = [mixing.draw((0, 0, index), 64, 64) for index in range(4000)]
    erase_boxes, cut_boxes, lam = (np.array(values) for values in zip(*drawn, strict=True))
    is_cut = cut_boxes[:, 2] > 0
    assert is_cut.any() and abs(is_cut.mean() - 0.49) < 0.04, "a few boxes are empty"
    assert abs((erase_boxes[:, 2] > 0).mean() - 0.25) < 0.03
    assert abs(lam[~is_cut].mean() - 0.5) < 0.03 and abs(lam[is_cut].mean() - 0.69) < 0.03
    area = (erase_boxes[:, 2] - erase_boxes[:, 0]) * (erase_boxes[:, 3] - erase_boxes[:, 1]) / 64**2
    assert area.max() < 0.36 and abs(area[area > 0].mean() - 0.17) < 0.02


def test_erasing_alone_mixes_nothing():
    mixing = BatchMixing(6, erase=1)
    assert mixing.draw((0, 0, 1), 64, 64)[1:] == (NO_BOX, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_erasing_replaces_boxes_by_noise_and_nothing_else(dtype):
    batch, mixing = make_batch(dtype=dtype), BatchMixing(6, erase=1.0)
    erased = mixing(batch)
    assert torch.equal(erased.label, batch.label) and erased.video.dtype is dtype
    for clip, seed in enumerate(batch.seeds):
        top, left, bottom, right = mixing.draw(seed, HEIGHT, WIDTH).erase_box
        outside = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert torch.equal(erased.video[clip][..., outside], batch.video[clip][..., outside])
        noise = erased.video[clip][..., top:bottom, left:right].float()
        assert 0.6 < noise.std() < 1.4
        assert not torch.equal(noise[:, 0], noise[:, 1]), "each frame has noise of its own"
    assert torch.equal(mixing(batch).video, erased.video)


@given(st.integers(2, 64), st.integers(2, 64), st.floats(0, 1), st.integers(0, 2**32))
def test_boxes_lie_in_the_frame(height, width, lam, seed):
    rng = np.random.default_rng(seed)
    for top, left, bottom, right in (erasing_box(height, width, rng), cutmix_box(height, width, lam, rng)):
        assert 0 <= top <= bottom <= height and 0 <= left <= right <= width


def test_draw_depends_on_the_seed_of_the_clip_alone():
    mixing = BatchMixing(6, 0.8, 1.0, 0.5)
    assert mixing.draw((0, 1, 2), 32, 32) == mixing.draw((0, 1, 2), 32, 32)
    seeds = ((0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2), (0, 1, 2, 1))
    assert len({mixing.draw(seed, 32, 32) for seed in seeds}) == 5


def test_mixing_without_any_operation_is_false():
    assert not BatchMixing(6)
    assert BatchMixing(6, erase=0.1)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        ((0, 0, 0), ((10, 0, 18, 24), (0, 0, 10, 16), 0.7916666666666666)),
        ((0, 1, 2), (NO_BOX, NO_BOX, 0.3164736088748074)),
        ((3, 4, 5), (NO_BOX, (5, 4, 9, 10), 0.96875)),
        ((0, 0, 1, 1), ((6, 3, 17, 25), NO_BOX, 0.08472815373896751)),
    ],
)
def test_draws_of_a_clip_never_change(seed, expected):
    """These were drawn before kornia applied them: a run of then resumes with the same clips."""
    assert BatchMixing(6, 0.8, 1.0, 0.5).draw(seed, HEIGHT, WIDTH) == expected
