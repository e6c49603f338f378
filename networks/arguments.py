"""key=value words of the commands here -> arguments of a network."""

import difflib
import inspect
import json
from collections.abc import Iterable, Sequence
from typing import Any

from networks.maskfeat import MaskFeat
from networks.mvit import MViT
from networks.timesformer import TimeSformer
from networks.vivit import ViViT

NETWORKS = (TimeSformer, ViViT, MViT, MaskFeat)
ARGUMENTS = {name for network in NETWORKS for name in inspect.signature(network).parameters}


def parse_settings(words: Sequence[str], others: Iterable[str] = ()) -> dict[str, Any]:
    """["heads=8", "image_size=[224,320]", "gelu=tanh"] -> typed values: JSON where it is JSON, else text.

    Raises ValueError for a key that is neither an argument of a network nor one of `others`.
    """
    known = ARGUMENTS | set(others)
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r}: expected key=value, for instance heads=8")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"unknown key {key!r}: "
                + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}")
            )
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings
