"""Write videos of any encoder, pixel format and color matrix, for the tests that choose a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from pipelines.synthetic import render

OPTIONS = {
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0"},
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "pools=none:frame-threads=1:log-level=none"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
}


def smooth_image(width: int, height: int) -> np.ndarray:
    """Return an image (H, W, 3) uint8 of saturated colors that change slowly, so that encoding loses little of them."""
    y, x = np.mgrid[:height, :width]
    waves = np.sin(y / 97 + x / 153), np.cos(y / 81), np.sin(x / 161 - y / 79)
    return np.stack([128 + 80 * wave for wave in waves], axis=-1).astype(np.uint8)


def write_video(
    path: Path,
    encoder: str,
    width: int,
    height: int,
    *,
    pix_fmt: str = "yuv420p",
    num_frames: int = 24,
    seed: int = 0,
    colorspace: Colorspace = Colorspace.ITU601,
    color_range: ColorRange = ColorRange.MPEG,
    still: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a moving texture; with `still` every frame is smooth_image()."""
    if still:
        video = np.broadcast_to(smooth_image(width, height), (num_frames, height, width, 3))
    else:
        video = render(seed % 6, 0, seed, num_frames, width, height)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=30, options=OPTIONS.get(encoder, {}) | (options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = 12
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        for image in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range)
            frame.colorspace, frame.color_range = colorspace, color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_ffv1(
    path: Path,
    width: int,
    height: int,
    *,
    pix_fmt: str = "yuv420p",
    num_frames: int = 20,
    times: Sequence[int] | None = None,
) -> None:
    """Write FFV1 in Matroska, which allows any size and pixel format; `times` are in frames."""
    with av.open(str(path), "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for number in range(num_frames):
            image = np.full((height, width, 3), number * 5 % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(image).reformat(format=pix_fmt)
            frame.pts, frame.time_base = (times or range(num_frames))[number], Fraction(1, 30)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
