"""Figures: every frame and every title of a strip is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from utils.plotting import draw_strips


@pytest.mark.figures
def test_strips_draw_every_frame_in_its_row_under_a_title():
    colors = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40 + 20  # one gray level per frame
    frames = np.broadcast_to(colors[:, :, None, None, None], (2, 3, 30, 40, 3))
    figure = draw_strips(frames, ["first", "second"])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., 0]
    centers = {level: np.argwhere(image == level).mean(0) for level in colors.ravel()}
    rows, columns = (np.array([centers[level][axis] for level in colors.ravel()]).reshape(2, 3) for axis in (0, 1))
    assert np.ptp(rows, axis=1).max() < 1 and rows[1, 0] > rows[0, 0] + 30, "frames of a clip are in one row"
    assert (np.diff(columns, axis=1) > 40).all() and np.ptp(columns, axis=0).max() < 1, "in the order of time"
    assert [text.get_text() for text in figure.axes[0].texts] == ["first", "second"]
