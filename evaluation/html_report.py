"""A test as one HTML page that needs no other file: accuracies, curves, classes, confusions, confident errors."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from torch import Tensor, nn

from configs.schema import Config
from evaluation.multi_label import LabelResult, label_names
from evaluation.report import ClassResult, Report
from evaluation.scores import Scores, has_label
from pipelines.decode.video_info import VideoInfo
from pipelines.sliding_window import thumbnails, windows
from training.figures import draw_attention
from utils.plotting import draw_strips

TEMPLATE = "report.html.j2"
MAX_CLASSES, MAX_ERRORS = 20, 12  # that a page lists
Image = Figure | Path  # a PNG file that may be missing


class Misclassification(NamedTuple):
    """A video that was classified as another class with probability `prob`, and its frames if they can be read."""

    video: str
    label: str
    predicted: str
    prob: float
    frames: Figure | None


def write_html_report(
    path: Path,
    title: str,
    report: Report,
    images: Sequence[tuple[str, Image]],
    errors: Sequence[Misclassification],
) -> None:
    """Write the page. `images` are titled figures or PNG files; files that do not exist are left out."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    averaged = {"probs": "probabilities averaged", "logits": "logits averaged", "max": "the largest probabilities"}
    text = environment.get_template(TEMPLATE).render(
        title=title,
        summary={"shorter_than_clip": 0, **report.summary},
        averaged=averaged[report.summary.get("average", "probs")],
        images=[(name, source) for name, image in images if (source := _data_uri(image, dpi=110))],
        worst_classes=worst_classes(report.per_class)[:MAX_CLASSES],
        confusions=report.confusions[:MAX_CLASSES],
        errors=[(error, _data_uri(error.frames, dpi=80)) for error in errors],
    )
    path.write_text(text + "\n", encoding="utf-8")


def worst_classes(
    results: Sequence[ClassResult] | Sequence[LabelResult],
) -> list[tuple[str, str, float, tuple[float, ...]]]:
    """Return the classes, the worst first: name, the videos that are right of all, accuracy, and nothing.

    With several labels per video: name, videos, average precision, and precision, recall and F1.
    """
    rows: list[tuple[str, str, float, tuple[float, ...]]] = []
    rows += [(r.name, f"{r.correct} of {r.videos}", r.top1, ()) for r in results if isinstance(r, ClassResult)]
    rows += [(r.name, str(r.videos), r.ap, r[3:]) for r in results if isinstance(r, LabelResult)]
    return sorted(rows, key=lambda row: row[2])


def _data_uri(image: Image | None, dpi: int) -> str:
    """Encode an image for an src attribute; an empty string if there is none."""
    if isinstance(image, Figure):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", dpi=dpi)
        png = buffer.getvalue()
    elif image and image.exists():
        png = image.read_bytes()
    else:
        return ""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def most_confident_errors(
    scores: Scores, infos: Sequence[VideoInfo], classes: Sequence[str]
) -> list[Misclassification]:
    """Return the misclassified videos with the highest probabilities, with some of their frames."""
    best = scores.probs.max(1)
    is_wrong = scores.scored & ~has_label(best.indices[:, None], scores.label)[:, 0]
    by_confidence = best.values.argsort(descending=True).tolist()
    errors = []
    for index in [i for i in by_confidence if is_wrong[i]][:MAX_ERRORS]:
        frames = None
        with contextlib.suppress(ValueError):
            frames = draw_strips(thumbnails(infos[index])[None], [""])
        errors.append(
            Misclassification(
                video=infos[index].path,
                label=label_text(scores.label[index], classes),
                predicted=classes[int(best.indices[index])],
                prob=best.values[index].item(),
                frames=frames,
            )
        )
    return errors


def label_text(label: Tensor, classes: Sequence[str]) -> str:
    """Return the name of a label (), or of those of several (K,)."""
    return classes[int(label)] if label.ndim == 0 else label_names(label, classes) or "no label"


def write_attention(network: nn.Module, cfg: Config, infos: Sequence[VideoInfo], output_dir: Path) -> Path:
    """Write attention.png: the first clip of four videos spread over the list, and the network's attention in it."""
    readable = [info for info in infos if not info.error]
    chosen = [readable[n] for n in sorted({n * (len(readable) - 1) // 3 for n in range(4)})]
    clips = [next(windows(info.path, cfg.data, cfg.eval)).views for info in chosen]
    video = torch.stack([views[len(views) // 2] for views in clips]).to(next(network.parameters()).device)
    titles = [Path(info.path).name for info in chosen]
    rollout = cfg.eval.attention_map == "rollout"
    figure = draw_attention(network, video, titles, cfg.data.mean, cfg.data.std, rollout)
    figure.savefig(output_dir / "attention.png", dpi=90)
    return output_dir / "attention.png"
