"""Distillation: a classifier learns from the labels and from a teacher that sees the same clips, decoded once.

Shapes: B clips, K classes, D the dimension of the teacher's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import Config
from networks import weights
from networks.adapters import MERGEABLE
from networks.student import feature_dim
from networks.weights.source_config import CONFIG, read_json
from training.losses import Loss
from training.tasks import Classify, LabeledClips


class Teacher:
    """A trained network that is fixed, in the precision of the training step.

    `scale` and `offset` (3,) turn clips that are normalized for the student into what the teacher was trained on.
    """

    def __init__(self, network: nn.Module, scale: Tensor, offset: Tensor, compiled: bool = False):
        self.network = network.eval().requires_grad_(False)
        self.feature_dim = feature_dim(network)
        channels = (1, -1, 1, 1, 1)
        self.scale, self.offset = scale.view(channels), offset.view(channels)
        compute: Any = torch.compile if compiled else lambda function: function
        self._logits, self._features = compute(network), compute(network.forward_features)

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the weights."""
        return next(self.network.parameters()).dtype

    def _clips(self, video: Tensor) -> Tensor:
        return (video.float() * self.scale + self.offset).to(self.dtype)

    @property
    def description(self) -> str:
        """Describe the network in a few words."""
        millions = sum(parameter.numel() for parameter in self.network.parameters()) / 1e6
        return f"{type(self.network).__name__}, {millions:.2f} M parameters, {str(self.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def logits(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, K) float32."""
        return self._logits(self._clips(video)).float()

    @torch.no_grad()
    def features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D) float32."""
        return self._features(self._clips(video)).float()


def load_teacher(
    cfg: Config, classes: Sequence[str], device: torch.device, dtype: torch.dtype, compiled: bool = False
) -> Teacher:
    """Load task.teacher for the clips of the student: its positions are resized to them.

    Raises ValueError for a checkpoint that is no classifier, and if logits are compared, for other classes.
    """
    data, source = cfg.data, cfg.task.teacher
    network, card = _read_teacher(source, num_frames=data.num_frames, image_size=data.image_size)
    if cfg.task.distillation == "logits":
        if card["multi_label"]:
            expected = "expected one label, or task.distillation=features"
            raise ValueError(f"task.teacher={source}: it knows several labels per video; {expected}")
        _check_classes(source, network, card.get("id2label", {}), classes)
    own = card.get("input", {})
    stats = {key: torch.tensor(own.get(key) or getattr(data, key)) for key in ("mean", "std")}
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    scale, offset = std / stats["std"], (mean - stats["mean"]) / stats["std"]
    return Teacher(network.to(device, dtype), scale.to(device), offset.to(device), compiled)


def _read_teacher(source: str, **sizes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network for clips of these sizes, and what its file tells of classes and input.

    One with an adapter that is a part of it keeps the sizes that it was trained with, which must be the same.
    """
    folder = next((path for path in (Path(source), Path(source) / "best") if (path / CONFIG).is_file()), None)
    stored = read_json(folder / CONFIG) if folder else {}
    several = {"multi_label": bool(stored.get("multi_label"))}
    if folder is None or stored.get("adapter", {}).get("name", MERGEABLE[0]) in MERGEABLE:
        network, config, _ = weights.convert(source, **sizes)
        return network, config["extra"] | several
    network, card = weights.load_network(folder)
    own: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    differing = [f"{key}={own[key]}" for key, value in sizes.items() if own[key] != value]
    if differing:
        expected = "expected the student's, as its adapter is a part of it"
        raise ValueError(f"task.teacher={source}: it was trained with {', '.join(differing)}; {expected}")
    names = {str(number): name for number, name in card.get("id2label", {}).items()}
    return network, card | several | {"id2label": names}


def _check_classes(source: str, network: nn.Module, id2label: dict[str, str], classes: Sequence[str]) -> None:
    num_classes: int = network.kwargs.get("num_classes", 0)  # type: ignore[operator,union-attr,assignment]
    if num_classes != len(classes):
        raise ValueError(
            f"task.teacher={source}: it has {num_classes} classes, and the training list {len(classes)}; expected the "
            "same, or task.distillation=features"
        )
    names = [id2label.get(str(index), "") for index in range(num_classes)]
    pairs = zip(weights.normalize(names), weights.normalize(classes), strict=True)
    differing = [(old, new) for old, new in pairs if old and not old.isdecimal() and not new.isdecimal() and old != new]
    if differing:
        raise ValueError(
            f"task.teacher={source}: its class '{differing[0][0]}' is '{differing[0][1]}' in the training list; "
            "expected the same classes in the same order, or task.distillation=features"
        )


class Distill(Classify):
    """The loss of the labels, and how far the student is from its teacher (Hinton et al., 2015, section 2).

    The total is (1 - alpha) times the first and alpha times the second. kind="logits" compares probabilities at a
    temperature of `tau`: tau^2 times the Kullback-Leibler divergence. "features" compares the features that the heads
    classify, those of the student projected: 2 - 2 times their cosine.
    """

    def __init__(self, loss: Loss, teacher: Teacher, kind: str = "logits", alpha: float = 0.5, tau: float = 1.0):
        super().__init__(loss)
        self.teacher, self.kind, self.alpha, self.tau = teacher, kind, alpha, tau

    @property
    def description(self) -> str:
        """Describe in a line what is learned from whom."""
        how = f"temperature {self.tau:g}, " if self.kind == "logits" else ""
        return f"learns the {self.kind} of a teacher ({self.teacher.description}); {how}{self.alpha:g} of the loss"

    def __call__(self, network: nn.Module, batch: LabeledClips) -> dict[str, Tensor]:
        """Return loss () and logits (B, K).

        The network is one that make_student() extended if features are compared.
        """
        if self.kind == "logits":
            logits = network(batch.video)
            distance = soft_divergence(logits, self.teacher.logits(batch.video), self.tau)
        else:
            logits, features = network(batch.video)
            distance = cosine_distance(features, self.teacher.features(batch.video))
        loss = (1 - self.alpha) * self.loss(logits, batch.label) + self.alpha * distance
        return {"loss": loss, "logits": logits}


def soft_divergence(logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """Return tau^2 times the mean divergence () of softened probabilities, for logits (B, K)."""
    log_probs, teacher = (values.float() / tau for values in (logits, teacher_logits))
    pairs = log_probs.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(*pairs, reduction="batchmean", log_target=True) * tau**2


def cosine_distance(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return 2 - 2 cos, the squared distance of normalized features (B, D), as a mean ()."""
    return (2 - 2 * F.cosine_similarity(features.float(), teacher_features.float(), dim=-1)).mean()
