"""Write folders of images, for the tests that read them as videos."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from pipelines.synthetic import render


def encode_image(pixels: np.ndarray, suffix: str = ".jpg", mode: str = "RGB", **options: Any) -> bytes:
    """Encode (H, W, 3) uint8 with PIL, the oracle of these tests, as JPEG or PNG."""
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert(mode)
    image.save(stream, "PNG" if suffix.lower() == ".png" else "JPEG", **options)
    return stream.getvalue()


def write_images(
    folder: Path, frames: Iterable[np.ndarray], suffix: str = ".jpg", pattern: str = "img_%05d", **options: Any
) -> Path:
    """Write frames, numbered from 1, into a new folder."""
    folder.mkdir(parents=True)
    for number, pixels in enumerate(frames, 1):
        (folder / f"{pattern % number}{suffix}").write_bytes(encode_image(pixels, suffix, **options))
    return folder


def moving_texture(num_frames: int, seed: int = 0, width: int = 160, height: int = 128) -> np.ndarray:
    """Return frames (T, H, W, 3) uint8."""
    return render(seed % 6, 0, seed, num_frames, width, height)


def frames_of(path: Path) -> list[np.ndarray]:
    """Return all frames of a video as RGB, (H, W, 3) uint8."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
