"""A test as one page that needs nothing else: figures, curves, classes, confusions, and its most confident mistakes."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import nn

from configs import loading
from evaluation.report import Report
from evaluation.scores import Scores
from pipelines.decode.video_info import Row
from pipelines.sliding_window import glimpse, windows
from training.figures import draw_attention
from utils.plotting import draw_strips

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.under { color: #57606a; margin-top: 0; }
table { border-collapse: collapse; } th, td { padding: 0.2rem 0.9rem 0.2rem 0; text-align: left; }
th { border-bottom: 1px solid #8c959f; font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } .bar { background: #0969da; height: 0.6rem; display: inline-block; border-radius: 2px; }
.columns { display: flex; flex-wrap: wrap; gap: 1rem 3rem; }
.mistake { margin: 0 0 1.3rem; } .mistake div { color: #57606a; }
.big { font-size: 2rem; font-weight: 600; }
.figures > div { min-width: 9rem; }
"""


class Mistake(NamedTuple):
    """A video of `label` that was taken for `guess` with probability `score`; its frames, if they can be read."""

    video: str
    label: str
    guess: str
    score: float
    frames: Figure | None


def write_page(
    path: Path, title: str, report: Report, pictures: Sequence[tuple[str, Path]], mistakes: Sequence[Mistake]
) -> None:
    """`pictures` are titled PNG files, left out where they are missing."""
    _, summary, per_class, confusions = report
    worst = sorted(per_class, key=lambda row: row[3])[:20]
    bars = ((name, right, videos, _bar(share)) for name, videos, right, share in worst)
    short = f", {summary['short']} shorter than a clip" if summary.get("short") else ""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='under'>{escape(_described(summary))}</p>",
        "<div class='columns figures'>",
        _share(summary, "top1", "top-1"),
        _share(summary, "top5", "top-5"),
        f"<div><div class='big'>{summary['scored']} / {summary['videos']}</div>videos scored, ",
        f"{summary['failed']} failed{short}</div>",
        "</div>",
        "<h2>After each number of clips</h2>",
        _table(("clips", "top-1, %", "top-5, %"),
               ((row["clips"], f"{100 * row['top1']:.2f}", f"{100 * row['top5']:.2f}") for row in summary["by_clips"])),
        *(f"<h2>{escape(name)}</h2><img alt='{escape(name)}' src='{_inline(file.read_bytes())}'>"
          for name, file in pictures if file.exists()),
        "<div class='columns'><div><h2>Worst classes</h2>",
        _table(("class", "right", "of", ""), bars),
        "</div><div><h2>Most confused</h2>",
        _table(("label", "predicted", "videos"), (row[:3] for row in confusions[:20])),
        "</div></div>",
        "<h2>Most confident mistakes</h2>" if mistakes else "",
        *map(_mistake, mistakes),
    ]  # fmt: skip
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    text = f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    path.write_text(text, encoding="utf-8")


def _share(summary: dict[str, Any], key: str, name: str) -> str:
    low, high = (100 * bound for bound in summary[f"{key}_interval"])
    return f"<div><div class='big'>{100 * summary[key]:.2f} %</div>{name}, 95 %: {low:.1f} to {high:.1f}</div>"


def _described(summary: dict[str, Any]) -> str:
    clips, crops = summary["views"].split("x")
    return f"{clips} clips x {crops} crops of each video, {summary.get('average', 'probability')} averaged"


def _mistake(mistake: Mistake) -> str:
    image = ""
    if mistake.frames:
        held = io.BytesIO()
        mistake.frames.savefig(held, format="png", dpi=80)
        image = f"<img alt='frames' src='{_inline(held.getvalue())}'>"
    said = f"{escape(mistake.label)} taken for <b>{escape(mistake.guess)}</b>, {100 * mistake.score:.1f} %"
    return f"<div class='mistake'>{said}<div>{escape(mistake.video)}</div>{image}</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers stand right; what is markup already (a bar) is left as it is."""

    def cell(value: Any, tag: str = "td") -> str:
        text = str(value)
        right = " class='n'" if text.replace(".", "").isdecimal() else ""
        return f"<{tag}{right}>{text if isinstance(value, _Markup) else escape(text)}</{tag}>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(cell(name, 'th') for name in head)}</tr>{body}</table>"


class _Markup(str):
    pass


def _bar(share: float) -> str:
    return _Markup(f"<span class='bar' style='width:{6 * share:.2f}rem'></span> {100 * share:.0f} %")


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def show_attention(network: nn.Module, cfg: loading.Config, rows: Sequence[Row], place: Path) -> str:
    """attention.png: the first clip of four videos spread over the list, and what the network looks at in it."""
    good = [row for row in rows if not row.error]
    chosen = [good[n] for n in sorted({n * (len(good) - 1) // 3 for n in range(4)})]
    clips = [next(windows(row.path, cfg)).views for row in chosen]
    video = torch.stack([views[len(views) // 2] for views in clips]).to(next(network.parameters()).device)
    titles = [Path(row.path).name for row in chosen]
    figure = draw_attention(network, video, titles, cfg.data.mean, cfg.data.std, cfg.eval.show == "rollout")
    figure.savefig(place / "attention.png", dpi=90)
    return f"\nwritten: {place / 'attention.png'}"


def find_mistakes(scores: Scores, rows: Sequence[Row], classes: Sequence[str]) -> list[Mistake]:
    """The twelve that the network is surest of."""
    best = scores.probability.max(1)
    wrong = [n for n in best.values.argsort(descending=True).tolist()
             if scores.scored[n] and best.indices[n] != scores.label[n]]  # fmt: skip
    mistakes = []
    for n in wrong[:12]:
        frames = None
        with contextlib.suppress(ValueError):
            frames = draw_strips(glimpse(rows[n])[None], [""])
        names = classes[int(scores.label[n])], classes[int(best.indices[n])]
        mistakes.append(Mistake(rows[n].path, *names, best.values[n].item(), frames))
    return mistakes
