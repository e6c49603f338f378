"""rand_augment: drawn from the sample's generator, one policy per clip, timm's operations; repeats of one decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageEnhance, ImageOps

from pipelines.sampling.rand_augment import BINS, IDENTITY, OPERATIONS, AugmentPolicy, apply_policy, parse_policy
from pipelines.synthetic import render
from tests.helpers.loaders import collect, is_same_stream, make_loader

GRAY = 124


def apply(clip: np.ndarray, draws: Sequence[Sequence[Sequence]], policy: AugmentPolicy) -> list[np.ndarray]:
    """Augment the clip (T, H, W, 3) once for each of `draws`, the arrays that policy.draw() would return."""
    samples = [(clip, *(np.array(array, np.float32) for array in arrays)) for arrays in draws]

    @pipeline_def(
        batch_size=len(draws), num_threads=1, device_id=None, enable_conditionals=True, prefetch_queue_depth=1
    )
    def pipeline():
        clips, *arrays = fn.external_source(
            lambda info: samples[info.idx_in_batch],
            batch=False,
            num_outputs=len(samples[0]),
            dtype=[types.UINT8] + [types.FLOAT] * len(policy.ndims),
            ndim=[4, *policy.ndims],
            layout=["FHWC"] + [""] * len(policy.ndims),
        )
        return apply_policy(clips, arrays, policy, size=clip.shape[1], fill=(GRAY,) * 3)

    (augmented,) = pipeline().run()
    return [np.array(augmented[number]) for number in range(len(draws))]


def rand_augment_array(*operations: tuple[str, float, int]) -> list[list[float]]:
    """Return (3, n) of [(operation, magnitude 0 to 10, sign), ...]."""
    names, magnitudes, signs = zip(*operations, strict=True)
    return [[OPERATIONS.index(name) for name in names], [10 * magnitude for magnitude in magnitudes], list(signs)]


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.ascontiguousarray(render(0, 0, 3, 3, 48, 48))


def apply_pillow(clip: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(function(Image.fromarray(frame))) for frame in clip])


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(GRAY,) * 3
    )


PILLOW = [
    ("invert", 7, 0, ImageOps.invert),
    ("posterize", 5, 0, lambda i: ImageOps.posterize(i, 2)),
    ("posterize", 7, 0, lambda i: ImageOps.posterize(i, 2)),  # 4 - int(2.8)
    ("solarize", 5, 0, lambda i: ImageOps.solarize(i, 128)),
    ("auto_contrast", 5, 0, ImageOps.autocontrast),
    ("brightness", 5, 0, lambda i: ImageEnhance.Brightness(i).enhance(1.45)),
    ("brightness", 5, 1, lambda i: ImageEnhance.Brightness(i).enhance(0.55)),
    ("contrast", 5, 0, lambda i: ImageEnhance.Contrast(i).enhance(1.45)),
    ("color", 5, 1, lambda i: ImageEnhance.Color(i).enhance(0.55)),
    ("sharpness", 9, 0, lambda i: ImageEnhance.Sharpness(i).enhance(1.81)),
    ("equalize", 5, 0, ImageOps.equalize),
    ("rotate", 5, 0, lambda i: i.rotate(15, Image.Resampling.BILINEAR, fillcolor=(124,) * 3)),
    ("translate_x", 5, 0, affine(1, 0, -0.225 * 48, 0, 1, 0)),
    ("translate_y", 5, 1, affine(1, 0, 0, 0, 1, 0.225 * 48)),
    ("shear_x", 10, 0, affine(1, -0.3, 0, 0, 1, 0)),
    ("shear_y", 10, 0, affine(1, 0, 0, -0.3, 1, 0)),
]


def test_operations_equal_pillows(clip):
    """The same operations at the same magnitude; borders, rounding and the table of equalize may differ a little."""
    draws = [[rand_augment_array((name, magnitude, sign))] for name, magnitude, sign, _ in PILLOW]
    all_actual = apply(clip, draws, AugmentPolicy(num_operations=1))
    for (name, _, _, function), actual in zip(PILLOW, all_actual, strict=True):
        expected = apply_pillow(clip, function)
        assert actual.shape == clip.shape and actual.dtype == np.uint8
        difference = np.abs(actual.astype(int) - expected)[:, 3:-3, 3:-3]
        assert np.median(difference) <= 2 and difference.mean() < 6, (name, np.median(difference), difference.mean())
        assert np.abs(actual.astype(int) - clip).mean() > 1, name


def test_apply_policy_treats_all_frames_alike(clip):
    still = np.repeat(clip[:1], 3, axis=0)
    draws = [[rand_augment_array((name, 6, 1))] for name in OPERATIONS]
    for name, augmented in zip(OPERATIONS, apply(still, draws, AugmentPolicy(num_operations=1)), strict=True):
        assert (augmented == augmented[:1]).all(), name


def test_apply_policy_composes_operations(clip):
    draws = [[rand_augment_array(("invert", 5, 0), ("invert", 5, 0))]]
    (inverted_twice,) = apply(clip, draws, AugmentPolicy(num_operations=2))
    assert (inverted_twice == clip).all()


def test_color_jitter_and_grayscale(clip):
    policy = AugmentPolicy(color_jitter=0.4, grayscale=0.5)
    gray, dark, unchanged = apply(clip, [[[1, 1, 0]], [[0.5, 1, 1]], [[1, 1, 1]]], policy)
    assert np.ptp(gray.astype(int), axis=-1).max() <= 1
    np.testing.assert_allclose(gray[..., 0], apply_pillow(clip, ImageOps.grayscale), atol=2)
    np.testing.assert_allclose(dark, clip * 0.5, atol=1)
    assert (unchanged == clip).mean() > 0.9


@given(st.integers(0, 2**32), st.integers(0, 6), st.floats(0, 10), st.floats(0, 3), st.floats(0, 1), st.floats(0, 1))
def test_draw_is_deterministic_and_in_range(seed, num_operations, magnitude, magnitude_std, color_jitter, grayscale):
    policy = AugmentPolicy(
        num_operations=num_operations,
        magnitude=magnitude,
        magnitude_std=magnitude_std,
        color_jitter=color_jitter,
        grayscale=grayscale,
    )
    arrays = policy.draw(np.random.default_rng(seed))
    redrawn = policy.draw(np.random.default_rng(seed))
    assert all((a == b).all() and a.dtype == np.float32 for a, b in zip(arrays, redrawn, strict=True))
    assert [array.ndim for array in arrays] == policy.ndims and bool(arrays) == bool(policy)
    if color_jitter or grayscale:
        factors = arrays[0]
        assert factors.shape == (3,)
        is_in_range = (factors >= 1 - color_jitter - 1e-6) & (factors <= 1 + color_jitter + 1e-6)
        assert (is_in_range | (factors == 0)).all()
    if num_operations:
        assert arrays[-1].shape == (3, num_operations) and (arrays[-1] == np.round(arrays[-1])).all()
        operation, bins, sign = arrays[-1]
        assert ((operation >= 0) & (operation <= IDENTITY)).all() and ((bins >= 0) & (bins < BINS)).all()
        assert set(sign.tolist()) <= {0, 1}


def test_draw_has_the_frequencies_of_the_notation():
    policy = parse_policy("rand-m7-n4-mstd0.5-inc1")
    assert policy == AugmentPolicy(num_operations=4, magnitude=7.0, magnitude_std=0.5, probability=0.5)
    operations, bins, signs = np.concatenate(
        [policy.draw(np.random.default_rng(seed))[0] for seed in range(2000)], axis=1
    )
    frequency = np.bincount(operations.astype(int), minlength=IDENTITY + 1) / len(operations)
    assert abs(frequency[IDENTITY] - 0.5) < 0.03 and np.allclose(frequency[:IDENTITY], 0.5 / 15, atol=0.01)
    assert abs(bins.mean() - 70) < 0.5 and abs(bins.std() - 5) < 0.5
    assert abs(signs.mean() - 0.5) < 0.03


@pytest.mark.parametrize("text", ["m7", "n4", "m7-n2.5", "m11-n2", "m7-n2-p1.5", "m7-n2-x3", "seven"])
def test_parse_policy_refuses_a_wrong_notation(text):
    with pytest.raises(ValueError, match=f"data.rand_augment={text}"):
        parse_policy(text)


# --- through the loader -------------------------------------------------------------------------------------------

AUGMENT = ["data.rand_augment=m7-n1-mstd0.5-p0.9", "data.color_jitter=0.4", "data.grayscale=0.2"]


@pytest.fixture(params=["dali", "pyav"])
def decoder(request) -> str:
    return f"data.decoder={request.param}"


@pytest.mark.parametrize("decoder", ["pyav", pytest.param("dali", marks=pytest.mark.slow)], indirect=True)
def test_augmented_stream_is_the_same_for_any_workers_and_after_resuming(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 9)
    settings = [decoder, *AUGMENT, "data.batch_size=2", "data.aug_repeats=2"]
    expected = collect(make_loader(path, *settings))
    assert is_same_stream(collect(make_loader(path, *settings, "data.num_workers=2")), expected)
    resumed = make_loader(path, *settings)
    resumed.load_state_dict({"epoch": 0, "seen": (len(resumed) - 1) * resumed.source.batch_size})
    assert len(resumed) == 9 and is_same_stream(collect(resumed), expected[len(resumed) - 1 :])


def test_augmentation_does_not_change_which_frames_boxes_and_flips_are_drawn(clips_folder, tmp_path, decoder):
    """Everything else is drawn first: turning augmentation on keeps the rest of the stream."""
    path = clips_folder(tmp_path, 3)
    plain, augmented, identity = (
        next(iter(make_loader(path, decoder, *more))) for more in ([], AUGMENT, ["data.rand_augment=m7-n1-p0"])
    )
    assert plain.sample_index.tolist() == augmented.sample_index.tolist()
    assert not torch.equal(plain.video, augmented.video)
    torch.testing.assert_close(identity.video, plain.video)


def test_aug_repeats_are_adjacent_crops_of_one_decode(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 4)
    loader = make_loader(path, decoder, "data.aug_repeats=3", "data.batch_size=6", "data.hflip=0.5")
    assert len(loader) == 2
    batch = next(iter(loader))
    assert batch.video.shape == (6, 3, 4, 32, 32) and batch.video.is_contiguous()
    assert [len(set(batch.sample_index.tolist()[i : i + 3])) for i in (0, 3)] == [1, 1]
    assert batch.label.tolist() == [batch.label[0]] * 3 + [batch.label[3]] * 3
    assert len(set(batch.seeds)) == 6 and [seed[3] for seed in batch.seeds] == [0, 1, 2] * 2
    assert not torch.equal(batch.video[0], batch.video[1])
    full_frames = make_loader(
        path,
        decoder,
        "data.aug_repeats=3",
        "data.batch_size=3",
        "data.crop_scale=1,1",
        "data.crop_ratio=0.5,2",
        "data.hflip=0",
    )
    video = next(iter(full_frames)).video
    assert torch.equal(video[0], video[1]) or (video[0] - video[1]).abs().mean() < 0.5, "the same frames"
    with pytest.raises(ValueError, match="data.aug_repeats=2: expected a divisor of data.batch_size=3"):
        make_loader(path, "data.aug_repeats=2")
