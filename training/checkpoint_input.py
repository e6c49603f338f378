"""Clips as a pretrained network wants them: what a configuration leaves open is taken from the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from configs import loading
from configs.combinations import check_combinations
from configs.schema import PRESETS, Config
from networks.weights.input_spec import InputSpec

CLIP_KEYS = ("num_frames", "frame_stride", "fps", "image_size", "mean", "std")
TEST_KEYS = ("preset", "num_clips", "num_crops", "clip_placement", "short_side")


def apply_input_spec(cfg: Config, spec: InputSpec) -> tuple[Config, list[str]]:
    """Take frames, stride, size, normalization and test from a checkpoint where the user, by file or command line, says
    nothing; also return lines that say what was taken and what differs from the checkpoint.

    Raises ValueError if what was taken contradicts a key that the user set.
    """
    known = {key: getattr(spec, key) for key in CLIP_KEYS if getattr(spec, key) is not None}
    given = cfg.data.model_fields_set
    if cfg.data.sampling == "tsn":
        known.pop("frame_stride", None)
    if "frame_stride" not in known or "frame_stride" in given:
        known.pop("fps", None)  # the frame rate that a stride refers to
    taken = {key: value for key, value in known.items() if key not in given}
    differing = {key: value for key, value in known.items() if key in given and getattr(cfg.data, key) != value}
    test = preset_values(cfg, spec.preset)
    lines = describe_taken(taken, spec, has_test=bool(test))
    for key, value in differing.items():
        how = "is assumed to want" if key in spec.assumed else "was trained with"
        how = "was published with" if key in spec.published else how
        set_value = format_value(getattr(cfg.data, key))
        lines.append(f"data.{key}={set_value} is set; the checkpoint {how} {format_value(value)}")
    changed = loading.replace_values(loading.replace_values(cfg, "data", **taken), "eval", **test)
    try:
        check_combinations(changed)
    except PydanticCustomError as error:
        raise ValueError(f"{error.message()} ({lines[0]})") from None
    return changed, lines


def describe_taken(taken: Mapping[str, Any], spec: InputSpec, *, has_test: bool) -> list[str]:
    """Return a line each for what the checkpoint itself tells, what was published with it and what is assumed."""
    texts = {key: f"data.{key}={format_value(value)}" for key, value in taken.items()}
    texts |= {"preset": f"eval.preset={spec.preset}"} if has_test else {}
    lines = {
        "taken from the checkpoint": [text for key, text in texts.items() if key not in spec.published | spec.assumed],
        "taken as published for the checkpoint": [text for key, text in texts.items() if key in spec.published],
        "assumed for the checkpoint": [text for key, text in texts.items() if key in spec.assumed],
    }
    return [f"{heading}: {', '.join(values)}" for heading, values in lines.items() if values]


def keep_saved_input(cfg: Config, saved: Config) -> Config:
    """Take the same keys from the saved configuration of a run that is resumed.

    Raises ValueError if they contradict a key that the user set.
    """
    data = {key: getattr(saved.data, key) for key in CLIP_KEYS if key not in cfg.data.model_fields_set}
    test = preset_values(cfg, saved.eval.preset)
    kept = loading.replace_values(loading.replace_values(cfg, "data", **data), "eval", **test)
    try:
        check_combinations(kept)
    except PydanticCustomError as error:
        raise ValueError(f"{error.message()} (the other values are those of the run that is resumed)") from None
    return kept


def preset_values(cfg: Config, preset: str) -> dict[str, Any]:
    """Return the values of a test preset, none if there is no such preset or the user set one of its keys."""
    if preset not in PRESETS or cfg.eval.model_fields_set & set(TEST_KEYS):
        return {}
    return {"preset": preset, **PRESETS[preset]}


def format_value(value: Any) -> str:
    """Write a value as on the command line."""
    return "[" + ",".join(f"{number:g}" for number in value) + "]" if isinstance(value, tuple) else str(value)
