"""Build the same architectures as another library has them, untrained, for bench.train_step to measure ours beside."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn


class FramesFirst(nn.Module):
    """A network of transformers', which takes (B, T, C, H, W), for clips (B, C, T, H, W) -> logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, video: Tensor) -> Tensor:
        logits: Tensor = self.network(rearrange(video, "B C T H W -> B T C H W")).logits
        return logits


def build_peer(name: str, num_classes: int, shape: Sequence[int], depth: int = 0) -> nn.Module:
    """`shape` is (C, T, H, W); `depth` 0 is the network's own. Raises ValueError if the library is not installed."""
    _, frames, height, _ = shape
    try:
        import transformers
        from torchvision.models import video as torchvision
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed, the peer of {name}; cases=ours goes without") from None
    layers = {"num_hidden_layers": depth} if depth else {}
    sizes = {"num_frames": frames, "image_size": height, "num_labels": num_classes, **layers}
    if name.startswith("timesformer"):
        config = transformers.TimesformerConfig(attention_type="divided_space_time", **sizes)
        return FramesFirst(transformers.TimesformerForVideoClassification(config))
    if name.startswith("vivit"):
        config = transformers.VivitConfig(**sizes)
        return FramesFirst(transformers.VivitForVideoClassification(config))
    if name.startswith("videomae"):
        config = transformers.VideoMAEConfig(**sizes, use_mean_pooling=True)
        return FramesFirst(transformers.VideoMAEForVideoClassification(config))
    if (frames, height) != (16, 224):
        raise ValueError(
            f"torchvision builds {name} for 16x224x224 alone; without frames= and size=, or with cases=ours"
        )
    build = {"mvit_v1_b": torchvision.mvit_v1_b, "mvit_v2_s": torchvision.mvit_v2_s}[name]
    network: nn.Module = build(num_classes=num_classes)
    return network
