"""Features of the videos of a list in a folder: half-precision shards, written in the order of the list.

features.json says what they are, with the labels of all lines; NNNNN.safetensors has the features of `per_shard`
consecutive lines. What was written stays when the writer is interrupted, and does not depend on the number of
processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from utils.files import atomic_path, atomic_write_text, write_errors_named

MANIFEST = "features.json"
KEYS = ("description", "classes", "labels", "list", "per_shard", "shape")  # of the manifest
SHARD_BYTES = 256 * 2**20


class LabeledVideo(NamedTuple):
    """The name of a video, and the index of its class."""

    name: str
    label: int


def is_feature_folder(path: str | Path) -> bool:
    """Return whether a path is a folder of features, also one that is not complete yet."""
    return (Path(path) / MANIFEST).is_file()


class ShardWriter:
    """Write features in the order of a list; `start` is the number of its lines that were written before.

    `description` says how the features are made. Raises ValueError if the folder has features that were made otherwise.
    """

    def __init__(
        self, folder: Path, description: Mapping[str, Any], videos: Sequence[LabeledVideo], classes: Sequence[str]
    ):
        self.folder, self.videos = folder, videos
        digest = hashlib.sha256(json.dumps(videos).encode("utf-8", "surrogateescape")).hexdigest()
        labels = [video.label for video in videos]
        self.manifest: dict[str, Any] = json.loads(
            json.dumps({"description": description, "classes": classes, "labels": labels, "list": digest})
        )
        self.start, self.per_shard = 0, 0
        if is_feature_folder(folder):
            found = read_manifest(folder)
            _check_same(folder, found, self.manifest)
            self.per_shard = found["per_shard"]
            self.start = min(count_shards(folder) * self.per_shard, len(videos))
        self.done = self.start  # lines before this one are in shards or in _rows
        self._rows: dict[int, np.ndarray] = {}  # features by line

    def add(self, index: np.ndarray, features: np.ndarray, done: int) -> None:
        """Add the features (n, ...) of some lines (n,), maybe none; no line before `done` comes later.

        Raises ValueError for features that half precision cannot hold.
        """
        with np.errstate(over="ignore"):
            half = features.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(
                f"{self.folder}: a feature does not fit half precision (more than 65504); write a .safetensors or .npz "
                "file, or take another layer"
            )
        if not self.per_shard:
            row_bytes = max(int(np.prod(half.shape[1:])) * half.itemsize, 1)
            self.per_shard = max(1, SHARD_BYTES // row_bytes)
            self.manifest |= {"per_shard": self.per_shard, "shape": list(half.shape[1:])}
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.folder / MANIFEST, json.dumps(self.manifest) + "\n")
        self._rows.update((line, row) for line, row in zip(index.tolist(), half, strict=True) if line >= self.start)
        self.done = min(max(done, self.done), len(self.videos))
        while self.start < self.done and (self.done - self.start >= self.per_shard or self.done == len(self.videos)):
            self._write_shard(half.shape[1:])

    def _write_shard(self, shape: tuple[int, ...]) -> None:
        end = min(self.start + self.per_shard, len(self.videos))
        lines = [line for line in range(self.start, end) if line in self._rows]
        rows = [self._rows.pop(line) for line in lines]
        arrays = {
            "features": np.stack(rows) if rows else np.zeros((0, *shape), np.float16),
            "label": np.array([self.videos[line].label for line in lines], np.int64),
            "line": np.array(lines, np.int64),
        }
        path = self.folder / shard_name(self.start // self.per_shard)
        with write_errors_named(path), atomic_path(path) as temporary:
            save_file(arrays, temporary, {"video": json.dumps([self.videos[line].name for line in lines])})
        self.start = end


class FeatureShards:
    """The features of a folder: rows are read when they are asked for. Raises ValueError if they are not complete."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.description: dict[str, Any] = manifest["description"]
        self.classes: list[str] = manifest["classes"]
        self.labels: list[int] = manifest["labels"]  # of all lines of the list, also of videos that could not be read
        self.shape = tuple(manifest["shape"])
        found, expected = count_shards(self.folder), -(-len(self.labels) // manifest["per_shard"])
        if found < expected:
            raise ValueError(
                f"{folder}: {found} of {expected} shards are there: run the command that writes them again"
            )
        self._slices: list[Any] = []
        self._rows: list[tuple[int, int]] = []  # shard and row in it
        self.name: list[str] = []
        labels, lines = [], []
        for number in range(expected):
            try:
                file = safe_open(self.folder / shard_name(number), "np")
                lines.append(file.get_tensor("line"))
                labels.append(file.get_tensor("label"))
                self.name += json.loads(file.metadata()["video"])
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.folder / shard_name(number)}: not readable as features: {error}") from None
            self._slices.append(file.get_slice("features"))
            self._rows += [(number, row) for row in range(len(lines[-1]))]
        self.label, self.line = np.concatenate(labels), np.concatenate(lines)

    def __len__(self) -> int:
        """Count the videos that could be read."""
        return len(self.label)

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """Read the features (n, ...) float16 of some rows."""
        return np.concatenate(
            [self._slices[shard][row : row + 1] for shard, row in map(self._rows.__getitem__, indices)]
        )

    def shards(self) -> Iterator[np.ndarray]:
        """Read the features (n, ...) float16 of one shard after the other."""
        for part in self._slices:
            yield part[:]


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:05}.safetensors"


def count_shards(folder: Path) -> int:
    """Count the shards from the first one on, without a gap."""
    number = 0
    while (folder / shard_name(number)).exists():
        number += 1
    return number


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read features.json. Raises ValueError if it is not one."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        missing = [key for key in KEYS if key not in manifest]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST}: not readable: {error}") from None
    if missing:
        raise ValueError(f"{folder / MANIFEST}: it lacks {', '.join(missing)}")
    return manifest


def _check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if (found["list"], found["classes"]) != (wanted["list"], wanted["classes"]):
        raise ValueError(f"{folder}: has features of another list of videos; choose another folder")
    for key, value in wanted["description"].items():
        before = found["description"].get(key)
        if before != value:
            raise ValueError(
                f"{folder}: has features made with {key}={before}, now it is {value}; choose another folder"
            )
