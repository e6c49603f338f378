"""Tensors resized from one network to another: kernels over other tubelets, positions of other sizes and lengths."""

import re
from collections.abc import Collection, Sequence
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from networks.argument_checks import Grid
from networks.pos_embed import resample_1d, resample_pos_embed, sincos_pos_embed
from networks.weights.rename_keys import PATCH_KERNEL, RenamedWeights

WHICH_GRID = "give source_grid=[t, h, w]"


class Resizer:
    """Resizes the tensors whose size follows from frames, rows and columns.

    `source` are the weights, `network` the one that they are for, whose keys are `target_keys`. `source_grid` is the
    (t, h, w) of the position embeddings of the source, None if they determine it.
    """

    def __init__(
        self,
        source: RenamedWeights,
        network: nn.Module,
        target_keys: Collection[str],
        *,
        inflation: str,
        source_grid: Grid | None,
    ):
        self.source, self.inflation, self.source_grid = source, inflation, source_grid
        self.grid: Grid = network.patch_embed.grid  # type: ignore[union-attr,assignment]
        kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
        self.num_temporal_cls = int(kwargs.get("cls_token", getattr(network, "has_cls_token", True)))
        self.num_source_cls, self.num_target_cls = (int("cls_token" in keys) for keys in (source.state, target_keys))

    def resize(self, key: str, tensor: Tensor, target: Tensor) -> tuple[Tensor, str]:
        """Return the tensor in the size of `target`, and how it was resized; any other tensor is returned as it is."""
        if key == PATCH_KERNEL and is_same_but_frames(tensor, target):
            num_frames = target.shape[2]
            return inflate(tensor, num_frames, self.inflation), f"inflated to {num_frames} frames, {self.inflation}"
        if key == "mask_tokens" and len(tensor) > len(target):  # V-JEPA 2 has ten, of which it trains these
            return tensor[: len(target)], f"the first {len(target)} of {len(tensor)}"
        if re.fullmatch("rel_pos_[thw]", key.rpartition(".")[2]) and tensor.shape[1] == target.shape[1]:
            return resample_1d(tensor[None], len(target))[0], f"{len(tensor)} -> {len(target)} distances, linear"
        is_pos_embed = key.startswith(("pos_embed", "time_embed", "temporal_pos_embed"))
        if not is_pos_embed or tensor.shape[::2] != target.shape[::2]:
            return tensor, ""
        if key == "pos_embed":
            return self.resize_pos_embed(tensor, target)
        old_length, new_length = tensor.shape[1], target.shape[1]
        if key in ("time_embed", "pos_embed_temporal"):
            return resample_1d(tensor, new_length), f"{old_length} -> {new_length} frames, linear"
        if key == "temporal_pos_embed":
            num_cls = self.num_temporal_cls
            frames = resample_1d(tensor[:, num_cls:], new_length - num_cls)
            return torch.cat([tensor[:, :num_cls], frames], dim=1), f"{old_length} -> {new_length} rows, linear"
        if key == "pos_embed_spatial":
            old_grid, new_grid = (1, *self.frame_grid(old_length)), (1, *self.grid[1:])
            return resample_pos_embed(tensor, old_grid, new_grid), describe_resampling(old_grid, new_grid)
        return tensor, ""

    def resize_pos_embed(self, table: Tensor, target: Tensor) -> tuple[Tensor, str]:
        """Resize positions of a frame or a clip, and tile those of a frame over the frames of a clip."""
        new_grid = self.target_grid(target.shape[1] - self.num_target_cls)
        old_grid = self.grid_of_source(table.shape[1] - self.num_source_cls, new_grid)
        patches, details = table[:, self.num_source_cls :], []
        if old_grid != new_grid and old_grid[0] == 1 and new_grid[0] > 1:
            patches = repeat(patches, "one n D -> one (t n) D", t=new_grid[0])
            old_grid = (new_grid[0], *old_grid[1:])
            details.append(f"tiled over {new_grid[0]} frames")
        if old_grid != new_grid:
            patches = resample_pos_embed(patches, old_grid, new_grid)
            details.append(describe_resampling(old_grid, new_grid))
        cls_row = table[:, : self.num_source_cls][:, : self.num_target_cls]
        if self.num_source_cls and not self.num_target_cls:
            details.append("row of the class token left out")
        if self.num_target_cls and not self.num_source_cls:
            cls_row = torch.zeros_like(target[:, :1])
            details.append("row of zeros for the class token")
        return torch.cat([cls_row, patches], dim=1), ", ".join(details)

    def sincos_pos_embed(self, target: Tensor) -> Tensor:
        """Return the fixed positions of the source in the size of `target`, with zeros for a class token."""
        _, length, embed_dim = target.shape
        t, h, w = self.target_grid(length - self.num_target_cls)
        if self.source.format.architecture == "image":
            patches = repeat(sincos_pos_embed(h * w, embed_dim), "one n D -> one (t n) D", t=t)
        else:
            patches = sincos_pos_embed(t * h * w, embed_dim)
        return torch.cat([torch.zeros_like(target[:, : self.num_target_cls]), patches.to(target)], dim=1)

    def target_grid(self, num_positions: int) -> Grid:
        """Return the grid of the network's positions: that of a clip, or of one frame."""
        t, h, w = self.grid
        return (t, h, w) if num_positions == t * h * w else (1, h, w)

    def grid_of_source(self, num_positions: int, target_grid: Grid) -> Grid:
        """Return source_grid, otherwise a square frame, or for positions of clips the target's grid if it has as many.

        Raises ValueError if the grid is none of these.
        """
        if num_positions < 1:
            raise ValueError("there is no position but that of the class token")
        if self.source_grid:
            t, h, w = self.source_grid
            if num_positions not in (t * h * w, h * w):
                raise ValueError(f"{num_positions} positions do not fill a grid of {t} x {h} x {w}")
            return (t, h, w) if num_positions == t * h * w else (1, h, w)
        is_of_clip = self.source.format.architecture == "vivit" and "temporal_pos_embed" not in self.source.state
        if not is_of_clip:
            return 1, *self.frame_grid(num_positions)
        t, h, w = target_grid
        if num_positions == t * h * w:
            return target_grid
        raise ValueError(f"{num_positions} positions could have several grids: {WHICH_GRID}")

    def frame_grid(self, num_positions: int) -> tuple[int, int]:
        if self.source_grid:
            _, h, w = self.source_grid
            if h * w != num_positions:
                raise ValueError(f"{num_positions} positions do not fill a grid of {h} x {w}")
            return h, w
        side = isqrt(num_positions)
        if side * side != num_positions:
            raise ValueError(f"{num_positions} positions do not fill a square grid: {WHICH_GRID}")
        return side, side


def is_same_but_frames(kernel: Tensor, target: Tensor) -> bool:
    """Return whether a patch kernel over one frame differs from the target in the number of frames only."""
    is_same = kernel.shape[:2] + kernel.shape[3:] == target.shape[:2] + target.shape[3:]
    return kernel.shape[2] == 1 and is_same


def inflate(kernel: Tensor, num_frames: int, inflation: str) -> Tensor:
    """(D, C, 1, p, p) -> (D, C, num_frames, p, p).

    The kernel is put at the middle frame ("central": index num_frames // 2, as in scenic), or divided among all frames
    ("average").
    """
    if inflation == "average":
        return repeat(kernel, "D C 1 p q -> D C t p q", t=num_frames) / num_frames
    middle = num_frames // 2
    return F.pad(kernel, (0, 0, 0, 0, middle, num_frames - 1 - middle))


def describe_resampling(old_grid: Sequence[int], new_grid: Sequence[int]) -> str:
    methods = []
    if old_grid[1:] != new_grid[1:]:
        methods.append("bicubic")
    if old_grid[0] != new_grid[0]:
        methods.append("linear over frames")
    if not methods:
        return ""
    return f"{'x'.join(map(str, old_grid))} -> {'x'.join(map(str, new_grid))}, {', '.join(methods)}"
