"""What a test found: the scores of each video, and the files and lines that are made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from configs.runs import write_csv


@dataclass(frozen=True)
class Scores:
    """Class probabilities of each video, (n, classes) float32 on the host; `scored` (n,) bool: False if it failed."""

    probability: Tensor
    label: Tensor  # (n,) int64
    scored: Tensor
    failed: dict[int, str]  # row of the list -> reason
    padded: int  # places of the last batch that no video was left for

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


def write_report(
    folder: Path, scores: Scores, clips: Sequence[tuple[str, int]], classes: Sequence[str], views: str
) -> str:
    """summary.json, predictions.csv and per_class.csv in `folder`; returns the lines to print."""
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

    right = (best.indices[:, 0] == scores.label) & scores.scored
    per_class = []
    for number, name in enumerate(classes):
        of_class = scores.label == number
        if of_class.any():
            hits, total = int(right[of_class].sum()), int(of_class.sum())
            per_class.append([name, total, hits, f"{hits / total:.4f}"])
    write_csv(folder / "per_class.csv", ["class", "videos", "right", "top1"], per_class)

    summary = {
        "views": views, "videos": len(clips), "scored": int(scores.scored.sum()), "failed": len(scores.failed),
        "padded": scores.padded, "top1": scores.topk(1), "top5": scores.topk(5), "loss": scores.loss,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    worst = sorted(per_class, key=lambda entry: float(str(entry[3])))[:3]
    return "\n".join([
        f"test {views}: top-1 {100 * scores.topk(1):.2f} %  top-5 {100 * scores.topk(5):.2f} %",
        scores.coverage(),
        *(f"  failed: {clips[row][0]}: {why}" for row, why in sorted(scores.failed.items())),
        "worst classes: " + ", ".join(f"{name} {hits}/{total}" for name, total, hits, _ in worst),
    ])  # fmt: skip
