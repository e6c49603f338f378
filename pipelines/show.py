"""What the network sees: clips as strips of frames, with their labels, in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure


def draw_strips(video: torch.Tensor, titles: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> Figure:
    """A row of frames for each clip of (B, C, T, H, W), normalised with mean and std, under its title."""
    frames = pixels(video, mean, std)
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
    figure = Figure(figsize=(2.0 * len(titles), 2.0 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            axes[number, column].imshow(picture, cmap="gray")
            axes[number, column].axis("off")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
    return figure


def pixels(video: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(B, C, T, H, W) normalised -> (B, T, H, W, 3) uint8, on the host."""
    clips = video.detach().float().cpu().permute(0, 2, 3, 4, 1).numpy()
    return np.clip(255 * (clips * np.array(std) + np.array(mean)) + 0.5, 0, 255).astype(np.uint8)
