"""Figures: strips of frames, grids of images, heat maps over frames, a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

MAX_SHOWN_CLASSES = 30  # in a confusion matrix, so that their names stay legible
matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a class or file stays a $


def draw_strips(frames: np.ndarray, titles: Sequence[str]) -> Figure:
    """Draw each clip of (B, T, H, W, 3) uint8 as a row of frames under its title."""
    clips, times, height, width = frames.shape[:4]
    gap, title_height = max(width // 16, 1), round(0.3 * width)  # pixels
    # One image for all: matplotlib takes about 20 ms for each axes, so one axes per frame would be slow.
    rows = np.full((clips, title_height + height, times, width + gap, 3), 255, np.uint8)
    rows[:, title_height:, :, :width] = frames.transpose(0, 2, 1, 3, 4)
    image = rows.reshape(clips * (title_height + height), -1, 3)[:, :-gap]
    figure = Figure(figsize=(1.1 * times, 1.1 * times * image.shape[0] / image.shape[1]))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.imshow(image)
    axes.axis("off")
    for clip, title in enumerate(titles):
        axes.text(0, (clip + 0.5) * title_height + clip * height, title, fontsize=8, va="center")
    return figure


def draw_rows(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Figure:
    """Draw a grid of images, (H, W) gray or (H, W, 3), with a title for each column."""
    head = 0.3 + 0.25 * max(title.count("\n") for title in titles)
    figure = Figure(figsize=(2.0 * len(titles), 2.0 * len(rows) + head), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            axes[number, column].imshow(image, cmap="gray")
            axes[number, column].axis("off")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
    return figure


def overlay_heatmap(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend a heat map (B, t, h, w) over frames (B, T, H, W, 3) uint8; the maximum of each clip is red.

    The map is interpolated to the frames.
    """
    size = frames.shape[1:4]
    upsampled = F.interpolate(torch.from_numpy(heat)[:, None].float(), size, mode="trilinear")[:, 0].numpy()
    upsampled = upsampled / np.maximum(upsampled.max((1, 2, 3), keepdims=True), 1e-12)
    return (0.5 * frames + 127.5 * matplotlib.colormaps["jet"](upsampled)[..., :3] + 0.5).astype(np.uint8)


def denormalize(video: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalization of clips (B, C, T, H, W): (B, T, H, W, 3) uint8, on the host."""
    clips = video.detach().float().cpu().permute(0, 2, 3, 4, 1).numpy()
    return np.clip(255 * (clips * np.array(std) + np.array(mean)) + 0.5, 0, 255).astype(np.uint8)


def draw_confusion(matrix: torch.Tensor, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix as percentages of each label; of many classes the most confused ones."""
    chosen = list(range(len(classes)))
    if len(classes) > MAX_SHOWN_CLASSES:
        off = matrix - matrix.diagonal().diag()
        chosen = sorted((off.sum(0) + off.sum(1)).argsort(descending=True, stable=True)[:MAX_SHOWN_CLASSES].tolist())
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
        axes.text(
            b,
            a,
            f"{100 * shares[a, b]:.0f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if shares[a, b] > 0.6 else "black",
        )
    of = "" if len(chosen) == len(classes) else f", the {len(chosen)} most confused of {len(classes)} classes"
    axes.set(xlabel="predicted", ylabel="label", title=f"% of each label's videos{of}")
    figure.colorbar(image, shrink=0.6)
    return figure
