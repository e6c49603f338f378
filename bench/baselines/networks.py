"""Build the architectures of bench.train_step as other libraries implement them, untrained."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn


class FramesFirst(nn.Module):
    """A network of transformers, which takes (B, T, C, H, W), for clips (B, C, T, H, W) -> logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, num_classes)."""
        logits: Tensor = self.network(rearrange(video, "B C T H W -> B T C H W")).logits
        return logits


def build_baseline(name: str, num_classes: int, input_shape: Sequence[int], depth: int = 0) -> nn.Module:
    """Build a network for clips of shape (C, T, H, W); a `depth` of 0 is the network's own.

    Raises ValueError if its library is not installed or does not build it for this shape.
    """
    _, num_frames, image_size, _ = input_shape
    try:
        import transformers
        from torchvision.models import video as torchvision
    except ImportError as error:
        raise ValueError(f"{error.name}, the baseline of {name}, is not installed; use cases=clipline") from None
    layers = {"num_hidden_layers": depth} if depth else {}
    sizes = {"num_frames": num_frames, "image_size": image_size, "num_labels": num_classes, **layers}
    if name.startswith("timesformer"):
        config = transformers.TimesformerConfig(attention_type="divided_space_time", **sizes)
        return FramesFirst(transformers.TimesformerForVideoClassification(config))
    if name.startswith("vivit"):
        config = transformers.VivitConfig(**sizes)
        return FramesFirst(transformers.VivitForVideoClassification(config))
    if name.startswith("videomae"):
        config = transformers.VideoMAEConfig(**sizes, use_mean_pooling=True)
        return FramesFirst(transformers.VideoMAEForVideoClassification(config))
    if (num_frames, image_size) != (16, 224):
        raise ValueError(
            f"torchvision builds {name} for clips of 16x224x224 only; leave out num_frames= and image_size=, or use "
            "cases=clipline"
        )
    build = {"mvit_v1_b": torchvision.mvit_v1_b, "mvit_v2_s": torchvision.mvit_v2_s}[name]
    network: nn.Module = build(num_classes=num_classes)
    return network
