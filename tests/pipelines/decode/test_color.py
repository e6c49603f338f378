"""color: DALI and PyAV give the same RGB for files of any matrix and range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from configs import loading
from pipelines.decode.color import LUMA, correction, rgb_of_luma
from pipelines.decode.video_info import read_row
from pipelines.loader import build_loader
from tests.helpers.videos import smooth, write_video
from utils.distributed import World

TOLERANCE = 1.5  # mean difference of 255: what coding and two scalers differ by


def test_only_what_is_not_bt601_is_corrected() -> None:
    assert np.array_equal(correction(""), np.eye(3)) and np.array_equal(correction("rgb"), np.eye(3))
    for name in LUMA:
        matrix = correction(name)
        assert matrix[0, 0] != 1, "by which the graph knows that there is something to do"
        assert matrix.sum(1) == pytest.approx(1, abs=1e-6), "gray stays gray"


def test_the_matrices_are_those_of_the_standards() -> None:
    assert rgb_of_luma(0.299, 0.114) == pytest.approx(
        np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]]), abs=1e-5
    )
    assert rgb_of_luma(0.2126, 0.0722) == pytest.approx(
        np.array([[1, 0, 1.5748], [1, -0.187324, -0.468124], [1, 1.8556, 0]]), abs=1e-5
    )


@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("colorspace", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("size", [(320, 192), (1280, 720)])
def test_dali_and_pyav_give_the_colors_that_the_file_says(
    tmp_path: Path, size: tuple[int, int], colorspace: Colorspace, color_range: ColorRange
) -> None:
    path = write_video(
        tmp_path / "a.mp4", "libvpx-vp9", *size, frames=2, still=True, colorspace=colorspace, color_range=color_range
    )
    assert read_row(str(path)).colorspace == ("bt709" if colorspace is Colorspace.ITU709 else "")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    picture = torch.from_numpy(smooth(*size)).permute(2, 0, 1)[None].float()
    top, left = 0, (size[0] - size[1]) // 2
    square = picture[..., top:, left : left + size[1]]
    expected = torch.nn.functional.interpolate(square, (112, 112), mode="bilinear", antialias=True)[0]
    for decoder in ("dali", "host"):
        cfg = loading.load(None, [
            f"data.val={tmp_path}/list.txt", "data.frames=1", "data.size=112", "data.batch=1", "data.workers=0",
            f"data.decoder={decoder}",
        ])  # fmt: skip
        clip = next(iter(build_loader(cfg, "val", ["0"], World(), torch.device("cpu")))).video[0, 0, :, 0]
        rgb = 255 * (clip * 0.225 + 0.45)
        assert (rgb - expected).abs().mean() < TOLERANCE, decoder
