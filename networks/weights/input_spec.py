"""The clips that a checkpoint was trained on and its published test, as far as its files and its format tell."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from networks.weights.formats import Format


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The input of a network and its test; None or "" is unknown. mean and std are in units of 0 to 1.

    `published` names the fields that the file itself does not tell: they are what its project published.
    """

    num_frames: int | None = None
    frame_stride: int | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    preset: str = ""
    published: frozenset[str] = frozenset()


def own_input_spec(own_input: Mapping[str, Any]) -> InputSpec:
    """Return what the input section of this project's config.json tells. Raises ValueError for unexpected values."""
    numbers: dict[str, Any] = {key: own_input.get(key) for key in ("num_frames", "frame_stride", "image_size")}
    numbers["image_size"] = square_size(numbers["image_size"])
    for key, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(f"config.json: input.{key}={value!r}: expected a whole number")
    return InputSpec(
        **numbers,
        mean=channel_values(own_input.get("mean")),
        std=channel_values(own_input.get("std")),
        preset=str(own_input.get("preset") or ""),
    )


def foreign_input_spec(
    file_format: Format | None, statistics: Mapping[str, Any], kwargs: Mapping[str, Any], published: Iterable[str]
) -> InputSpec:
    """Return what a format, mean and std, and the arguments of its network (num_frames, image_size) tell."""
    num_frames = kwargs.get("num_frames")
    return InputSpec(
        num_frames=num_frames,
        frame_stride=file_format.frame_strides.get(num_frames) if file_format and num_frames else None,
        image_size=square_size(kwargs.get("image_size")),
        mean=channel_values(statistics.get("mean")),
        std=channel_values(statistics.get("std")),
        preset=file_format.preset if file_format and num_frames else "",
        published=frozenset({"frame_stride", "preset", *published}),
    )


def square_size(image_size: Any) -> Any:
    """Return the side of a square (height, width); a number as it is; None for any other shape."""
    if isinstance(image_size, list | tuple):
        return image_size[0] if len(set(map(str, image_size))) == 1 else None
    return image_size


def channel_values(values: Any) -> tuple[float, ...] | None:
    """Return three numbers as a tuple, None for anything else."""
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    return tuple(float(value) for value in values)
