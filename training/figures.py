"""Draw what a network makes of clips: classes, what pre-training predicts, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange, reduce
from matplotlib.figure import Figure
from torch import Tensor, nn

from networks.attention_maps import attention_saliency
from networks.hog import draw_cells
from networks.masking import upsample_mask
from pipelines.batch_loader import Batch
from training.pretraining_tasks import JEPATask, MAETask, PretrainingTask, SeededClips, one_view
from utils.plotting import denormalize, draw_rows, draw_strips, overlay_heatmap


def draw_pretraining(
    task: PretrainingTask, batch: SeededClips, out: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """Draw some clips of a batch, what was hidden of them, and what the network predicted there."""
    if isinstance(task, JEPATask):
        return draw_masks(batch, out, mean, std)
    return draw_pixels(task, batch, out) if isinstance(task, MAETask) else draw_hog(batch, out, mean, std)


def draw_masks(
    batch: SeededClips, out: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], num_clips: int = 4
) -> Figure:
    """Draw clips, and below each what every one of its masks leaves: features that were predicted are no pictures."""
    frames = denormalize(one_view(batch.video)[:num_clips], mean, std)
    masks = out["mask"][: len(frames)].cpu().numpy()
    rows, titles = [], []
    for clip, clip_masks in zip(frames, masks, strict=True):
        hidden = upsample_mask(clip_masks, clip.shape[:3])[..., None]
        rows += [clip, *np.where(hidden, np.uint8(127), clip)]
        titles += ["input", *(f"mask {number}" for number in range(1, len(clip_masks) + 1))]
    return draw_strips(np.stack(rows), titles)


def draw_pixels(task: MAETask, batch: SeededClips, out: dict[str, Tensor], num_clips: int = 4) -> Figure:
    """Draw three strips of each clip: its frames, the visible part of them, and that with the predicted pixels."""
    targets = task.targets
    video = task.pixels(one_view(batch.video)[:num_clips])
    everything = torch.arange(math.prod(targets.grid), device=video.device).expand(len(video), -1)
    patches = targets.patches(video, everything)
    position, prediction = out["predicted"][:num_clips], out["prediction"][:num_clips].float()
    index = position[:, :, None, None].expand(-1, -1, *patches.shape[2:])
    predicted = prediction.unflatten(2, patches.shape[2:])
    if task.normalize:  # by the mean and the scale of the patch itself, which the network does not know
        center, scale = targets.statistics(patches.gather(1, index))
        predicted = predicted * scale + center
    hidden = torch.from_numpy(upsample_mask(out["mask"][:num_clips].cpu().numpy(), targets.grid))
    is_hidden = hidden.flatten(1)[..., None, None].to(video.device)
    mean, std = (torch.tensor(values, device=video.device) for values in task.unit)
    gray = ((0.5 - mean) / std).expand_as(patches)
    reconstructed = torch.where(is_hidden, gray.scatter(1, index, predicted), patches)
    versions = (patches, torch.where(is_hidden, gray, patches), reconstructed)
    strips = [denormalize(targets.video(version), *task.unit) for version in versions]
    rows = np.stack(strips, axis=1).reshape(-1, *strips[0].shape[1:])
    return draw_strips(rows, ["input", "masked input", "reconstruction"] * len(video))


def draw_hog(
    batch: SeededClips, out: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], num_clips: int = 6
) -> Figure:
    """Draw MaskFeat's work on some clips: masked input, predicted HOG, original HOG and the frame.

    Of each clip the frame with most masked tokens is drawn.
    """
    frames = denormalize(one_view(batch.video)[:num_clips], mean, std)
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
    pairs = zip(batch.label_names(classes), logits.argmax(-1).tolist(), strict=True)
    titles = [f"{label}, predicted {classes[prediction]}" for label, prediction in pairs][:6]
    return draw_strips(denormalize(batch.video[:6], mean, std), titles), titles
