"""Views that PyAV decodes: mirrored ones, and crops of one scaled frame."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.decode import pyav_decoder
from pipelines.decode.pyav_decoder import decode_views
from pipelines.sampling.spatial import full_frame, scaled_size, view_boxes

FRAMES = np.array([[3, 9, 15, 15]])


@pytest.mark.parametrize("letterbox", [None, (1, 2, 3)])
@pytest.mark.parametrize("size", [31, 32])
def test_mirrored_views_are_those_of_the_box_from_right_to_left(video, letterbox, size):
    path = str(video("h264_bframes", 40, 64, 80))
    boxes = np.stack([full_frame(64, 80), full_frame(64, 80)])
    plain = decode_views(path, FRAMES, boxes, size, letterbox=letterbox)
    mirrored = decode_views(path, FRAMES, boxes, size, letterbox=letterbox, mirror=np.array([0, 1]))
    assert np.array_equal(mirrored[0], plain[0]) and not np.array_equal(mirrored[1], plain[1])
    assert np.array_equal(mirrored[1], plain[1][..., ::-1]), "the borders of a letterbox too"


def test_crops_of_a_scaled_frame_are_scaled_once_and_are_the_same_alone(video, monkeypatch):
    path = str(video("h264_bframes", 40, 96, 64))
    boxes = view_boxes(96, 64, 32, 32, 3)
    counted: list[int] = []
    scale = pyav_decoder._scale
    monkeypatch.setattr(pyav_decoder, "_scale", lambda *args: counted.append(1) or scale(*args))
    together = decode_views(path, FRAMES, boxes, 32, scaled_size=scaled_size(96, 64, 32))
    assert len(counted) == 3, "one for each distinct frame"
    whole = decode_views(path, FRAMES, full_frame(96, 64)[None], 48, letterbox=(0, 0, 0))[0, :, :, 8:40]
    for number, left in enumerate((0, 8, 16)):
        alone = decode_views(path, FRAMES, boxes[number : number + 1], 32, scaled_size=scaled_size(96, 64, 32))
        assert np.array_equal(alone[0], together[number])
        assert np.array_equal(alone[0], whole[..., left : left + 32]), "that part of the scaled frame"
