"""Clips as pictures: strips of frames, rows of pictures, colours over frames."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

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
