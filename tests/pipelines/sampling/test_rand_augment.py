"""augment: drawn from the sample's generator, one policy a clip, the operations timm has; repeats of one decode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageEnhance, ImageOps

from pipelines.sampling.rand_augment import BINS, IDENTITY, OPERATIONS, Augment, augmented, parse
from pipelines.synthetic import render
from tests.pipelines.test_loader import make, same, stream


def apply(clip: np.ndarray, drawn: list[list], augment: Augment) -> list[np.ndarray]:
    """The clip (T, H, W, 3) once for each entry of `drawn`, the arrays that augment.draw() would give."""
    arrays = [(clip, *(np.array(array, np.float32) for array in one)) for one in drawn]

    @pipeline_def(
        batch_size=len(drawn), num_threads=1, device_id=None, enable_conditionals=True, prefetch_queue_depth=1
    )
    def pipe():
        clips, *more = fn.external_source(
            lambda place: arrays[place.idx_in_batch], batch=False, num_outputs=len(arrays[0]),
            dtype=[types.UINT8] + [types.FLOAT] * len(augment.shapes), ndim=[4, *augment.shapes],
            layout=["FHWC"] + [""] * len(augment.shapes),
        )  # fmt: skip
        return augmented(clips, more, augment, clip.shape[1], (124, 124, 124))

    out = pipe().run()[0]
    return [np.array(out[number]) for number in range(len(drawn))]


def policy(*operations: tuple[str, float, int]) -> list[list[float]]:
    """[(operation, magnitude 0 to 10, sign), ...] -> (3, n)"""
    return [[OPERATIONS.index(o) for o, _, _ in operations], [10 * m for _, m, _ in operations],
            [s for _, _, s in operations]]  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.ascontiguousarray(render(0, 0, 3, 3, 48, 48))


def pillow(clip: np.ndarray, function) -> np.ndarray:
    return np.stack([np.asarray(function(Image.fromarray(frame))) for frame in clip])


def affine(*matrix: float):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(124,) * 3
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


def test_operations_are_pillows(clip):
    """The same operation at the same strength; borders, rounding and equalisation's table may differ a little."""
    outputs = apply(clip, [[policy((name, m, sign))] for name, m, sign, _ in PILLOW], Augment(operations=1))
    for (name, _, _, function), mine in zip(PILLOW, outputs, strict=True):
        theirs = pillow(clip, function)
        assert mine.shape == clip.shape and mine.dtype == np.uint8
        difference = np.abs(mine.astype(int) - theirs)[:, 3:-3, 3:-3]
        assert np.median(difference) <= 2 and difference.mean() < 6, (name, np.median(difference), difference.mean())
        assert np.abs(mine.astype(int) - clip).mean() > 1, name


def test_one_policy_for_all_frames(clip):
    still = np.repeat(clip[:1], 3, axis=0)
    for name, out in zip(OPERATIONS, apply(still, [[policy((n, 6, 1))] for n in OPERATIONS], Augment(1)), strict=True):
        assert (out == out[:1]).all(), name


def test_operations_follow_each_other(clip):
    twice = apply(clip, [[policy(("invert", 5, 0), ("invert", 5, 0))]], Augment(operations=2))[0]
    assert (twice == clip).all()


def test_colour_jitter_and_grey(clip):
    jitter = Augment(jitter=0.4, grey=0.5)
    grey, dark, same = apply(clip, [[[1, 1, 0]], [[0.5, 1, 1]], [[1, 1, 1]]], jitter)
    assert np.ptp(grey.astype(int), axis=-1).max() <= 1
    np.testing.assert_allclose(grey[..., 0], pillow(clip, ImageOps.grayscale), atol=2)
    np.testing.assert_allclose(dark, clip * 0.5, atol=1)
    assert (same == clip).mean() > 0.9


@given(st.integers(0, 2**32), st.integers(0, 6), st.floats(0, 10), st.floats(0, 3), st.floats(0, 1), st.floats(0, 1))
def test_what_is_drawn(seed, operations, magnitude, spread, jitter, grey):
    augment = Augment(operations, magnitude, spread, 0.5, jitter, grey)
    drawn = augment.draw(np.random.default_rng(seed))
    again = augment.draw(np.random.default_rng(seed))
    assert all((a == b).all() and a.dtype == np.float32 for a, b in zip(drawn, again, strict=True))
    assert [array.ndim for array in drawn] == augment.shapes and bool(drawn) == bool(augment)
    if jitter or grey:
        assert drawn[0].shape == (3,)
        assert ((drawn[0] >= 1 - jitter - 1e-6) & (drawn[0] <= 1 + jitter + 1e-6) | (drawn[0] == 0)).all()
    if operations:
        assert drawn[-1].shape == (3, operations) and (drawn[-1] == np.round(drawn[-1])).all()
        operation, bins, sign = drawn[-1]
        assert ((operation >= 0) & (operation <= IDENTITY)).all() and ((bins >= 0) & (bins < BINS)).all()
        assert set(sign.tolist()) <= {0, 1}


def test_the_shares_of_operations():
    augment = parse("rand-m7-n4-mstd0.5-inc1")
    assert augment == Augment(4, 7.0, 0.5, 0.5)
    policies = np.concatenate([augment.draw(np.random.default_rng(seed))[0] for seed in range(2000)], axis=1)
    share = np.bincount(policies[0].astype(int), minlength=IDENTITY + 1) / policies.shape[1]
    assert abs(share[IDENTITY] - 0.5) < 0.03 and np.allclose(share[:IDENTITY], 0.5 / 15, atol=0.01)
    assert abs(policies[1].mean() - 70) < 0.5 and abs(policies[1].std() - 5) < 0.5
    assert abs(policies[2].mean() - 0.5) < 0.03


@pytest.mark.parametrize("text", ["m7", "n4", "m7-n2.5", "m11-n2", "m7-n2-p1.5", "m7-n2-x3", "seven"])
def test_notations_that_mean_nothing(text):
    with pytest.raises(ValueError, match=f"data.rand_augment={text}"):
        parse(text)


# --- through the loader -------------------------------------------------------------------------------------------

AUGMENT = ["data.rand_augment=m7-n1-mstd0.5-p0.9", "data.colour_jitter=0.4", "data.grey=0.2"]


@pytest.fixture(params=["dali", "host"])
def decoder(request) -> str:
    return f"data.decoder={request.param}"


def test_the_stream_is_the_same_for_any_workers_and_after_resuming(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 9)
    settings = [decoder, *AUGMENT, "data.batch=2", "data.repeats=2"]
    whole = stream(make(path, *settings))
    assert same(stream(make(path, *settings, "data.workers=2")), whole)
    resumed = make(path, *settings)
    resumed.load_state_dict({"epoch": 0, "seen": (len(resumed) - 1) * resumed.source.batch})
    assert len(resumed) == 9 and same(stream(resumed), whole[len(resumed) - 1 :])


def test_augmentation_changes_pictures_but_not_frames_boxes_or_flips(clips_folder, tmp_path, decoder):
    """Everything else is drawn first: turning augmentation on keeps the rest of the stream."""
    path = clips_folder(tmp_path, 3)
    plain, varied, none = (
        next(iter(make(path, decoder, *more))) for more in ([], AUGMENT, ["data.rand_augment=m7-n1-p0"])
    )
    assert plain.sample.tolist() == varied.sample.tolist() and not torch.equal(plain.video, varied.video)
    torch.testing.assert_close(none.video, plain.video)


def test_repeats_are_crops_of_one_decode_side_by_side(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 4)
    loader = make(path, decoder, "data.repeats=3", "data.batch=6", "data.flip=0.5")
    assert len(loader) == 2
    batch = next(iter(loader))
    assert batch.video.shape == (6, 3, 4, 32, 32) and batch.video.is_contiguous()
    assert [len(set(batch.sample.tolist()[i : i + 3])) for i in (0, 3)] == [1, 1]
    assert batch.label.tolist() == [batch.label[0]] * 3 + [batch.label[3]] * 3
    assert len(set(batch.seeds)) == 6 and [seed[3] for seed in batch.seeds] == [0, 1, 2] * 2
    assert not torch.equal(batch.video[0], batch.video[1])
    whole = make(path, decoder, "data.repeats=3", "data.batch=3", "data.scale=1,1", "data.ratio=0.5,2", "data.flip=0")
    video = next(iter(whole)).video
    assert torch.equal(video[0], video[1]) or (video[0] - video[1]).abs().mean() < 0.5  # the same frames
    with pytest.raises(ValueError, match="data.repeats=2: expected a divisor of data.batch=3"):
        make(path, "data.repeats=2")
