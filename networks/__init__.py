"""Networks: clips in, logits out, independent of the input pipeline. `build(name, num_classes=...)` makes one."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from networks.hiera_mae import mae_hiera_b, mae_hiera_b_plus, mae_hiera_h, mae_hiera_l, mae_hiera_tiny
from networks.jepa import pretrain_vjepa2_g, pretrain_vjepa2_h, pretrain_vjepa2_l, pretrain_vjepa2_tiny
from networks.maskfeat import maskfeat_mvit_v1_b, maskfeat_mvit_v2_s, maskfeat_tiny
from networks.probed_encoder import probe_grid, probed_encoder
from networks.variants import VARIANTS as VARIANTS
from networks.videomae import (
    pretrain_videomae_b,
    pretrain_videomae_g,
    pretrain_videomae_h,
    pretrain_videomae_l,
    pretrain_videomae_s,
    pretrain_videomae_tiny,
)

Variants = dict[str, Callable[..., nn.Module]]


def _by_name(*variants: Callable[..., nn.Module]) -> Variants:
    return {variant.__name__: variant for variant in variants}


# The networks of each task without labels.
PRETRAINING_TASKS: dict[str, Variants] = {
    "maskfeat": _by_name(maskfeat_mvit_v1_b, maskfeat_mvit_v2_s, maskfeat_tiny),
    "mae": _by_name(
        pretrain_videomae_tiny,
        pretrain_videomae_s,
        pretrain_videomae_b,
        pretrain_videomae_l,
        pretrain_videomae_h,
        pretrain_videomae_g,
        mae_hiera_tiny,
        mae_hiera_b,
        mae_hiera_b_plus,
        mae_hiera_l,
        mae_hiera_h,
    ),
    "jepa": _by_name(pretrain_vjepa2_tiny, pretrain_vjepa2_l, pretrain_vjepa2_h, pretrain_vjepa2_g),
}
PRETRAINING: Variants = {name: build for variants in PRETRAINING_TASKS.values() for name, build in variants.items()}
PROBING = _by_name(probe_grid, probed_encoder)


def build(name: str, **kwargs: Any) -> nn.Module:
    """Build a network by name; `kwargs` are constructor arguments and take precedence over the variant's.

    Raises ValueError for an unknown name, and for arguments that do not fit together.
    """
    variants = VARIANTS | PRETRAINING | PROBING
    if name not in variants:
        raise unknown_network(name)
    return variants[name](**kwargs)


def unknown_network(name: str) -> ValueError:
    """Return the error for a name that is none, with the nearest one."""
    variants = VARIANTS | PRETRAINING
    nearest = difflib.get_close_matches(name, variants, n=1, cutoff=0.0)[0]
    return ValueError(f"unknown network {name!r}: did you mean {nearest!r}? Expected one of {', '.join(variants)}")
