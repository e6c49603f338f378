"""Figures: strips of frames, rows of pictures, colours over frames, a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

SHOWN_CLASSES = 30  # of a confusion matrix, so that their names can be read
matplotlib.rcParams["text.parse_math"] = False  # a $ in a class's or a file's name is a $


def draw_strips(frames: np.ndarray, titles: Sequence[str]) -> Figure:
    """A row of frames for each clip of (B, T, H, W, 3) uint8, under its title."""
    clips, times = frames.shape[:2]
    figure = Figure(figsize=(1.1 * times, 1.45 * clips), layout="constrained")
    axes = figure.subplots(clips, times, squeeze=False)
    for row in range(clips):
        for column in range(times):
            axes[row, column].imshow(frames[row, column])
            axes[row, column].axis("off")
        axes[row, 0].set_title(titles[row], fontsize=8, loc="left")
    return figure


def draw_rows(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Figure:
    """Rows of pictures, (H, W) grey or (H, W, 3), under a title for each column."""
    head = 0.3 + 0.25 * max(title.count("\n") for title in titles)
    figure = Figure(figsize=(2.0 * len(titles), 2.0 * len(rows) + head), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            axes[number, column].imshow(picture, cmap="gray")
            axes[number, column].axis("off")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
    return figure


def warmed(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Frames (B, T, H, W, 3) uint8 with colours over them: heat (B, t, h, w), the largest of each clip being red.

    Each map stands for as many frames as come to it; between patches it is interpolated.
    """
    size = frames.shape[1:4]
    shown = F.interpolate(torch.from_numpy(heat)[:, None].float(), size, mode="trilinear")[:, 0].numpy()
    shown = shown / np.maximum(shown.max((1, 2, 3), keepdims=True), 1e-12)
    return (0.5 * frames + 127.5 * matplotlib.colormaps["jet"](shown)[..., :3] + 0.5).astype(np.uint8)


def pixels(video: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(B, C, T, H, W) normalised -> (B, T, H, W, 3) uint8, on the host."""
    clips = video.detach().float().cpu().permute(0, 2, 3, 4, 1).numpy()
    return np.clip(255 * (clips * np.array(std) + np.array(mean)) + 0.5, 0, 255).astype(np.uint8)


def draw_confusion(matrix: torch.Tensor, classes: Sequence[str]) -> Figure:
    """Shares of each label's videos; of many classes those that are confused most, and most with each other."""
    chosen = list(range(len(classes)))
    if len(classes) > SHOWN_CLASSES:
        off = matrix - matrix.diagonal().diag()
        chosen = sorted((off.sum(0) + off.sum(1)).argsort(descending=True, stable=True)[:SHOWN_CLASSES].tolist())
    shares = matrix.double() / matrix.sum(1, keepdim=True).clamp_min(1)
    shares = shares[chosen][:, chosen]
    side = 2.5 + 0.3 * len(chosen)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in (classes[n] for n in chosen)]
    axes.set_xticks(range(len(chosen)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(chosen)), names, fontsize=8)
    for a, b in (shares > 0.005).nonzero().tolist():
        axes.text(b, a, f"{100 * shares[a, b]:.0f}", ha="center", va="center", fontsize=7,
                  color="white" if shares[a, b] > 0.6 else "black")  # fmt: skip
    of = "" if len(chosen) == len(classes) else f", the {len(chosen)} most confused of {len(classes)} classes"
    axes.set(xlabel="predicted", ylabel="label", title=f"% of each label's videos{of}")
    figure.colorbar(image, shrink=0.6)
    return figure
