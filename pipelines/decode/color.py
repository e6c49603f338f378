"""Correct RGB that was converted with BT.601's matrix for the matrix that the file states."""

from __future__ import annotations

import numpy as np

# Names by AVColorSpace. RGB, unspecified and everything with BT.601's matrix have the empty name.
_COLORSPACES = {0: "", 2: "", 5: "", 6: "", 1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020"}
_BT601 = (0.299, 0.114)
# Weights of red and blue in luma (ITU-T H.273, table 4), by the names of `VideoInfo.colorspace`.
LUMA_WEIGHTS = {"bt709": (0.2126, 0.0722), "fcc": (0.30, 0.11), "smpte240m": (0.212, 0.087), "bt2020": (0.2627, 0.0593)}


def name_colorspace(number: int) -> str:
    """Return the name that `VideoInfo.colorspace` has for a value of AVColorSpace; "other" for an unknown matrix."""
    return _COLORSPACES.get(number, "other")


def ycbcr_to_rgb(red: float, blue: float) -> np.ndarray:
    """Return the (3, 3) matrix from luma in 0..1 and chroma in -0.5..0.5 to RGB in 0..1 (BT.601, section 2.5).

    `red` and `blue` are their weights in luma.
    """
    green = 1 - red - blue
    return np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [1, 2 * (1 - blue), 0],
        ]
    )


def correction(colorspace: str) -> np.ndarray:
    """Return the (3, 3) float32 matrix from RGB converted with BT.601's matrix to RGB converted with the file's.

    It is the same for full and limited range. Where nothing is to be corrected it is exactly the identity.
    """
    if colorspace not in LUMA_WEIGHTS:
        return np.eye(3, dtype=np.float32)
    return (ycbcr_to_rgb(*LUMA_WEIGHTS[colorspace]) @ np.linalg.inv(ycbcr_to_rgb(*_BT601))).astype(np.float32)
