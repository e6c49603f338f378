"""What every bench does: the circumstances of the figures, medians with quartiles."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from configs.runs import environment


def head(bench: str, settings: Any, peers: Sequence[str]) -> dict[str, Any]:
    """The circumstances of the figures; `peers` are packages whose versions matter."""
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return {
        "bench": bench,
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "environment": environment(),
        "peers": {name: metadata.version(name) for name in peers if name in installed},
        "settings": dataclasses.asdict(settings),
        "load_before": os.getloadavg(),
    }


def write(result: dict[str, Any], out: str) -> None:
    """The result file; its folder is made."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(result | {"load_after": os.getloadavg()}, indent=1) + "\n")


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, quartiles, and the values themselves, in their order."""
    all_values = list(values)
    p25, median, p75 = np.percentile(all_values, [25, 50, 75])
    rounded = [round(v, 3) for v in all_values]
    return {"median": round(median, 3), "p25": round(p25, 3), "p75": round(p75, 3), "all": rounded}


def shown(s: dict[str, float], digits: int) -> str:
    """A spread as text: median [quartiles]."""
    return f"{s['median']:.{digits}f} [{s['p25']:.{digits}f}-{s['p75']:.{digits}f}]"
