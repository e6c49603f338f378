"""A checkpoint format: how to recognize it by its keys, and how its keys are renamed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from networks.weights.key_rules import Rules

# Mean and std of the input that a project trains on.
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
INCEPTION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
KINETICS = {"mean": [0.45, 0.45, 0.45], "std": [0.225, 0.225, 0.225]}

# Strides and tests that projects publish figures on Kinetics with.
TIMESFORMER_TEST: dict[str, Any] = {"frame_strides": {8: 32, 16: 16, 96: 4}, "fps": 30, "preset": "timesformer"}
MMACTION2_TEST: dict[str, Any] = {**TIMESFORMER_TEST, "fps": None}
VIVIT_TEST: dict[str, Any] = {"frame_strides": {32: 2}, "preset": "vivit"}
MVIT_TEST: dict[str, Any] = {"frame_strides": {16: 4, 32: 3, 40: 3}, "preset": "mvit"}
VIDEOMAE_TEST: dict[str, Any] = {"frame_strides": {16: 4}, "preset": "videomae"}
VJEPA2_TEST: dict[str, Any] = {"probe_num_frames": 16, "frame_strides": {16: 4}, "preset": "vjepa2"}


@dataclass(frozen=True, kw_only=True)
class Format:
    """The checkpoints of one kind of network of one project.

    A file has the format if each of `required_keys` matches one of its keys, none of `forbidden_keys` does, and its
    patch kernel has `patch_kernel_ndim` dimensions (0: any number). Every key of the file must match one of `rules` or
    of `dropped_keys`, which maps a pattern to the reason.
    """

    name: str
    architecture: str  # one that infer_architecture knows, or image: a ViT, which can fill a timesformer or vivit
    required_keys: tuple[str, ...]
    forbidden_keys: tuple[str, ...] = ()
    patch_kernel_ndim: int = 0
    rules: Rules = field(default_factory=dict)
    dropped_keys: Mapping[str, str] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # constructor arguments that the keys do not show
    normalization: Mapping[str, list[float]] = field(default_factory=dict)
    # What was published on Kinetics:
    probe_num_frames: int | None = None  # frames of the probes of an encoder that was trained with any number of them
    frame_strides: Mapping[int, int] = field(default_factory=dict)  # by num_frames
    fps: float | None = None  # frame rate that these strides refer to, None for that of each file
    preset: str = ""  # the test, a key of configs.schema.PRESETS
    no_key_bias: bool = False  # the attention has biases of query and value only
    pretraining: bool = False
    missing_parts: tuple[str, ...] = ()  # parts of the network here that the project's network does not have
    notes: tuple[str, ...] = ()
