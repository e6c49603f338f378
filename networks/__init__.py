"""Tensors in, tensors out. `build(name, num_classes=...)` makes a network; it knows nothing of pipelines."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from networks.timesformer import timesformer_b, timesformer_l, timesformer_tiny
from networks.vivit import vivit_b, vivit_fe_b, vivit_fe_tiny, vivit_l, vivit_tiny

VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "timesformer_tiny": timesformer_tiny,
    "timesformer_b": timesformer_b,
    "timesformer_l": timesformer_l,
    "vivit_tiny": vivit_tiny,
    "vivit_b": vivit_b,
    "vivit_l": vivit_l,
    "vivit_fe_tiny": vivit_fe_tiny,
    "vivit_fe_b": vivit_fe_b,
}


def build(name: str, **kwargs: Any) -> nn.Module:
    """build("vivit_tiny", num_classes=10): `kwargs` are constructor arguments and win over the variant's."""
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown network {name!r}: did you mean {near!r}? Known: {', '.join(VARIANTS)}")
    return VARIANTS[name](**kwargs)
