"""Checks and normal forms of what networks are given: their arguments, which may come from YAML or JSON, and clips."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

FRACTIONS = ("mlp_ratio", "norm_eps", "head_scale", "attn_softcap")  # positive arguments that may be fractions

POOLING = ("cls", "mean", "fc_norm")

Grid = tuple[int, int, int]  # frames, rows, columns


def jsonable_kwargs(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a constructor's locals() as keyword arguments that survive JSON: lists for tuples, without self."""

    def to_json(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: to_json(item) for key, item in value.items()}
        return [to_json(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: to_json(value) for key, value in arguments.items() if key not in ("self", "__class__")}


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the value of an argument is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{key}={value!r}: expected one of {', '.join(choices)}")


def check_bool(key: str, value: bool) -> None:
    """Raise ValueError unless the value of an argument, which may come from YAML or JSON, is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value!r}: expected true or false")


def check_positive(**numbers: float) -> None:
    """Raise ValueError unless all arguments are numbers > 0; whole ones, except for those in FRACTIONS."""
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key}={value!r}: expected a number")
        if value <= 0:
            raise ValueError(f"{key}={value}: must be > 0")
        if key not in FRACTIONS and not isinstance(value, int):
            raise ValueError(f"{key}={value}: expected a whole number")


def check_count(**numbers: int) -> None:
    """Raise ValueError unless all arguments are whole numbers >= 0."""
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{key}={value!r}: expected a whole number >= 0")


def check_pooling(pooling: str, cls_token: bool) -> None:
    """Raise ValueError for an unknown pooling, or if it needs a class token and the network has none."""
    check_choice("pooling", pooling, POOLING)
    check_bool("cls_token", cls_token)
    if pooling == "cls" and not cls_token:
        raise ValueError("pooling='cls' needs cls_token=True")


def check_input_shape(video: Tensor, input_shape: Sequence[int]) -> None:
    """Raise ValueError unless the clips of a batch have the shape (C, T, H, W) that a network takes."""
    if tuple(video.shape[1:]) != tuple(input_shape):
        expected = ", ".join(str(size) for size in input_shape)
        raise ValueError(f"video of shape {tuple(video.shape)}: this network takes (B, {expected})")


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) from one number for both, or from a pair; JSON makes it a list."""
    if isinstance(image_size, int):
        return image_size, image_size
    if not isinstance(image_size, list | tuple) or len(image_size) != 2:
        raise ValueError(f"image_size={image_size!r}: expected one number or (height, width)")
    height, width = image_size
    return int(height), int(width)


def to_3tuple(key: str, numbers: Sequence[int]) -> Grid:
    """Return (t, h, w) from a tuple or from a list, as JSON makes it. Raises ValueError for anything else."""
    is_triple = isinstance(numbers, list | tuple) and len(numbers) == 3
    if not is_triple or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f"{key}={numbers!r}: expected three whole numbers of 1 or more, for frames, rows and columns")
    t, h, w = numbers
    return t, h, w


def check_odd(key: str, kernel: Grid) -> Grid:
    """Return the kernel, or raise ValueError for even sizes: they have no middle, so they would shift the grid."""
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"{key}={list(kernel)}: expected odd numbers")
    return kernel
