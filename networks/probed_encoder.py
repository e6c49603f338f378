"""A frozen encoder with one probe, which is a classifier, or with a grid of probes that are trained side by side.

Shapes: B videos, L clips per video, C channels, T frames, H W pixels; N tokens of all clips, D their dimension, P
probes, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from networks.argument_checks import check_positive, jsonable_kwargs
from networks.attentive_pooler import standardize
from networks.layer_outputs import layer_patches
from networks.layers import AttentionLayout
from networks.probe import AttentiveProbe, make_probe, probe_inputs
from networks.variants import VARIANTS


class FrozenEncoder(nn.Module):
    """The tokens of a network that is not trained and always in eval mode.

    `encoder` is the name of a network, `encoder_args` are its arguments. The tokens are the normed ones that it ends
    with; with `layers` those that the layers of these names put out, normed as the last ones are, one layer after the
    other (as V-JEPA 2 does on Diving48).
    """

    def __init__(
        self, encoder: str, encoder_args: Mapping[str, Any], layers: Sequence[str], num_frames: int, image_size: Any
    ):
        super().__init__()
        self.layers = list(layers)
        args = {"num_frames": num_frames, "image_size": image_size, **encoder_args, "num_classes": 0, "pooling": "mean"}
        if encoder not in VARIANTS:
            raise ValueError(f"encoder={encoder!r}: expected one of {', '.join(VARIANTS)}")
        if args.get("rlt_threshold"):
            raise ValueError("rlt_threshold: expected 0 for a network that is probed, whose probes take all tokens")
        self.encoder: Any = VARIANTS[encoder](**args).requires_grad_(False).eval()
        with torch.device("meta"):  # to learn the shape of the tokens without computing them
            twin: Any = VARIANTS[encoder](**args).eval()
            clip = torch.empty(1, *twin.patch_embed.input_shape)
            self.embed_dim = self._extract(twin, clip).shape[-1]

    def _extract(self, encoder: Any, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, N, D)."""
        if not self.layers:
            return encoder.forward_tokens(clips)
        outputs = layer_patches(encoder, clips, self.layers, encoder.attention_layout.num_prefix_tokens)
        if len({tokens.shape[-1] for tokens in outputs}) > 1:
            dims = ", ".join(str(tokens.shape[-1]) for tokens in outputs)
            raise ValueError(f"layers={','.join(self.layers)}: expected tokens of equal dimension, they have {dims}")
        norm = find_norm(encoder, outputs[0].shape[-1])
        return torch.cat([norm(tokens) for tokens in outputs], dim=1)

    @property
    def has_cls_token(self) -> bool:
        """Return whether the encoder has a class token."""
        return getattr(self.encoder, "has_cls_token", True)

    @property
    def encoder_heads(self) -> int:
        """Return the number of attention heads of the encoder's last block."""
        return self.blocks[-1].attn.num_heads

    @property
    def patch_embed(self) -> Any:
        """Return the encoder's patch embedding."""
        return self.encoder.patch_embed

    @property
    def blocks(self) -> Any:
        """Return the encoder's blocks."""
        return self.encoder.blocks

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Set the mode of the probes; the encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def forward_tokens(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W), or (B, L, C, T, H, W) of several clips -> (B, N, D), the tokens of all clips in a row.

        Tokens (B, N, D) that were kept from an earlier pass are returned as they are.
        """
        if video.ndim == 3:
            return video
        tokens = self._extract(self.encoder, video.flatten(0, 1) if video.ndim == 6 else video)
        return rearrange(tokens, "(B L) N D -> B (L N) D", B=video.shape[0])

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, [L,] C, T, H, W) -> (B, D): the mean of the tokens."""
        return reduce(self.forward_tokens(video), "B N D -> B D", "mean")


def find_norm(encoder: Any, embed_dim: int) -> Callable[[Tensor], Tensor]:
    """Return the norm of an encoder's last tokens; `standardize` for tokens of another dimension, or if it has none."""
    norm = getattr(getattr(encoder, "backbone", encoder), "norm", None)
    return norm if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (embed_dim,) else standardize


class ProbedEncoder(FrozenEncoder):
    """A frozen encoder and one probe: a classifier of videos from the tokens of `num_clips` clips at once.

    Attentive probes have `num_heads` attention heads (0: as many as the encoder's last block).
    """

    def __init__(  # noqa: PLR0913  # the network's configuration, kept as keywords in config.json
        self,
        num_classes: int,
        *,
        encoder: str,
        encoder_args: Mapping[str, Any] | None = None,
        kind: str = "attentive",
        layers: Sequence[str] = (),
        num_heads: int = 0,
        num_clips: int = 1,
        num_frames: int = 16,
        image_size: Any = 224,
    ):
        kwargs = jsonable_kwargs(locals())
        super().__init__(encoder, encoder_args or {}, layers, num_frames, image_size)
        self.kwargs = kwargs
        check_positive(num_classes=num_classes, num_clips=num_clips)
        self.num_clips = num_clips
        self.probe = make_probe(kind, self.embed_dim, num_classes, num_heads or self.encoder_heads)

    @property
    def head(self) -> nn.Linear:
        """Return the linear classifier."""
        return self.probe.head

    @property
    def attention_layout(self) -> AttentionLayout | None:
        """Return the layout of the tokens that an attentive probe pools; None if it has none, or they are not patches
        of one layer."""
        layout: AttentionLayout = self.encoder.attention_layout
        is_time_only = layout.kind == "factorized_encoder" and not layout.prefix  # with a prefix, patches of frames
        if not isinstance(self.probe, AttentiveProbe) or self.layers or is_time_only:
            return None
        pooler_layer = "probe.pooler.cross_attention_block.xattn"
        return AttentionLayout("joint", self.encoder.token_grid, num_prefix_tokens=0, pooler_layer=pooler_layer)

    def forward_features(self, video: Tensor) -> Tensor:
        """(B, [L,] C, T, H, W) -> (B, D)."""
        return self.probe.pool(probe_inputs(self.forward_tokens(video), {self.probe.takes})[self.probe.takes])

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.probe.head(features)

    def forward(self, video: Tensor) -> Tensor:
        """(B, [L,] C, T, H, W) -> logits (B, K)."""
        return self.forward_head(self.forward_features(video))


class ProbeGrid(FrozenEncoder):
    """A frozen encoder and many probes, which are trained side by side on the same tokens.

    `active` are the numbers of the probes that are still trained, at first all of them. Probes of one kind begin with
    the same weights, drawn from `seed`, whatever others there are.
    """

    def __init__(  # noqa: PLR0913  # the network's configuration
        self,
        num_classes: int,
        *,
        encoder: str,
        encoder_args: Mapping[str, Any] | None = None,
        kinds: Sequence[str] = ("attentive",),
        layers: Sequence[str] = (),
        num_heads: int = 0,
        num_clips: int = 1,
        num_frames: int = 16,
        image_size: Any = 224,
        seed: int = 0,
    ):
        kwargs = jsonable_kwargs(locals())
        super().__init__(encoder, encoder_args or {}, layers, num_frames, image_size)
        self.kwargs, self.num_clips = kwargs, num_clips
        check_positive(num_classes=num_classes, num_clips=num_clips)
        probes: list[nn.Module] = []
        for kind in kinds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                probes.append(make_probe(kind, self.embed_dim, num_classes, num_heads or self.encoder_heads))
        self.probes = nn.ModuleList(probes)
        self.active = list(range(len(probes)))

    def forward(self, video: Tensor) -> Tensor:
        """(B, [L,] C, T, H, W) -> logits (P, B, K) of the active probes."""
        probes: list[Any] = [self.probes[index] for index in self.active]
        inputs = probe_inputs(self.forward_tokens(video), {probe.takes for probe in probes})
        return torch.stack([probe.head(probe.pool(inputs[probe.takes])) for probe in probes])

    def stop(self, index: int) -> None:
        """Train a probe no longer."""
        self.active.remove(index)
        self.probes[index].requires_grad_(False)

    def select(self, index: int) -> ProbedEncoder:
        """Return a network of the encoder and one of the probes, which shares their weights."""
        args = {key: value for key, value in self.kwargs.items() if key not in ("kinds", "seed")}
        with torch.device("meta"):
            network = ProbedEncoder(**args, kind=self.kwargs["kinds"][index])
        network.encoder, network.probe = self.encoder, self.probes[index]  # type: ignore[assignment]
        return network.train(self.training)  # type: ignore[return-value]


def select_state(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the part of a grid's state that a network of its encoder and one of its probes has, under its names."""
    own = f"probes.{index}."
    parts = {"encoder.": "encoder.", own: "probe."}
    return {
        new + key.removeprefix(old): tensor
        for old, new in parts.items()
        for key, tensor in state.items()
        if key.startswith(old)
    }


def probed_encoder(num_classes: int, **overrides: Any) -> ProbedEncoder:
    """Build a frozen encoder with one probe."""
    return ProbedEncoder(num_classes, **overrides)


def probe_grid(num_classes: int, **overrides: Any) -> ProbeGrid:
    """Build a frozen encoder with many probes."""
    return ProbeGrid(num_classes, **overrides)
