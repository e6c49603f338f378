"""Give a module of a network another behavior where it is, so that the keys of its weights stay what they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_classes: dict[tuple[type, type], type] = {}  # so that modules of one class have one class with an extension, too


def _extended(extension: type[nn.Module], cls: type[nn.Module]) -> type[nn.Module]:
    return _classes.setdefault((extension, cls), type(f"{extension.__name__}{cls.__name__}", (extension, cls), {}))


def extend(module: nn.Module, extension: type[nn.Module]) -> None:
    """Put a class before that of the module, as FSDP2 does: its methods may call those of the module by super().

    A module that is Recomputed is so with its extension.
    """
    recomputed = isinstance(module, Recomputed)
    if recomputed:
        remove_extension(module, Recomputed)
    module.__class__ = _extended(extension, type(module))
    if recomputed:
        module.__class__ = _extended(Recomputed, type(module))


def remove_extension(module: nn.Module, extension: type[nn.Module]) -> None:
    """Undo extend(), of which this must have been the last."""
    first, cls = type(module).__bases__
    assert first is extension
    module.__class__ = cls


class Recomputed(nn.Module):
    """Extend a block to be computed again in the backward pass instead of keeping its activations."""

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Return what the block returns."""
        return checkpoint(super().forward, *inputs, use_reentrant=False, **options)  # type: ignore[misc]
