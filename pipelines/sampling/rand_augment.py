"""RandAugment, colour jitter and grey for training clips: drawn in Python, one policy a clip, computed by DALI.

data.rand_augment is written as in timm and SlowFast, without the operations' names:

    m7-n4-mstd0.5     four operations, each applied with probability 0.5 (p0.5), at magnitude 7 of 10 with a normal
                      spread of 0.5; stronger with the magnitude (timm's inc1, which may be added and is always meant)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 101  # magnitudes 0 to 10 in steps of 0.1
OPERATIONS = (
    "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
IDENTITY = len(OPERATIONS)
_KEYS = {"m": "magnitude", "n": "operations", "mstd": "spread", "p": "probability"}


@dataclass(frozen=True)
class Augment:
    """What may happen to a clip. jitter s: brightness, contrast and saturation by factors of 1 - s to 1 + s."""

    operations: int = 0
    magnitude: float = 0.0
    spread: float = 0.0
    probability: float = 0.5
    jitter: float = 0.0
    grey: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.operations or self.jitter or self.grey)

    @property
    def shapes(self) -> list[int]:
        """Dimensions of each array that draw() returns."""
        return [1] * bool(self.jitter or self.grey) + [2] * bool(self.operations)

    def draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """For one clip, each only if it may do something: colour (3,) float32, brightness, contrast and saturation as
        factors; policy (3, n) float32, operation, magnitude in bins and sign."""
        drawn = []
        if self.jitter or self.grey:
            colour = rng.uniform(1 - self.jitter, 1 + self.jitter, 3)
            drawn.append(np.where(rng.random() < self.grey, [1, 1, 0], 1) * colour)
        if self.operations:
            n = self.operations
            operation = np.where(rng.random(n) < self.probability, rng.integers(len(OPERATIONS), size=n), IDENTITY)
            magnitude = np.clip(rng.normal(self.magnitude, self.spread, n), 0, 10) * (BINS - 1) / 10
            drawn.append(np.stack([operation, np.round(magnitude), rng.integers(2, size=n)]))
        return [array.astype(np.float32) for array in drawn]


def parse(text: str, jitter: float = 0.0, grey: float = 0.0) -> Augment:
    """The notation above -> Augment; ValueError says what was expected."""
    values: dict[str, Any] = {}
    for part in text.split("-") if text else ():
        match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", part)
        if not match and part != "rand":
            raise ValueError(f"data.rand_augment={text}: '{part}' is none of m7, n4, mstd0.5, p0.5, inc1")
        if match and match[1] in _KEYS:
            values[_KEYS[match[1]]] = float(match[2])
    if text and not {"magnitude", "operations"} <= values.keys():
        raise ValueError(f"data.rand_augment={text}: expected a magnitude and a number, as in m7-n4-mstd0.5")
    if not (0 <= values.get("magnitude", 0) <= 10 and float(values.get("operations", 1)).is_integer()):
        raise ValueError(f"data.rand_augment={text}: the magnitude is 0 to 10, the number of operations whole")
    if not 0 <= values.get("probability", 0.5) <= 1:
        raise ValueError(f"data.rand_augment={text}: p is a probability, 0 to 1")
    operations = int(values.pop("operations", 0))
    return Augment(operations=operations, **values, jitter=jitter, grey=grey)


def augmented(clip: Any, drawn: Sequence[Any], augment: Augment, size: int, fill: tuple[int, int, int]) -> Any:
    """(T, H, W, 3) uint8 RGB, DALI's FHWC -> the same, as `drawn` says, in a graph with conditionals.

    What moves out of the frame leaves `fill`, its mean, behind. Statistics (auto_contrast, equalize, contrast) are of
    each frame, as in the projects that augment frame by frame.
    """
    from nvidia.dali import fn, types  # here: decode workers import this module, and not DALI
    from nvidia.dali.auto_aug import augmentations as known
    from nvidia.dali.auto_aug.core import signed_bin
    from nvidia.dali.auto_aug.core._select import select

    if augment.jitter or augment.grey:
        colour = drawn[0]
        clip = known.contrast.op(fn.brightness(clip, brightness=colour[0]), colour[1])
        clip = fn.saturation(clip, saturation=colour[2])
    suite: list[Any] = _suite() if augment.operations else []
    policy: Any = fn.cast(drawn[-1], dtype=types.INT32) if augment.operations else None
    for level in range(augment.operations):
        bins = signed_bin(policy[1, level], random_sign=policy[2, level])
        clip = select(
            suite, policy[0, level], data=clip, magnitude_bin=bins, num_magnitude_bins=BINS, shape=(size, size),
            fill_value=round(sum(fill) / 3), interp_type=types.INTERP_LINEAR,
        )  # fmt: skip
    return clip


def _suite() -> list[Any]:
    """DALI's augmentations in the order of OPERATIONS, with the ranges of timm's increasing ones; then the identity."""
    from nvidia.dali import fn
    from nvidia.dali.auto_aug import augmentations as known
    from nvidia.dali.auto_aug.core import augmentation

    suite = {name: getattr(known, name) for name in OPERATIONS}
    suite |= {name: suite[name].augmentation(mag_range=(0, 0.45)) for name in ("translate_x", "translate_y")}
    suite["posterize"] = suite["posterize"].augmentation(
        mag_range=(4, 0), mag_to_param=lambda bits: known.poster_mask_uint8(np.ceil(bits))
    )
    # DALI's own call these by names that it has deprecated, and warn for every clip's graph
    suite["equalize"] = augmentation(lambda data, _: fn.equalize(data), name="equalize")
    suite["sharpness"] = augmentation(
        lambda data, kernel: fn.filter(data, kernel), mag_range=(0, 0.9), randomly_negate=True,
        mag_to_param=known.sharpness_kernel, param_device="auto", name="sharpness",
    )  # fmt: skip
    return [*suite.values(), known.identity]
