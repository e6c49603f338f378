"""What networks make of clips, to look at: MaskFeat's predictions, and where attention lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange, reduce
from matplotlib.figure import Figure
from torch import Tensor, nn

from networks.attention_maps import attended
from networks.hog import draw_cells
from training.tasks import SeededClips
from utils.plotting import draw_rows, draw_strips, pixels, warmed


def draw_hog(
    batch: SeededClips, out: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], clips: int = 6
) -> Figure:
    """MaskFeat at work on some clips, on that frame of each of which most is hidden: masked input, predicted HOG,
    original HOG, the frame."""
    video = batch.video[:, 0] if batch.video.ndim == 6 else batch.video
    frames = pixels(video[:clips], mean, std)
    numbers, (_, t, f) = out["target"].shape[-1], out["frames"].shape
    hidden_cells = reduce(out["mask"].float(), "B t h w -> B t 1", "sum") * out["frames"]
    side = round((numbers // 27) ** 0.5)  # HOG cells along a token

    def cells(tokens: Tensor) -> np.ndarray:
        grid = rearrange(tokens.float(), "h w (C o a b) -> C o (h a) (w b)", C=3, a=side, b=side)
        return draw_cells(grid.mean(0)).numpy()

    rows = []
    for clip in range(len(frames)):
        token_frame, part = divmod(int(hidden_cells[clip].argmax()), f)
        frame = frames[clip, token_frame * (frames.shape[1] // t) + part]
        hidden = out["mask"][clip, token_frame].cpu().numpy()
        grey = np.kron(hidden, np.ones((frame.shape[0] // hidden.shape[0], frame.shape[1] // hidden.shape[1])))
        masked = np.where(grey[..., None] > 0, 127, frame).astype(np.uint8)
        rows.append([masked, *(cells(out[key][clip, token_frame, part]) for key in ("prediction", "target")), frame])
    return draw_rows(rows, ["masked input", "predicted HOG", "original HOG", "frame"])


def draw_attention(
    network: nn.Module, video: Tensor, titles: Sequence[str], mean: Sequence[float], std: Sequence[float],
    rollout: bool = False,
) -> Figure:  # fmt: skip
    """Clips (B, C, T, H, W), and below each what the network looks at in it."""
    frames = pixels(video, mean, std)
    training = network.training
    heat = attended(network.eval(), video.float(), rollout).cpu().numpy()
    network.train(training)
    rows = np.stack([frames, warmed(frames, heat)], axis=1).reshape(-1, *frames.shape[1:])
    return draw_strips(rows, [line for title in titles for line in (title, "attention")])
