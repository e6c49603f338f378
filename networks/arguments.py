"""Constructor arguments of networks from the command line."""

import difflib
import inspect
import json
from collections.abc import Iterable, Sequence
from typing import Any

from networks.frame_encoder import FrameEncoder
from networks.hiera import Hiera
from networks.hiera_mae import HieraMAE
from networks.jepa import JEPA
from networks.maskfeat import MaskFeat
from networks.mvit import MViT
from networks.timesformer import TimeSformer
from networks.videomae import VideoMAE
from networks.videoprism import VideoPrism
from networks.vivit import ViViT
from networks.vjepa2 import VJEPA2

NETWORKS = (TimeSformer, ViViT, MViT, Hiera, VJEPA2, VideoPrism, FrameEncoder, MaskFeat, VideoMAE, HieraMAE, JEPA)
ARGUMENTS = {name for network in NETWORKS for name in inspect.signature(network).parameters}


def parse_network_args(argv: Sequence[str], extra_keys: Iterable[str] = ()) -> dict[str, Any]:
    """Convert ["num_heads=8", "image_size=[224,320]", "gelu=tanh"] to typed values: JSON if it is valid, else text.

    Raises ValueError for a key that is neither an argument of a network nor one of `extra_keys`.
    """
    keys = ARGUMENTS | set(extra_keys)
    args: dict[str, Any] = {}
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r}: expected key=value, for instance num_heads=8")
        if key not in keys:
            nearest = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(sorted(keys))}"
            raise ValueError(f"unknown key {key!r}: {hint}")
        try:
            args[key] = json.loads(text)
        except ValueError:
            args[key] = text
    return args
