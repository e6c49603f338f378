"""Tasks without labels: a network predicts what a mask hides of a clip.

Shapes: B batch; t h w the cells of a mask; N tokens, n of them visible, m predicted; D numbers per predicted token.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from networks.argument_checks import Grid
from networks.hog import hog_targets
from networks.jepa import JEPA
from networks.maskfeat import MaskFeat
from networks.masking import draw_masks, middle_frames, multi_block_masks, running_cell_masks, upsample_mask
from networks.pretraining import MaskedAutoencoder
from utils.device import autocast, to_device


class SeededClips(Protocol):
    """The part of a batch that these tasks read."""

    @property
    def video(self) -> Tensor: ...
    @property
    def seeds(self) -> Sequence[Sequence[int]]: ...


def masked_loss(
    prediction: Tensor, target: Tensor, counted: Tensor, error: Callable[[Tensor], Tensor] = torch.square
) -> dict[str, Tensor]:
    """Return the loss () and the baseline (), which is the loss of predicting the mean target, both in float32.

    Prediction and target (B, ..., D); `counted` (B, ...) is True for the tokens that count, one or more of each clip.
    A clip's loss is the mean error of its tokens. Also returned: losses and baselines (B,) of each clip.
    """
    count = counted.flatten(1).sum(1).clamp_min(1)
    weight = counted / count.view(-1, *[1] * (counted.ndim - 1))

    def mean_error(difference: Tensor) -> Tensor:
        return (error(difference).mean(-1) * weight).flatten(1).sum(1)

    with torch.no_grad():
        mean = (weight.unsqueeze(-1) * target).flatten(0, -2).sum(0) / len(target)
        baselines = mean_error(target - mean)
    losses = mean_error(prediction.float() - target)
    return {"loss": losses.mean(), "baseline": baselines.mean(), "losses": losses.detach(), "baselines": baselines}


class PretrainingTask(ABC):
    """Draw masks for each clip, and have a network predict what they hide.

    `keeps_last`: losses of different steps cannot be compared, so the last network is kept rather than the best one.
    """

    keeps_last = False

    @property
    @abstractmethod
    def description(self) -> str:
        """Say what is hidden, and what is predicted of it."""

    @abstractmethod
    def __call__(self, network: nn.Module, batch: SeededClips) -> dict[str, Tensor]:
        """Return what masked_loss() returns, and what was masked, on the device.

        The batch has video (B, C, T, H, W), or (B, 1, C, T, H, W) with one view each.
        """


class CellMaskTask(PretrainingTask):
    """A task with one mask (B, t, h, w) per clip, in which a share `ratio` of the cells is hidden."""

    def __init__(self, network: MaskFeat | MaskedAutoencoder, mask: str = "auto", ratio: float | str = "auto"):
        self.mask_grid: Grid = network.mask_grid
        self.mask = network.default_mask if mask == "auto" else mask
        self.ratio = network.default_mask_ratio if isinstance(ratio, str) else ratio
        hidden = draw_masks(self.mask, self.mask_grid, self.ratio, [(0, 0, 0)])
        if not hidden.any() or hidden.all():
            what, other = ("all", "smaller") if hidden.all() else ("none", "larger")
            raise ValueError(
                f"task.mask_ratio={self.ratio}: task.mask={self.mask} hides {what} of {self._cells} cells; expected a "
                f"{other} one"
            )
        self.share = float(hidden.mean())  # of the cells, exactly

    @property
    def _cells(self) -> str:
        return "x".join(map(str, self.mask_grid))

    @property
    def description(self) -> str:
        """Say what is hidden."""
        return f"{self.mask} masks hide {100 * self.share:.3g} % of {self._cells} cells"

    def draw_masks(self, batch: SeededClips) -> np.ndarray:
        """Return (B, t, h, w) bool, on the host. Each clip's mask depends on its (seed, epoch, sample_index) alone."""
        return draw_masks(self.mask, self.mask_grid, self.ratio, batch.seeds)


class MaskFeatTask(CellMaskTask):
    """Predict the HOG of masked tokens: mean squared error over all of them (MaskFeat, section 3).

    With mask="frame_runs" only the middle frame of each run counts (as in VideoTransformer-pytorch).
    """

    def __init__(  # noqa: PLR0913  # keys of the configuration
        self,
        network: MaskFeat,
        mask: str = "auto",
        ratio: float | str = "auto",
        *,
        window: int = 0,
        gradient: str = "sobel",
        compiled: bool = False,
    ):
        super().__init__(network, mask, ratio)
        self.grid, self.upsample_mask, self.frames = network.token_grid, network.upsample_mask, network.target_frames
        self.window, self.gradient = window, gradient
        self.targets = torch.compile(hog_targets) if compiled else hog_targets

    def sample_mask(self, batch: SeededClips) -> tuple[Tensor, Tensor]:
        """Draw the mask (B, t, h, w) and the frames (B, t, f) whose masked tokens count, bool on the clips' device."""
        mask = self.draw_masks(batch)
        frames = np.ones((*mask.shape[:2], self.frames), bool)
        if self.mask == "frame_runs":
            frames = middle_frames(mask, self.frames)
        device = batch.video.device
        return to_device(mask, device), to_device(frames, device)

    def __call__(self, network: nn.Module, batch: SeededClips) -> dict[str, Tensor]:
        """Return also mask, frames (B, t, f) that count, prediction and target (B, t, f, h, w, D)."""
        mask, frames = self.sample_mask(batch)
        video = one_view(batch.video)
        prediction = network(video, mask)
        with torch.no_grad():
            target = self.targets(video, self.grid, self.frames, self.window, self.gradient)
            _, h, _ = self.grid
            hidden = rearrange(self.upsample_mask(mask, self.grid), "B t (h w) -> B t 1 h w", h=h)
            counted = hidden & rearrange(frames, "B t f -> B t f 1 1")
        out = masked_loss(prediction, target, counted)
        return out | {"mask": mask, "frames": frames, "prediction": prediction.detach(), "target": target}


class MAETask(CellMaskTask):
    """Predict the pixels of masked patches: mean squared error (VideoMAE, section 3; Hiera, section 3).

    With a `decoder_ratio` the decoder predicts only the patches that running cells leave, a share of 1 - decoder_ratio,
    and the masked ones among them count (VideoMAE v2, section 3.2). `normalize`: each patch is normalized by its own
    mean and standard deviation. `mean` and `std` are those that the clips were normalized with.
    """

    def __init__(  # noqa: PLR0913  # keys of the configuration
        self,
        network: MaskedAutoencoder,
        mask: str = "auto",
        ratio: float | str = "auto",
        *,
        decoder_ratio: float = 0.0,
        normalize: bool = True,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ):
        super().__init__(network, mask, ratio)
        if self.mask == "frame_runs":
            raise ValueError(
                "task.mask=frame_runs: expected cube, tube or random; it is for MaskFeat, which predicts the middle "
                "frame of each run"
            )
        self.targets, self.normalize, self.decoder_ratio = network.pixel_targets, normalize, decoder_ratio
        if decoder_ratio:
            running_cell_masks(self.targets.grid, decoder_ratio, [(0, 0, 0)])  # raises ValueError if it cannot
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (mean, std))
        # Mean and standard deviation that what pixels() returns is still normalized with.
        self.unit = ((0.0,), (1.0,)) if self.targets.unit_range else (tuple(mean), tuple(std))

    @property
    def description(self) -> str:
        """Say what is hidden, what the decoder leaves out, and in which unit pixels are predicted."""
        parts = [super().description]
        if self.decoder_ratio:
            parts.append(f"the decoder leaves out {100 * self.decoder_ratio:g} % of the patches")
        if not self.normalize:
            parts.append("patches are not normalized")
        return "; ".join(parts)

    def sample_positions(self, batch: SeededClips) -> tuple[np.ndarray, ...]:
        """Return the mask (B, t, h, w), and the positions of visible cells (B, n) and of predicted tokens (B, m), with
        which of the predicted ones count, (B, m) bool; all on the host."""
        mask = self.draw_masks(batch)
        hidden = upsample_mask(mask, self.targets.grid).reshape(len(mask), -1)
        chosen = hidden
        if self.decoder_ratio:
            chosen = ~running_cell_masks(self.targets.grid, self.decoder_ratio, batch.seeds).reshape(len(mask), -1)
        predicted = positions_of(chosen)
        visible = positions_of(~mask.reshape(len(mask), -1))
        return mask, visible, predicted, np.take_along_axis(hidden, predicted, 1)

    def pixels(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same clips in float32, in the unit in which pixels are predicted."""
        if not self.targets.unit_range:
            return video.float()
        if self.mean.device != video.device:
            self.mean, self.std = self.mean.to(video.device), self.std.to(video.device)
        return video.float() * self.std + self.mean

    def __call__(self, network: nn.Module, batch: SeededClips) -> dict[str, Tensor]:
        """Return also mask, positions (B, m) of the predicted tokens, prediction and target (B, m, D)."""
        video = one_view(batch.video)
        mask, visible, predicted, counted = (to_device(part, video.device) for part in self.sample_positions(batch))
        prediction = network(video, visible, predicted)
        with torch.no_grad():
            patches = self.targets.patches(self.pixels(video), predicted)
            target = (self.targets.normalize(patches) if self.normalize else patches).flatten(2)
        out = masked_loss(prediction, target, counted)
        return out | {"mask": mask, "predicted": predicted, "prediction": prediction.detach(), "target": target}


class JEPATask(PretrainingTask):
    """Predict what the teacher makes of masked patches: mean absolute error (V-JEPA 2, section 2.1).

    Each clip has two masks, one of small blocks and one of large ones; the loss is the mean over both.
    """

    keeps_last = True  # the teacher learns, too
    description = "masks of small blocks and of large ones"

    def __init__(self, network: JEPA):
        self.mask_grid = network.mask_grid
        for mask in multi_block_masks(self.mask_grid, [(0, 0, 0)]):
            if mask.all() or not mask.any():
                cells = "x".join(map(str, self.mask_grid))
                raise ValueError(
                    f"data.image_size: frames of {cells} patches are too small for the blocks of V-JEPA; "
                    "expected larger frames, or smaller patches"
                )

    def __call__(self, network: nn.Module, batch: SeededClips) -> dict[str, Tensor]:
        """Return also the masks (B, 2, t, h, w)."""
        video, masks = one_view(batch.video), multi_block_masks(self.mask_grid, batch.seeds)
        flat = [mask.reshape(len(mask), -1) for mask in masks]
        positions = [tuple(to_device(positions_of(part), video.device) for part in (~mask, mask)) for mask in flat]
        outs = []
        for prediction, target in network(video, positions):
            counted = torch.ones(prediction.shape[:2], dtype=torch.bool, device=video.device)
            outs.append(masked_loss(prediction, target, counted, torch.abs))
        mean = {key: torch.stack([out[key] for out in outs]).mean(0) for key in outs[0]}
        return mean | {"mask": to_device(np.stack(masks, axis=1), video.device)}


def one_view(video: Tensor) -> Tensor:
    """(B, C, T, H, W) or (B, 1, C, T, H, W) -> (B, C, T, H, W)."""
    return video.flatten(0, 1) if video.ndim == 6 else video


def positions_of(chosen: np.ndarray) -> np.ndarray:
    """(B, N) bool, as many of each row -> their positions (B, n) int64, in order."""
    return np.nonzero(chosen)[1].reshape(len(chosen), -1)


@torch.inference_mode()
def mean_loss(
    network: nn.Module,
    task: PretrainingTask,
    batches: Iterable[Any],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, float, tuple[Any, dict[str, Tensor]]]:
    """Return the mean loss over the videos of all ranks, the mean baseline, and the first batch with its outputs.

    Samples with a negative sample_index are padding. The masks are the same in every validation.
    """
    was_training = network.training
    network.eval()
    sums = torch.zeros(3, device=device)
    first = None
    for batch in batches:
        with autocast(device, dtype):
            out = task(network, batch)
        first = first or (batch, out)
        scored = (batch.sample_index >= 0).float()
        sums += torch.stack([(out["losses"] * scored).sum(), (out["baselines"] * scored).sum(), scored.sum()])
    network.train(was_training)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    loss, baseline, count = sums.tolist()
    assert first is not None
    return loss / max(count, 1), baseline / max(count, 1), first
