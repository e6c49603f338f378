"""Run-length tokenization (Choudhury et al., "Don't Look Twice", 2024): patches that do not change over time are left
out, and the clips of a batch, which then have different numbers of tokens, are packed one after the other.

Shapes: B clips, C channels, T frames, H W pixels; N tokens of a clip, with prefix tokens first; D their dimension;
M kept tokens of all clips; h heads, d dimension of one head.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks.argument_checks import Grid
from networks.layers import attend


class Packing(NamedTuple):
    """The kept tokens of clips (B, N): their positions in the clip (M,), and how many each clip has."""

    keep: Tensor  # (B, N) bool
    positions: Tensor
    lengths: list[int]

    @staticmethod
    def of(keep: Tensor, num_prefix_tokens: int = 0) -> "Packing":
        """Describe which patches (B, n) are kept, after prefix tokens, which always are.

        On a GPU this waits for it, as the lengths are needed on the host.
        """
        keep = F.pad(keep, (num_prefix_tokens, 0), value=True)
        return Packing(keep, keep.nonzero()[:, 1], keep.sum(1).tolist())

    @property
    def is_complete(self) -> bool:
        """Return whether no token of any clip is left out."""
        return sum(self.lengths) == self.keep.numel()

    def pack(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (M, D)."""
        return tokens[self.keep]

    def split(self, packed: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """Return the part of each clip."""
        return packed.split(self.lengths, dim)


def check_rlt_threshold(threshold: float, is_joint: bool = True) -> None:
    """Raise ValueError unless a threshold is a number of 0 or more, and 0 for attention that is not joint."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold >= 0:
        raise ValueError(f"rlt_threshold={threshold!r}: expected a number of 0 or more")
    if threshold and not is_joint:
        raise ValueError(f"rlt_threshold={threshold}: expected 0, as it needs joint attention over all tokens")


def changed_patches(video: Tensor, patch: Grid, threshold: float) -> Tensor:
    """(B, C, T, H, W) normalized -> (B, t h w) bool: whether a tubelet shows something that the one before it did not.

    It does if the last frame of its own differs from the first frame of the one before by `threshold` or more, in the
    mean over channels and pixels of the patch (section 3.1). The first tubelets all do, and at a threshold of 0 all.
    """
    frames, rows, columns = patch
    difference = (video[:, :, 2 * frames - 1 :: frames] - video[:, :, :-frames:frames]).float().abs()
    size = {"h": rows, "w": columns}
    change = reduce(difference, "B C t (rows h) (columns w) -> B t rows columns", "mean", **size)
    first = change.new_full((len(change), 1, *change.shape[2:]), torch.inf)
    return rearrange(torch.cat([first, change], dim=1) >= threshold, "B t h w -> B (t h w)")


@contextmanager
def all_tokens(network: nn.Module) -> Iterator[None]:
    """Let a network keep all tokens inside the block, for what needs them: hooks, attention maps."""
    before: Any = getattr(network, "rlt_threshold", 0.0)
    if before:
        network.rlt_threshold = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        if before:
            network.rlt_threshold = before


@torch.compiler.disable  # lengths differ from batch to batch
def run_packed_blocks(
    blocks: Iterable[nn.Module], packed: Tensor, packing: Packing, checkpoint_blocks: int = 0
) -> Tensor:
    """Run transformer blocks over packed tokens (M, D), each clip by itself: (M, D).

    The first `checkpoint_blocks` are recomputed in the backward pass. Raises ValueError in training with stochastic
    depth, which drops whole items of a batch.
    """
    for index, block in enumerate(blocks):
        if block.training and getattr(block.drop_path, "drop_prob", False):
            raise ValueError("rlt_threshold: training with it needs drop_path=0")
        if index < checkpoint_blocks and torch.is_grad_enabled():
            packed = checkpoint(_packed_block, block, packed, packing, use_reentrant=False)
        else:
            packed = _packed_block(block, packed, packing)
    return packed


def _packed_block(block: Any, packed: Tensor, packing: Packing) -> Tensor:
    """(M, D) -> (M, D): as Block, where the tokens of each clip attend to each other."""
    attn = block.attn
    qkv = attn.query_key_value(block.norm1(packed)[None], packing.positions)  # (1, h, M, d) each
    parts = zip(*(packing.split(heads, dim=2) for heads in qkv), strict=True)
    mixed = torch.cat([attend(query, key, value, attn.scale) for query, key, value in parts], dim=2)
    packed = packed + attn.proj(attn.merge_heads(mixed))[0]
    return packed + block.mlp(block.norm2(packed))
