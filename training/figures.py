"""Draw what a network makes of clips: classes, MaskFeat's predictions, attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange, reduce
from matplotlib.figure import Figure
from torch import Tensor, nn

from networks.attention_maps import attention_saliency
from networks.hog import draw_cells
from pipelines.batch_loader import Batch
from training.tasks import SeededClips
from utils.plotting import denormalize, draw_rows, draw_strips, overlay_heatmap


def draw_hog(
    batch: SeededClips, out: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], num_clips: int = 6
) -> Figure:
    """Draw MaskFeat's work on some clips: masked input, predicted HOG, original HOG and the frame.

    Of each clip the frame with most masked tokens is drawn.
    """
    video = batch.video[:, 0] if batch.video.ndim == 6 else batch.video
    frames = denormalize(video[:num_clips], mean, std)
    dim, (_, t, f) = out["target"].shape[-1], out["frames"].shape
    masked_tokens = reduce(out["mask"].float(), "B t h w -> B t 1", "sum") * out["frames"]
    side = round((dim // 27) ** 0.5)  # HOG cells along a token

    def cells(tokens: Tensor) -> np.ndarray:
        grid = rearrange(tokens.float(), "h w (C o a b) -> C o (h a) (w b)", C=3, a=side, b=side)
        return draw_cells(grid.mean(0)).numpy()

    rows = []
    for clip in range(len(frames)):
        token_frame, part = divmod(int(masked_tokens[clip].argmax()), f)
        frame = frames[clip, token_frame * (frames.shape[1] // t) + part]
        mask = out["mask"][clip, token_frame].cpu().numpy()
        pixel_mask = np.kron(mask, np.ones((frame.shape[0] // mask.shape[0], frame.shape[1] // mask.shape[1])))
        masked = np.where(pixel_mask[..., None] > 0, 127, frame).astype(np.uint8)
        rows.append([masked, *(cells(out[key][clip, token_frame, part]) for key in ("prediction", "target")), frame])
    return draw_rows(rows, ["masked input", "predicted HOG", "original HOG", "frame"])


def draw_attention(
    network: nn.Module,
    video: Tensor,
    titles: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    rollout: bool = False,
) -> Figure:
    """Draw clips (B, C, T, H, W), and below each the attention of the network in it."""
    frames = denormalize(video, mean, std)
    was_training = network.training
    heat = attention_saliency(network.eval(), video.float(), rollout).cpu().numpy()
    network.train(was_training)
    rows = np.stack([frames, overlay_heatmap(frames, heat)], axis=1).reshape(-1, *frames.shape[1:])
    return draw_strips(rows, [line for title in titles for line in (title, "attention")])


def draw_predictions(
    batch: Batch, logits: Tensor, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> tuple[Figure, list[str]]:
    """Draw the first six clips of a batch under their class and the predicted class; also return these titles."""
    pairs = zip(batch.class_index.tolist(), logits.argmax(-1).tolist(), strict=True)
    titles = [f"{classes[label]}, predicted {classes[prediction]}" for label, prediction in pairs][:6]
    return draw_strips(denormalize(batch.video[:6], mean, std), titles), titles
