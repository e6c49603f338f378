"""Keep what was found for a list in a file beside its index, and find it again while everything it depends on holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from configs.schema import Data
from pipelines.data.metadata import cache_path
from pipelines.storage import file_fingerprint
from pipelines.tuning.machine import KEYS
from utils.distributed import World, local_world_size
from utils.environment import environment
from utils.files import atomic_write_text

_KEPT = 20  # answers per list, the last ones
# Keys of the section data that change neither a clip nor what it costs. The lists are told by their fingerprints.
_FREE_KEYS = {"train", "val", "test", "class_names", "decode_timeout", "max_unreadable", "tune", *KEYS}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The best values of a list, with what they were measured under; `fixed` are the keys that were not free then."""

    circumstances: dict[str, Any]
    fixed: dict[str, Any]
    values: dict[str, Any]
    clips_per_s: float
    speedup: float  # over the configured values; 0 if these do not run

    def fits(self, circumstances: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
        """Return whether the answer holds under circumstances in which the keys of `fixed` have to keep their values.

        What was measured with more freedom holds as well, as long as it chose the same values.
        """
        chosen = {key: self.values[key] for key in fixed}
        return self.circumstances == circumstances and chosen == fixed and self.fixed.items() <= fixed.items()


def answers_path(list_path: str) -> Path:
    """Return where the answers for a list are kept."""
    return cache_path(list_path, "tune.json")


def describe_circumstances(list_path: str, data: Data, device: torch.device, world: World) -> dict[str, Any]:
    """Return everything that an answer depends on, as JSON has it: list and index, clips, machine and versions."""
    machine = {key: value for key, value in environment().items() if key not in ("commit", "platform")}
    circumstances = {
        "list": list(file_fingerprint(list_path)),
        "index": list(file_fingerprint(str(cache_path(list_path)))),
        "clips": data.model_dump(exclude=_FREE_KEYS),
        "machine": machine | {"device": device.type, "processes": [world.size, local_world_size()]},
    }
    return json.loads(json.dumps(circumstances))


def fixed_values(data: Data, fixed: Collection[str]) -> dict[str, Any]:
    """Return the values of the keys that are not free."""
    return {key: getattr(data, key) for key in KEYS if key in fixed}


def read_answers(path: Path) -> list[Answer]:
    """Read the answers of a list, oldest first. What cannot be read is reported, and measured again."""
    try:
        return [Answer(**values) for values in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        print(f"{path}: not readable as results of tuning ({error}): measuring again", file=sys.stderr)
        return []


def keep_answer(path: Path, answer: Answer) -> None:
    """Add an answer to those of a list; if that cannot be written, print a warning."""
    others = [a for a in read_answers(path) if (a.circumstances, a.fixed) != (answer.circumstances, answer.fixed)]
    lines = ",\n".join(json.dumps(asdict(kept)) for kept in [*others, answer][-_KEPT:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, f"[\n{lines}\n]\n")
    except OSError as error:
        print(f"{path}: cannot be saved ({error.strerror}); the next run will measure again", file=sys.stderr)
