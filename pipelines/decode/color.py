"""Colors: how RGB that was made with BT.601's matrix becomes that of the matrix which a file names."""

from __future__ import annotations

import numpy as np

BT601 = (0.299, 0.114)
# The shares of red and blue in luma (ITU-T H.273, table 4), by the names of `Row.colorspace`.
LUMA = {"bt709": (0.2126, 0.0722), "fcc": (0.30, 0.11), "smpte240m": (0.212, 0.087), "bt2020": (0.2627, 0.0593)}


def rgb_of_luma(red: float, blue: float) -> np.ndarray:
    """(3, 3): luma in 0..1 and two differences in -0.5..0.5 -> RGB in 0..1 (BT.601, section 2.5)."""
    green = 1 - red - blue
    return np.array([
        [1, 0, 2 * (1 - red)],
        [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
        [1, 2 * (1 - blue), 0],
    ])  # fmt: skip


def correction(colorspace: str) -> np.ndarray:
    """(3, 3) float32 that turns RGB made with BT.601's matrix into RGB made with the file's; it is the same for full
    and limited range. Nothing to correct: exactly the identity."""
    if colorspace not in LUMA:
        return np.eye(3, dtype=np.float32)
    return (rgb_of_luma(*LUMA[colorspace]) @ np.linalg.inv(rgb_of_luma(*BT601))).astype(np.float32)
