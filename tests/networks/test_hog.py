"""HOG targets against their definition and scikit-image's."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange

from networks.hog import hog, hog_targets
from tests.helpers.networks import random_video


def reference_hog(frame, window=0):
    """Compute the definition pixel by pixel: (3, H, W) -> (3, 9, H / 8, W / 8)."""
    colors, height, width = frame.shape
    padded = np.pad(frame.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    cells = np.zeros((colors, 9, height // 8, width // 8))
    for color in range(colors):
        for row in range(height):
            for column in range(width):
                neighborhood = padded[color, row : row + 3, column : column + 3]
                gx, gy = (neighborhood * sobel).sum(), (neighborhood * sobel.T).sum()
                weight = math.hypot(gx, gy)
                if window:
                    y, x = row % window - (window - 1) / 2, column % window - (window - 1) / 2
                    weight *= math.exp(-(x * x + y * y) / (2 * (window / 4) ** 2))
                bin_index = math.floor(math.atan2(gx, gy) / math.pi * 9) % 9
                cells[color, bin_index, row // 8, column // 8] += weight
    return cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("window", [0, 16])
def test_hog_equals_its_definition(window):
    frames = random_video(2, 3, 16, 32)
    expected = np.stack([reference_hog(frame.numpy(), window) for frame in frames])
    np.testing.assert_allclose(hog(frames, window).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("content", ["photo", "noise"])
def test_hog_with_central_gradient_equals_scikit_image(content):
    """On whole numbers, gradients lie exactly on the borders of bins."""
    skimage = pytest.importorskip("skimage")
    rng = np.random.default_rng(0)
    image = skimage.data.astronaut()[100:196, 100:212] if content == "photo" else rng.integers(0, 256, (96, 112, 3))
    image = image.astype(np.uint8)
    settings = dict(orientations=9, pixels_per_cell=(8, 8), cells_per_block=(1, 1), block_norm="L2")
    expected = np.stack(
        [
            skimage.feature.hog(image[..., color].astype(np.float64), feature_vector=False, **settings)[:, :, 0, 0]
            for color in range(3)
        ]
    )
    actual = hog(torch.from_numpy(image).permute(2, 0, 1)[None], gradient="central")[0]
    np.testing.assert_allclose(rearrange(actual.numpy(), "C o h w -> C h w o"), expected, atol=2e-5)
    normalized = (torch.from_numpy(image) / 255 - 0.45) / 0.225  # as in a batch: equal up to rounding
    of_normalized = hog(normalized.permute(2, 0, 1)[None], gradient="central")[0]
    assert (of_normalized - actual).abs().mean() < 2e-3


def test_hog_of_edges_is_in_the_bin_of_their_gradient():
    """A vertical edge is in bin 4 (its gradient lies along x: atan2(gx, 0) = 90 degrees), a horizontal one in bin 0."""
    frame = torch.zeros(1, 3, 16, 16)
    frame[..., 4:] = 1.0
    assert hog(frame)[0, 0, :, 0, 0].argmax() == 4
    assert hog(frame.transpose(-1, -2))[0, 0, :, 0, 0].argmax() == 0
    assert hog(-frame.transpose(-1, -2))[0, 0, :, 0, 0].argmax() == 0  # unsigned
    assert not hog(torch.ones(1, 3, 16, 16)).any()


def test_hog_targets_are_those_of_the_first_frames_of_each_token():
    video = random_video(2, 3, 8, 32, 64)
    target = hog_targets(video, (4, 2, 4))
    assert target.shape == (2, 4, 1, 2, 4, 108)
    cells = hog(video[1:2, :, 4])[0]  # the first frame of token frame 2
    expected = cells[:, :, 2:4, 4:6].reshape(-1)
    torch.testing.assert_close(target[1, 2, 0, 1, 2], expected)
    changed = video.clone()
    changed[:, :, 1::2] += random_video(2, 3, 4, 32, 64, seed=1)  # the second frame of each tubelet does not matter
    assert torch.equal(hog_targets(changed, (4, 2, 4)), target)
    both = hog_targets(video, (4, 2, 4), target_frames=2)
    assert torch.equal(both[:, :, :1], target) and not torch.equal(both[:, :, 1:], target)
    torch.testing.assert_close(both[:, :, 1:], hog_targets(video.roll(-1, dims=2), (4, 2, 4)))


def test_hog_refuses_wrong_sizes_and_gradients():
    video = random_video(2, 3, 8, 32, 64)
    with pytest.raises(ValueError, match="cover no whole HOG cells"):
        hog_targets(video, (4, 8, 16))
    with pytest.raises(ValueError, match="gradient='scharr'"):
        hog(video[:, :, 0], gradient="scharr")
    with pytest.raises(ValueError, match="HOG cells of 8 pixels do not divide"):
        hog(video[:, :, 0, :30])
