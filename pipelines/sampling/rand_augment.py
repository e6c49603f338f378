"""RandAugment, color jitter and grayscale for training clips: drawn in Python per clip, computed by DALI.

data.rand_augment is written as in timm and SlowFast, without the names of the operations:

    m7-n4-mstd0.5     4 operations, each applied with probability 0.5 (p0.5), at magnitude 7 of 10 with a normal
                      standard deviation of 0.5; the effect always increases with the magnitude (timm's inc1, which may
                      be written, too)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 101  # magnitudes 0 to 10 in steps of 0.1
OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
IDENTITY = len(OPERATIONS)
_FIELDS = {"m": "magnitude", "n": "num_operations", "mstd": "magnitude_std", "p": "probability"}


@dataclass(frozen=True, kw_only=True)
class AugmentPolicy:
    """The distribution from which the augmentation of a clip is drawn."""

    num_operations: int = 0  # of RandAugment
    magnitude: float = 0.0  # mean, 0 to 10
    magnitude_std: float = 0.0
    probability: float = 0.5  # of each operation; otherwise nothing is done
    color_jitter: float = 0.0  # s: brightness, contrast and saturation are multiplied by 1 - s to 1 + s
    grayscale: float = 0.0  # probability

    def __bool__(self) -> bool:
        """Return whether anything may be changed."""
        return bool(self.num_operations or self.changes_color)

    @property
    def changes_color(self) -> bool:
        """Return whether the color of a clip may be changed beside RandAugment."""
        return bool(self.color_jitter or self.grayscale)

    @property
    def ndims(self) -> list[int]:
        """Return the number of dimensions of each array that draw() returns."""
        return [1] * self.changes_color + [2] * bool(self.num_operations)

    def draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw the augmentation of one clip: arrays for color and for RandAugment, each only if it is in use.

        Color is (3,) float32: factors of brightness, contrast and saturation. RandAugment is (3, num_operations)
        float32: index into OPERATIONS or IDENTITY, magnitude in bins, sign.
        """
        arrays = []
        if self.changes_color:
            factors = rng.uniform(1 - self.color_jitter, 1 + self.color_jitter, 3)
            arrays.append(np.where(rng.random() < self.grayscale, [1, 1, 0], 1) * factors)
        if self.num_operations:
            n = self.num_operations
            operation = np.where(rng.random(n) < self.probability, rng.integers(len(OPERATIONS), size=n), IDENTITY)
            magnitude = np.clip(rng.normal(self.magnitude, self.magnitude_std, n), 0, 10) * (BINS - 1) / 10
            arrays.append(np.stack([operation, np.round(magnitude), rng.integers(2, size=n)]))
        return [array.astype(np.float32) for array in arrays]


def parse_policy(text: str, color_jitter: float = 0.0, grayscale: float = 0.0) -> AugmentPolicy:
    """Parse data.rand_augment. Raises ValueError that says what was expected."""
    values: dict[str, Any] = {}
    for part in text.split("-") if text else ():
        match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", part)
        if not match and part != "rand":
            raise ValueError(f"data.rand_augment={text}: '{part}' is none of m7, n4, mstd0.5, p0.5, inc1")
        if match and match[1] in _FIELDS:
            values[_FIELDS[match[1]]] = float(match[2])
    if text and not {"magnitude", "num_operations"} <= values.keys():
        raise ValueError(f"data.rand_augment={text}: expected a magnitude and a number, as in m7-n4-mstd0.5")
    if not (0 <= values.get("magnitude", 0) <= 10 and float(values.get("num_operations", 1)).is_integer()):
        raise ValueError(
            f"data.rand_augment={text}: expected a magnitude from 0 to 10 and a whole number of operations"
        )
    if not 0 <= values.get("probability", 0.5) <= 1:
        raise ValueError(f"data.rand_augment={text}: expected a probability p from 0 to 1")
    num_operations = int(values.pop("num_operations", 0))
    return AugmentPolicy(num_operations=num_operations, **values, color_jitter=color_jitter, grayscale=grayscale)


def apply_policy(
    clip: Any, arrays: Sequence[Any], policy: AugmentPolicy, *, size: int, fill: tuple[int, int, int]
) -> Any:
    """Augment a clip (T, H, W, 3) uint8 RGB as drawn, inside a DALI pipeline with conditionals.

    `arrays` are what draw() returned. Pixels that move into the frame have the mean of `fill`. Statistics
    (auto_contrast, equalize, contrast) are computed per frame, as in the projects that augment frame by frame.
    """
    from nvidia.dali import fn, types  # here, because decode workers import this module and must stay free of DALI
    from nvidia.dali.auto_aug import augmentations
    from nvidia.dali.auto_aug.core import signed_bin
    from nvidia.dali.auto_aug.core._select import select

    if policy.changes_color:
        factors = arrays[0]
        clip = augmentations.contrast.op(fn.brightness(clip, brightness=factors[0]), factors[1])
        clip = fn.saturation(clip, saturation=factors[2])
    operations: list[Any] = _dali_operations() if policy.num_operations else []
    drawn: Any = fn.cast(arrays[-1], dtype=types.INT32) if policy.num_operations else None
    for level in range(policy.num_operations):
        clip = select(
            operations,
            drawn[0, level],
            data=clip,
            magnitude_bin=signed_bin(drawn[1, level], random_sign=drawn[2, level]),
            num_magnitude_bins=BINS,
            shape=(size, size),
            fill_value=round(sum(fill) / 3),
            interp_type=types.INTERP_LINEAR,
        )
    return clip


def _dali_operations() -> list[Any]:
    """Return DALI's augmentations in the order of OPERATIONS, with the ranges of timm's inc1; last the identity."""
    from nvidia.dali import fn
    from nvidia.dali.auto_aug import augmentations
    from nvidia.dali.auto_aug.core import augmentation

    operations = {name: getattr(augmentations, name) for name in OPERATIONS}
    for name in ("translate_x", "translate_y"):
        operations[name] = operations[name].augmentation(mag_range=(0, 0.45))
    operations["posterize"] = operations["posterize"].augmentation(
        mag_range=(4, 0), mag_to_param=lambda bits: augmentations.poster_mask_uint8(np.ceil(bits))
    )
    # DALI's own equalize and sharpness call operators by deprecated names and print a warning for every pipeline.
    operations["equalize"] = augmentation(lambda data, _: fn.equalize(data), name="equalize")
    operations["sharpness"] = augmentation(
        lambda data, kernel: fn.filter(data, kernel),
        mag_range=(0, 0.9),
        randomly_negate=True,
        mag_to_param=augmentations.sharpness_kernel,
        param_device="auto",
        name="sharpness",
    )
    return [*operations.values(), augmentations.identity]
