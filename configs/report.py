"""What a test found: the scores of each video, and the files and lines that are made of them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from configs import schema
from configs.drawing import draw_confusion
from configs.keys import PRESETS, Config
from configs.runs import load_checkpoint
from configs.written import replace_text, replacing, write_csv


@dataclass(frozen=True)
class Scores:
    """Class probabilities of each video, (n, classes) float32 on the host; `scored` (n,) bool: False if it failed.

    `hits` (n, clips, 2) bool: whether the label is the best, and among the best five, after so many clips.
    """

    probability: Tensor
    label: Tensor  # (n,) int64
    scored: Tensor
    failed: dict[int, str]  # row of the list -> reason
    padded: int  # places of the last batch that no video was left for
    hits: Tensor

    def topk(self, k: int) -> float:
        """Share of all videos, unreadable ones included as wrong, whose label is among the k best."""
        best = self.probability.topk(min(k, self.probability.shape[1])).indices
        hit = (best == self.label[:, None]).any(1) & self.scored
        return hit.double().mean().item()

    @property
    def loss(self) -> float:
        """Mean negative log probability of the label over the videos that were scored."""
        chosen = self.probability[self.scored, self.label[self.scored]]
        return -chosen.clamp_min(1e-12).log().mean().item()

    def coverage(self) -> str:
        n = len(self.label)
        return (
            f"coverage: {int(self.scored.sum())} of {n} videos scored, {len(self.failed)} failed, {self.padded} padded"
        )


def interval(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Of a share: between which the true one lies with 95 % confidence (Wilson's score interval)."""
    if not n:
        return 0.0, 1.0
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))  # rounding aside


# Keys of data that decide what of a video a test sees.
SEEN = ("eval_per_class", "frames", "stride", "fps", "sampling", "short", "snap", "crop", "size", "mean", "std")


class Report(NamedTuple):
    """What was written of a test, and the lines to print."""

    text: str
    summary: dict[str, Any]
    per_class: list[tuple[str, int, int, float]]  # class, videos, right, top-1
    confusions: list[tuple[str, str, int, float]]  # label, predicted, videos, share of the label's; the most first


def write_report(
    folder: Path, scores: Scores, clips: Sequence[tuple[str, int]], classes: Sequence[str], about: dict[str, Any]
) -> Report:
    """summary.json, predictions.csv, per_class.csv, confusions.csv and confusion.png in `folder`. `about` (views, how
    scores are averaged, ...) goes into the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    best = scores.probability.topk(min(5, len(classes)))
    rows = []
    for row, (path, label) in enumerate(clips):
        guesses = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
        named = [text for number, share in guesses for text in (classes[number], f"{share:.4f}")]
        state = "scored" if scores.scored[row] else f"failed: {scores.failed.get(row, 'unknown')}"
        rows.append([path, classes[label], state, *(named if scores.scored[row] else [])])
    guess_columns = [f"{what}{i + 1}" for i in range(best.indices.shape[1]) for what in ("class", "score")]
    write_csv(folder / "predictions.csv", ["video", "label", "state", *guess_columns], rows)

    matrix = confusion(scores, len(classes))
    right = matrix.diagonal()
    total = torch.bincount(scores.label, minlength=len(classes))
    per_class = [(classes[n], int(total[n]), int(right[n]), int(right[n]) / int(total[n]))
                 for n in range(len(classes)) if total[n]]  # fmt: skip
    wrong = sorted(((int(matrix[a, b]), a, b) for a, b in (matrix - right.diag()).nonzero().tolist()), reverse=True)
    confusions = [(classes[a], classes[b], count, count / int(total[a])) for count, a, b in wrong]
    write_csv(folder / "per_class.csv", ["class", "videos", "right", "top1"],
              ((*row[:3], f"{row[3]:.4f}") for row in per_class))  # fmt: skip
    write_csv(folder / "confusions.csv", ["label", "predicted", "videos", "share of the label's"],
              ((*row[:3], f"{row[3]:.4f}") for row in confusions))  # fmt: skip
    draw_confusion(matrix, classes).savefig(folder / "confusion.png", dpi=110)

    n = len(clips)
    top = {k: scores.topk(k) for k in (1, 5)}
    summary = {
        **about, "videos": n, "scored": int(scores.scored.sum()), "failed": len(scores.failed), "padded": scores.padded,
        "top1": top[1], "top1_interval": interval(top[1] * n, n), "top5": top[5],
        "top5_interval": interval(top[5] * n, n), "loss": scores.loss,
        "by_clips": [{"clips": c + 1, "top1": one, "top5": five}
                     for c, (one, five) in enumerate(scores.hits.double().mean(0).tolist())],
    }  # fmt: skip
    replace_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    worst = sorted(per_class, key=lambda row: row[3])[:3]
    low, high = (100 * bound for bound in summary["top1_interval"])
    lines = [
        f"test {about['views']}: top-1 {100 * top[1]:.2f} % (95 %: {low:.1f}-{high:.1f})  top-5 {100 * top[5]:.2f} %",
        scores.coverage(),
        *(f"  failed: {clips[row][0]}: {why}" for row, why in sorted(scores.failed.items())),
        "worst classes: " + ", ".join(f"{name} {hits}/{videos}" for name, videos, hits, _ in worst),
    ]
    if confusions:
        lines.append("most confused: " + ", ".join(f"{a} for {b} ({count})" for b, a, count, _ in confusions[:3]))
    return Report("\n".join(lines), summary, per_class, confusions)


def confusion(scores: Scores, classes: int) -> Tensor:
    """(label, predicted) int64: how many of the videos that were scored."""
    guess = scores.probability.argmax(1)
    pairs = scores.label[scores.scored] * classes + guess[scores.scored]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


# --- a test that goes on where it stopped ----------------------------------------------------------------------------


def test_name(cfg: Config, run: Path) -> str:
    """Of a test's folder: the preset if it is one, else the views; then the list and what else is not the run's own."""
    e = cfg.eval
    name = f"{e.clips}x{e.crops}"
    if e.preset and all(getattr(e, key) == value for key, value in PRESETS[e.preset].items()):
        name = e.preset
    elif e.place != "spread":
        name += f"_{e.place}"
    if e.average != "probability":
        name += f"_{e.average}"
    own = schema.load(run / "config.yaml") if (run / "config.yaml").exists() else cfg
    asked, known = (c.data.test or c.data.val for c in (cfg, own))
    parts = [name] if asked == known else [name, Path(asked).stem]
    given = {key: (getattr(cfg.data, key), getattr(own.data, key)) for key in SEEN}
    if name != e.preset:
        given["short_side"] = e.short_side, own.eval.short_side
    parts += [f"{key}{value}" for key, (value, its) in given.items() if value != its]
    parts = [re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts]
    return "_".join(parts)


def test_key(cfg: Config, folder: Path, videos: Sequence[tuple[object, ...]]) -> str:
    """Tells tests apart whose scores must not be mixed: another configuration, other weights, or other videos, of which
    `videos` says path, label and state."""
    weights_file = Path(cfg.model.init) if not (folder / "best").exists() else folder / "best" / "model.safetensors"
    stamp = weights_file.stat().st_mtime_ns if weights_file.exists() else 0
    return hashlib.sha256(f"{schema.dump(cfg)}{stamp}{list(videos)}".encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Kept:
    """Where a process keeps the scores of a test so far; those of another test (`key`) are not gone on with."""

    path: Path
    key: str

    def load(self) -> dict[str, Any]:
        """Nothing if there is none, or it cannot be read."""
        try:
            state: dict[str, Any] = load_checkpoint(self.path)
        except ValueError:
            return {}
        return state if state.get("key") == self.key else {}

    def save(self, state: dict[str, Any]) -> None:
        """Whole or not at all; a disk that is full costs no more than what an interruption would."""
        with contextlib.suppress(OSError, RuntimeError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                torch.save(state | {"key": self.key}, temporary)


# --- two runs beside each other ---------------------------------------------------------------------------------------


def read_predictions(folder: Path) -> dict[tuple[str, int], tuple[str, bool]]:
    """(video, its how many-th time) -> (label, whether it was the best), of the test that a run or eval folder holds.

    A run folder with several tests is taken at its newest. Raises ValueError if there is none.
    """
    found = sorted(folder.glob("eval/*/predictions.csv"), key=lambda path: path.stat().st_mtime)
    path = folder / "predictions.csv" if (folder / "predictions.csv").exists() else found[-1] if found else None
    if path is None:
        raise ValueError(f"{folder}: no predictions.csv in it or in its eval/*/; run eval.py first")
    times: Counter[str] = Counter()  # a list may hold a video more than once
    test = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            times[row["video"]] += 1
            test[row["video"], times[row["video"]]] = row["label"], row.get("class1") == row["label"]
    return test


def compare(folders: Sequence[Path]) -> str:
    """A table of tests over the same videos, the first beside each other one: what only one of them gets right, and
    McNemar's exact p of so uneven a split if both were equally good."""
    tests = [read_predictions(folder) for folder in folders]
    for folder, test in zip(folders[1:], tests[1:], strict=True):
        if test.keys() != tests[0].keys():
            both = len(test.keys() & tests[0].keys())
            raise ValueError(f"{folder}: other videos than {folders[0]} ({both} of {len(test)} are in both)")
        if any(test[video][0] != tests[0][video][0] for video in test):
            raise ValueError(f"{folder}: other labels than {folders[0]}")
    width = max(len(str(folder)) for folder in folders)
    lines = [f"{'':{width}}  top-1             95 %    only here  only first  McNemar's p"]
    for folder, test in zip(folders, tests, strict=True):
        hits, n = sum(right for _, right in test.values()), len(test)
        low, high = (100 * bound for bound in interval(hits, n))
        line = f"{folder!s:{width}}  {100 * hits / n:5.2f} %  {low:5.1f} to {high:5.1f}"
        if test is not tests[0]:
            here = sum(test[video][1] and not tests[0][video][1] for video in test)
            first = sum(tests[0][video][1] and not test[video][1] for video in test)
            line += f"  {here:9}  {first:10}  {mcnemar(here, first):11.4f}"
        lines.append(line)
    return "\n".join(lines)


def mcnemar(a: int, b: int) -> float:
    """Exact two-sided p (McNemar, 1947): the chance of a split of a + b as uneven, were each side as likely."""
    n, least = a + b, min(a, b)
    return min(1.0, sum(math.comb(n, i) for i in range(least + 1)) / 2 ** (n - 1)) if n else 1.0
