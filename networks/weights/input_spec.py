"""The clips that a checkpoint was trained on and its published test, as far as its files and its format tell."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from networks.weights.formats import Format

KINETICS_CLASSES = (400, 600, 700, 710)  # 710: those of all three, merged


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The input of a network and its test; None or "" is unknown. mean and std are in units of 0 to 1.

    The file itself does not tell all fields: `published` names those that its project published, `assumed` those that
    most networks of its kind have.
    """

    num_frames: int | None = None
    frame_stride: int | None = None
    fps: float | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    preset: str = ""
    published: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()


def own_input_spec(own_input: Mapping[str, Any]) -> InputSpec:
    """Return what the input section of this project's config.json tells. Raises ValueError for unexpected values."""
    keys = ("num_frames", "frame_stride", "image_size", "fps")
    numbers: dict[str, Any] = {key: own_input.get(key) for key in keys}
    numbers["image_size"] = square_size(numbers["image_size"])
    for key, value in numbers.items():
        types, least = (int | float if key == "fps" else int), (0 if key in ("frame_stride", "fps") else 1)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types) or value < least):
            raise ValueError(f"config.json: input.{key}={value!r}: expected a number >= {least}")
    return InputSpec(
        **numbers,
        mean=channel_values(own_input.get("mean")),
        std=channel_values(own_input.get("std")),
        preset=str(own_input.get("preset") or ""),
    )


def foreign_input_spec(
    file_format: Format | None,
    statistics: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    assumed: Collection[str] = (),
) -> InputSpec:
    """Return what a format, mean and std, and the arguments of its network (num_frames, image_size) tell.

    What was published on Kinetics is left out for a head of `num_classes` that no Kinetics has.
    """
    published: set[str] = set()
    num_frames, test = kwargs.get("num_frames"), dict[str, Any]()
    if file_format and num_frames and num_classes in (None, *KINETICS_CLASSES):
        if num_classes is None and file_format.probe_num_frames:
            num_frames, published = file_format.probe_num_frames, {"num_frames"}
        stride = file_format.frame_strides.get(num_frames)
        test = {"frame_stride": stride, "fps": file_format.fps if stride else None, "preset": file_format.preset}
    return InputSpec(
        num_frames=num_frames,
        image_size=square_size(kwargs.get("image_size")),
        mean=channel_values(statistics.get("mean")),
        std=channel_values(statistics.get("std")),
        **test,
        published=frozenset({"frame_stride", "fps", "preset", *published}),
        assumed=frozenset(assumed) - published,
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
    if not all(isinstance(value, int | float) for value in values):
        return None
    return tuple(float(value) for value in values)
