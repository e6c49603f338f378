"""color: DALI and PyAV give the same RGB for files of any color matrix and range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from configs import loading
from pipelines.decode.color import LUMA_WEIGHTS, correction, ycbcr_to_rgb
from pipelines.decode.video_info import read_video_info
from tests.helpers.loaders import build_loader
from tests.helpers.videos import smooth_image, write_video

TOLERANCE = 1.5  # mean difference out of 255, from encoding and two scalers


def test_correction_is_identity_only_for_bt601() -> None:
    assert np.array_equal(correction(""), np.eye(3)) and np.array_equal(correction("rgb"), np.eye(3))
    for name in LUMA_WEIGHTS:
        matrix = correction(name)
        assert matrix[0, 0] != 1, "the DALI graph reads this element to see whether there is anything to correct"
        assert matrix.sum(1) == pytest.approx(1, abs=1e-6), "gray stays gray"


def test_ycbcr_to_rgb_equals_published_matrices() -> None:
    assert ycbcr_to_rgb(0.299, 0.114) == pytest.approx(
        np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]]), abs=1e-5
    )
    assert ycbcr_to_rgb(0.2126, 0.0722) == pytest.approx(
        np.array([[1, 0, 1.5748], [1, -0.187324, -0.468124], [1, 1.8556, 0]]), abs=1e-5
    )


@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("colorspace", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("size", [(320, 192), (1280, 720)])
def test_dali_and_pyav_decode_colors_as_file_states(
    tmp_path: Path, size: tuple[int, int], colorspace: Colorspace, color_range: ColorRange
) -> None:
    path = write_video(
        tmp_path / "a.mp4",
        "libvpx-vp9",
        *size,
        num_frames=2,
        still=True,
        colorspace=colorspace,
        color_range=color_range,
    )
    assert read_video_info(str(path)).colorspace == ("bt709" if colorspace is Colorspace.ITU709 else "")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    image = torch.from_numpy(smooth_image(*size)).permute(2, 0, 1)[None].float()
    left = (size[0] - size[1]) // 2
    square = image[..., left : left + size[1]]
    expected = torch.nn.functional.interpolate(square, (112, 112), mode="bilinear", antialias=True)[0]
    for decoder in ("dali", "pyav"):
        cfg = loading.load_config(
            None,
            [
                f"data.val={tmp_path}/list.txt",
                "data.num_frames=1",
                "data.image_size=112",
                "data.batch_size=1",
                "data.num_workers=0",
                f"data.decoder={decoder}",
            ],
        )
        clip = next(iter(build_loader(cfg, "val", ["0"]))).video[0, 0, :, 0]
        rgb = 255 * (clip * 0.225 + 0.45)
        assert (rgb - expected).abs().mean() < TOLERANCE, decoder
