"""Build the architectures of bench.train_step as other libraries implement them, untrained."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from networks.videomae import VideoMAE
from networks.weights.hf_config import describe_for_transformers


class FramesFirst(nn.Module):
    """A network of transformers, which takes (B, T, C, H, W), for clips (B, C, T, H, W) -> logits (B, num_classes)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, num_classes)."""
        logits: Tensor = self.network(rearrange(video, "B C T H W -> B T C H W")).logits
        return logits.flatten(1)  # VideoPrism's are (B, 1, num_classes)


class MeanOverFrames(nn.Module):
    """An image encoder of transformers applied to each frame, whose class tokens are averaged and classified."""

    def __init__(self, encoder: nn.Module, embed_dim: int, num_classes: int):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(embed_dim, num_classes)

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, num_classes)."""
        class_tokens = self.encoder(rearrange(video, "B C T H W -> (B T) C H W")).pooler_output
        return self.head(rearrange(class_tokens, "(B T) D -> B T D", B=video.shape[0]).mean(1))


def build_baseline(name: str, num_classes: int, input_shape: Sequence[int], depth: int = 0) -> nn.Module:
    """Build a network for clips of shape (C, T, H, W); a `depth` of 0 is the network's own.

    Raises ValueError if its library is not installed or does not build it for this shape.
    """
    try:
        import timm  # noqa: F401
        import torchvision  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name}, the baseline of {name}, is not installed; use cases=clipline") from None
    if name.startswith("mvit"):
        return build_torchvision_mvit(name, num_classes, input_shape)
    if name.startswith("hiera"):
        return build_timm_hiera(num_classes, input_shape)
    return build_transformers_network(name, num_classes, input_shape, depth)


def build_transformers_network(name: str, num_classes: int, input_shape: Sequence[int], depth: int) -> nn.Module:
    """Build a network of transformers."""
    import transformers

    _, num_frames, image_size, _ = input_shape
    layers = {"num_hidden_layers": depth} if depth else {}
    sizes = {"num_frames": num_frames, "image_size": image_size, "num_labels": num_classes}
    if name.startswith("timesformer"):
        config = transformers.TimesformerConfig(attention_type="divided_space_time", **sizes, **layers)
        return FramesFirst(transformers.TimesformerForVideoClassification(config))
    if name.startswith("vivit"):
        config = transformers.VivitConfig(**sizes, **layers)
        return FramesFirst(transformers.VivitForVideoClassification(config))
    if name.startswith("videomae"):
        config = transformers.VideoMAEConfig(**sizes, **layers, use_mean_pooling=True)
        return FramesFirst(transformers.VideoMAEForVideoClassification(config))
    if name.startswith("vjepa2"):
        clip = {"frames_per_clip": num_frames, "crop_size": image_size}
        config = transformers.VJEPA2Config(num_labels=num_classes, **clip, **layers)
        classifier = transformers.VJEPA2ForVideoClassification(config)
        del classifier.vjepa2.predictor  # it takes no part in classification
        return FramesFirst(classifier)
    if name.startswith("videoprism"):
        layers = {"num_spatial_layers": depth} if depth else {}
        config = transformers.VideoPrismVisionConfig(**sizes, **layers)
        return FramesFirst(transformers.VideoPrismForVideoClassification(config))
    config = transformers.Dinov2Config(image_size=image_size, patch_size=14, **layers)
    encoder = transformers.Dinov2Model(config)
    encoder.embeddings.mask_token.requires_grad_(False)  # it takes no part in classification
    return MeanOverFrames(encoder, config.hidden_size, num_classes)


def build_masked_baseline(network: VideoMAE) -> nn.Module:
    """Build VideoMAEForPreTraining of transformers in the sizes of a network."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{error.name}, the baseline, is not installed; use baseline=no") from None
    return transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**describe_for_transformers(network).config))


def build_timm_hiera(num_classes: int, input_shape: Sequence[int]) -> nn.Module:
    """Build Hiera-B for clips, as timm's code can, although timm has it for images only."""
    from timm.models.hiera import Hiera

    network: nn.Module = Hiera(
        img_size=tuple(input_shape[1:]),
        num_classes=num_classes,
        stages=(2, 3, 16, 3),
        q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8),
        patch_kernel=(3, 7, 7),
        patch_stride=(2, 4, 4),
        patch_padding=(1, 3, 3),
        sep_pos_embed=True,
    )
    return network


def build_torchvision_mvit(name: str, num_classes: int, input_shape: Sequence[int]) -> nn.Module:
    """Build MViT of torchvision."""
    from torchvision.models import video as torchvision

    if tuple(input_shape[1:]) != (16, 224, 224):
        raise ValueError(
            f"torchvision builds {name} for clips of 16x224x224 only; leave out num_frames= and image_size=, or use "
            "cases=clipline"
        )
    build = {"mvit_v1_b": torchvision.mvit_v1_b, "mvit_v2_s": torchvision.mvit_v2_s}[name]
    network: nn.Module = build(num_classes=num_classes)
    return network
